"""The Hub's request budget: fixed windows told in RateLimit headers, shared by all parts, publishing before polling.

The Hub counts requests for each token in windows of five minutes, API calls and file reads apart, and tells in every
answer what is left. We read that and keep a part of each window back for what matters more: a poll that comes late
is late, a pull that can't be updated is wrong on somebody's card.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from huggingface_hub.utils import parse_ratelimit_headers

from core.errors import HubRateLimitError

API, FILES = "api", "resolvers"


class Urgency(IntEnum):
    """What a request is for; the later ones may use what the earlier ones must leave."""

    POLL = 0
    LOOK = 1
    MEASURE = 2
    PUBLISH = 3


#: The share of a window that each must leave for those after it.
RESERVE: dict[Urgency, float] = {Urgency.POLL: 0.4, Urgency.LOOK: 0.25, Urgency.MEASURE: 0.1, Urgency.PUBLISH: 0.0}

_urgency: ContextVar[Urgency] = ContextVar("urgency", default=Urgency.PUBLISH)


@contextmanager
def urgency(value: Urgency) -> Iterator[None]:
    """Requests in this block are for this purpose."""
    token = _urgency.set(value)
    try:
        yield
    finally:
        _urgency.reset(token)


class HubBudgetError(HubRateLimitError):
    """What is left of the request budget is kept for more urgent requests; ``seconds`` until it is whole again."""

    def __init__(self, message: str, *, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Window:
    """What an answer told: requests left of ``limit`` until ``until`` (seconds of the budget's clock)."""

    limit: int
    remaining: int
    until: float


class Budget:
    """One token's budget at one Hub, kept up to date from every answer. Safe to use from several threads.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = {}
        self.requests: Counter[str] = Counter()

    def note(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Count an answered request, and take in what its headers tell."""
        told = _told(headers)
        with self._lock:
            self.requests[resource_of(path)] += 1
            if told is None:
                return
            resource, limit, remaining, seconds = told
            known = self._windows.get(resource)
            # Not every answer tells the limit; then it is what it was, or at least what is left.
            whole = limit or (known.limit if known else 0) or remaining
            self._windows[resource] = Window(max(whole, remaining), remaining, self._clock() + seconds)

    def check(self, resource: str, *, doing: str) -> None:
        """Refuse a request that must leave the rest of the window to others.

        Raises:
            HubBudgetError: too little is left for a request of this urgency.
        """
        now = self._clock()
        with self._lock:
            window = self._windows.get(resource)
        if window is None or window.until <= now:
            return
        kept = RESERVE[_urgency.get()] * window.limit
        if window.remaining > kept:
            return
        wait = window.until - now
        left = f"{window.remaining} of {window.limit} are left and kept for what is more urgent"
        raise HubBudgetError(
            f"The Hub's request budget stopped {doing}: {left if kept else 'it is spent'}. "
            f"It is whole again in {wait:.0f} s.",
            seconds=wait,
        )

    def told(self) -> dict[str, Any]:
        """Where the budget stands, for people: per resource limit, remaining and seconds to the next window."""
        now = self._clock()
        with self._lock:
            windows = {
                name: {"limit": w.limit, "remaining": w.remaining, "resets_in_s": round(w.until - now)}
                for name, w in self._windows.items()
                if w.until > now
            }
            return {"windows": windows, "requests": dict(self.requests)}


def resource_of(path: str) -> str:
    """Which budget a request counts against: file reads apart from the API."""
    return FILES if "/resolve/" in path else API


def _told(headers: Mapping[str, str]) -> tuple[str, int | None, int, int] | None:
    """(resource, limit, remaining, seconds) of an answer's RateLimit headers, or None."""
    try:
        found = parse_ratelimit_headers(headers)
    except (ValueError, TypeError):
        return None
    if found is None or found.remaining < 0 or not 0 <= found.reset_in_seconds <= 3600:
        return None
    return found.resource_type, found.limit, found.remaining, found.reset_in_seconds
