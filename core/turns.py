"""Whose turn it is in the queue: urgency, fair shares, and ageing in one number. Pure.

A job's turn is a moment on a virtual clock that runs as the wall clock does; the earliest turn goes first. What is
urgent gets a head start, so that it goes before what was queued up to that much earlier, and never before what waited
for longer: nothing starves. Each further variant of one owner gets its turn a share later than the one before, so
that a thousand files of one owner do not stand in front of the one file of another (start-time fair queueing).
"""

from __future__ import annotations

from typing import Literal

#: ``asked``: a person asked for it. ``new``: an upload of somebody whom we follow. ``back-fill``: it lay there before.
Urgency = Literal["asked", "new", "back-fill"]
_DAY = 86_400.0
#: Seconds.
HEAD_START: dict[Urgency, float] = {"asked": 7 * _DAY, "new": _DAY, "back-fill": 0.0}
URGENCIES: tuple[Urgency, ...] = ("back-fill", "new", "asked")
#: Seconds of an owner's share that a variant takes: for itself, and for each GB.
_SHARE_S, _SHARE_S_PER_GB = 60.0, 30.0
#: An upload is new for this long.
NEW_S = 3 * _DAY


def turn(*, now: float, last: float | None, urgency: Urgency, size_bytes: int) -> float:
    """When it is a variant's turn.

    Args:
        now: seconds since the epoch.
        last: the latest turn that its owner has at this urgency.
        size_bytes: of the variant; a large one takes a larger share.
    """
    start = now - HEAD_START[urgency]
    share = _SHARE_S + _SHARE_S_PER_GB * size_bytes / 1e9
    return start if last is None else max(start, last + share)


def urgency_of(*, asked: bool, modified: float | None, now: float) -> Urgency:
    """How urgent a repo's files are; ``modified`` is when the repo was last changed, in seconds since the epoch."""
    if asked:
        return "asked"
    return "new" if modified is not None and now - modified < NEW_S else "back-fill"
