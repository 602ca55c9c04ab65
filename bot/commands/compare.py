"""``quantcard compare``: two variants on the same tokens, pair-wise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bot.commands.common import JsonOption, print_json
from bot.tables import out
from core.pairs import Comparison, Difference, chunks_text, compare, number, p_text, sentence
from core.token_file import read_tokens


def compare_files(
    a: Annotated[Path, typer.Argument(metavar="A", help="One variant's token file (.parquet).")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other's, of the same tokens and baseline.")],
    as_json: JsonOption = False,
) -> None:
    """Whether one variant is measurably closer to the reference than another, token by token."""
    found = compare(read_tokens(a), read_tokens(b))
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
