"""``quantcard disputes``: what owners say against our figures, and how that ended."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, JsonOption, print_json
from bot.progress import say
from bot.settings import load_settings
from bot.store import Store
from bot.tables import out
from core.errors import SettingsError

app = typer.Typer(help="What owners dispute, and how it ended.", no_args_is_help=True)


@app.command("list")
def list_(db: DbOption = None, as_json: JsonOption = False) -> None:
    """List disputes, open ones first."""
    with Store(load_settings(db=db).db) as store:
        found = store.answers.disputes()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        say("Nobody disputes a figure.")
        return
    table = Table("No.", "Repo", "Pull", "Who", "Since", "State", "Text", "Note")
    for one in found:
        table.add_row(
            str(one.id), escape(one.repo_id), str(one.num), escape(one.author), iso(one.at), one.state,
            escape(one.text), escape(one.note or ""),
        )  # fmt: skip
    out.print(table)


@app.command("close")
def close(
    number: Annotated[int, typer.Argument(help="The dispute's number, as 'quantcard disputes list' shows it.")],
    note: Annotated[str, typer.Option("--note", help="What came of it; told on the pull.")] = "",
    db: DbOption = None,
) -> None:
    """End a dispute: it no longer stands beside the figures, and the owner is told on the pull."""
    with Store(load_settings(db=db).db) as store:
        ended = store.answers.close_dispute(number, note=" ".join(note.split())[:300])
        if ended is None:
            raise SettingsError(f"There is no open dispute {number}. 'quantcard disputes list' shows them.")
        store.publishing.touch(ended.repo_id, now=SystemClock().now())
    say(f"Closed. It is told in {ended.repo_id} with the next cycle.")
