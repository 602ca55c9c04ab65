"""The kill switch as a Hub asks it: before every write, of every process, in the middle of a cycle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bot.store import Store
from bot.store.switch import paused
from core.errors import HubError


class WritingPausedError(HubError):
    """Writing to the Hub is paused; ``quantcard resume`` ends that."""


def guard(db: Path) -> Callable[[], None]:
    """What a Hub asks before every write, from whichever thread it writes: the database says, not this process.

    The callable raises:
        WritingPausedError: writing is paused.
        StorageError: the database can't be asked; then nothing is written.
    """

    def check() -> None:
        if not db.exists():
            return
        with Store(db) as store:
            if found := paused(store):
                raise WritingPausedError(str(found))

    return check
