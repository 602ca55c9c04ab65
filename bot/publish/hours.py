"""Quiet hours: the time of the day (UTC) in which nothing is written to the Hub. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_DAY = 86_400
_HOURS = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*-\s*(\d{1,2})(?::(\d{2}))?")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """From ``start`` to ``end``, in seconds of the day, UTC; over midnight where it ends before it starts."""

    start: int
    end: int

    def until(self, now: float) -> float | None:
        """When they end, if ``now`` (seconds since the epoch) lies within them; else None."""
        since = (now - self.start) % _DAY
        length = (self.end - self.start) % _DAY
        return now - since + length if since < length else None


def parse_hours(text: str) -> QuietHours | None:
    """``22-7`` or ``21:30-6:15``; None for an empty text.

    Raises:
        ValueError: it is neither.
    """
    if not text.strip():
        return None
    found = _HOURS.fullmatch(text.strip())
    hours, minutes = ([int(found[1]), int(found[3])], [int(found[2] or 0), int(found[4] or 0)]) if found else ([], [])
    if not found or max(hours) > 24 or max(minutes) > 59:
        raise ValueError("write hours of the day (UTC) as in 22-7 or 21:30-6:15")
    start, end = ((hour * 3600 + minute * 60) % _DAY for hour, minute in zip(hours, minutes, strict=True))
    if start == end:
        raise ValueError("they would last all day; publish = false switches writing off")
    return QuietHours(start, end)


def time_of_day(at: float) -> str:
    """``07:00`` (UTC) of seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M")


def day_and_time(at: float) -> str:
    """``2026-11-21 07:00`` (UTC) of seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
