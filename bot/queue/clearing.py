"""Clears away what no open job needs any more, and what killed processes left behind."""

from __future__ import annotations

from pathlib import Path

from bot.queue.disk import set_folder_aside
from bot.queue.fetch import evict, set_aside
from bot.queue.places import evict_unfinished
from bot.store import Store
from bot.store.db import immediate


def clear_away(store: Store, data: Path) -> None:
    """Remove model files that no open job needs, and the work of jobs that ended or were never taken up again."""
    # No job can be claimed while we look: a file that somebody is about to use is not taken away.
    with immediate(store.db):
        there = [path.name for path in (data / "models").glob("*")]
        set_aside(data, keep=store.standing.wanted_of(there))
        # Whoever ended the job was killed before it could do so.
        work = [path.name for path in (data / "work").glob("*")]
        for name in store.standing.ended_of(work):
            set_folder_aside(data / "work" / name)
    evict(data)
    evict_unfinished(data, keep=store.standing.open_keys())
