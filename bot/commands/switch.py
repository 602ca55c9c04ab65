"""``quantcard pause`` and ``resume``: the kill switch, in force at once in every process of this database."""

from __future__ import annotations

from typing import Annotated

import typer

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption
from bot.progress import say
from bot.settings import load_settings
from bot.store import Store
from bot.store.switch import pause as start_pause
from bot.store.switch import resume as end_pause


def pause(
    reason: Annotated[str, typer.Option("--reason", help="Why; shown by 'quantcard status'.")] = "",
    db: DbOption = None,
) -> None:
    """Write nothing to the Hub any more, in the middle of a cycle too; measuring goes on."""
    with Store(load_settings(db=db).db) as store:
        start_pause(store, reason=" ".join(reason.split())[:300], now=SystemClock().now())
    say("Paused: nothing is written to the Hub until 'quantcard resume'.")


def resume(db: DbOption = None) -> None:
    """Let writing to the Hub go on after a pause."""
    with Store(load_settings(db=db).db) as store:
        ended = end_pause(store)
        if ended:
            # What waited for it is decided at once.
            now = SystemClock().now()
            for one in store.publishing.all():
                if one.action == "wait":
                    store.publishing.touch(one.repo_id, now=now)
    say(f"Writing goes on; it was paused since {iso(ended.at)}." if ended else "Writing was not paused.")
