"""``quantcard compare``: two variants on the same tokens, pair-wise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bot.commands.common import DbOption, JsonOption, find_variant, print_json
from bot.queue.places import tokens_path
from bot.settings import load_settings
from bot.store import Store
from bot.tables import out
from core.errors import TokenFileError
from core.pairs import Comparison, Difference, chunks_text, compare, number, p_text, sentence
from core.token_file import read_tokens


def compare_files(
    a: Annotated[
        str, typer.Argument(metavar="A", help="One variant's token file (.parquet), or OWNER/REPO/FILE.gguf.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other's, of the same tokens and baseline.")],
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Whether one variant is measurably closer to the reference than another, token by token."""
    found = compare(read_tokens(_tokens(a, db)), read_tokens(_tokens(b, db)))
    words = sentence(found)
    if as_json:
        print_json({"sentence": words, **found.model_dump(mode="json")})
        return
    _say(words, *found.notes, "")
    out.print(comparison_table(found))
    _say(
        "",
        f"A: {found.a.name}",
        f"B: {found.b.name}",
        f"{found.n_tokens:,} tokens in {chunks_text(found.n_chunks)}, scoring {found.scoring}",
    )


def _tokens(name: str, db: Path | None) -> Path:
    """A token file by its path, or the one that the bot wrote for a file on the Hub.

    Raises:
        TokenFileError: the bot has none for it.
    """
    if not name.endswith(".gguf") or Path(name).exists():
        return Path(name)
    settings = load_settings(db=db)
    protocol = settings.protocol_in_force()
    with Store(settings.db) as store:
        variant, _ = find_variant(store, settings, name)
    path = tokens_path(settings.data, variant.key, protocol)
    if not path.exists():
        raise TokenFileError(f"{variant.name} was not measured here under {protocol.name}; run 'quantcard run --once'.")
    return path


def _say(*lines: str) -> None:
    """Lines as they are: names are no markup."""
    for line in lines:
        out.print(line, markup=False, emoji=False)


def comparison_table(found: Comparison) -> Table:
    """Every figure of both, and the difference with its interval and p."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("A", "B", "A − B", "95 % interval", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("Mean KLD", *_cells(found.kld_mean))
    table.add_row("ln PPL", *_cells(found.ln_ppl))
    table.add_row("Same top p, %", *_cells(found.same_top, 100))
    return table


def _cells(one: Difference, factor: float = 1) -> list[str]:
    interval = one.interval
    half = factor * (interval.high - interval.low) / 2 if interval else factor * abs(one.difference) / 10
    a, b, difference = (number(factor * value, half) for value in (one.a, one.b, one.difference))
    ends = f"{number(factor * interval.low, half)} to {number(factor * interval.high, half)}" if interval else "–"
    return [a, b, difference, ends, p_text(one.p_value).removeprefix("p ").removeprefix("= ")]
