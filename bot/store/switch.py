"""The kill switch as the database has it: whether the operator paused all writing to the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.store import Store

_NAME = "paused"


@dataclass(frozen=True, slots=True)
class Pause:
    """Why and since when (seconds since the epoch) nothing is written."""

    reason: str
    at: float

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M")
        why = f" ({self.reason})" if self.reason else ""
        return f"Writing to the Hub is paused since {since} UTC{why}; 'quantcard resume' ends that."


def paused(store: Store) -> Pause | None:
    """The pause in force, or None."""
    found = json.loads(store.results.get(_NAME) or "{}")
    return Pause(str(found.get("reason", "")), float(found.get("at", 0.0))) if found else None


def pause(store: Store, *, reason: str, now: float) -> None:
    """Stop writing; a pause in force keeps its time and gets the new reason."""
    before = paused(store)
    store.results.put(_NAME, json.dumps({"reason": reason, "at": before.at if before else now}))


def resume(store: Store) -> Pause | None:
    """Let writing go on; returns the pause that ended, or None if there was none."""
    before = paused(store)
    if before:
        store.results.put(_NAME, "{}")
    return before
