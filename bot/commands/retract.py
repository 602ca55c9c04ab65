"""``quantcard retract``: withdraw a file's figures; they stay visible with the reason, and rank nowhere."""

from __future__ import annotations

from typing import Annotated

import typer

from bot.clock import SystemClock
from bot.commands.common import DbOption
from bot.progress import say
from bot.publish.rows import retraction_name
from bot.settings import load_settings
from bot.store import Store
from core.errors import SettingsError


def retract(
    repo: Annotated[str, typer.Argument(help="The repo, as OWNER/NAME.")],
    file: Annotated[str, typer.Argument(help="The file, as its row names it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, as a sentence that everybody reads.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the retraction back.")] = False,
    db: DbOption = None,
) -> None:
    """Withdraw a file's figures, or take that back; what was measured stays visible beside the reason."""
    said = " ".join(reason.split())[:300]
    if not said and not undo:
        raise SettingsError("Say why with --reason: it stands beside the figures.")
    with Store(load_settings(db=db).db) as store:
        found = [one for one in store.repos.variants(repo, states=("current", "stale", "removed")) if one.name == file]
        if not found:
            raise SettingsError(f"There is no file {file} in {repo} that was measured here.")
        now = SystemClock().now()
        for one in found:
            store.results.put(retraction_name(one.key), "" if undo else said)
        store.publishing.touch(repo, now=now)
        store.results.put("export", "due")
    say("Taken back." if undo else "Retracted. Card and dataset say so with the next cycle.")
