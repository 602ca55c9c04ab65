"""Why a cycle is to be run now: the timer (poll), or something that waits to be looked into (due)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Bell:
    """Rung by timers, webhooks and the page; the worker waits for it. Safe to use from several threads.

    However often it is rung, it makes one cycle. Cycles for what is due begin at least ``spacing`` seconds after
    the last one began, whatever that was for; a poll begins at once.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, *, spacing: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._spacing, self._clock = spacing, clock
        self._changed = threading.Condition()
        self._poll = self._due = self._ended = False
        self._began = float("-inf")

    def ring(self, *, poll: bool) -> None:
        """Ask for a cycle; ``poll``: a whole one, else only for what is due."""
        with self._changed:
            if poll:
                self._poll = True
            else:
                self._due = True
            self._changed.notify_all()

    def end(self) -> None:
        """Have whoever waits stop waiting, now and ever after."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def rung(self) -> bool:
        """Whether a cycle would begin at once."""
        with self._changed:
            return self._pause() == 0.0

    def take(self) -> bool | None:
        """Answer the bell if a cycle is to begin at once: True for a whole one, False for what is due; else None."""
        with self._changed:
            if self._ended or self._pause() != 0.0:
                return None
            poll, self._poll, self._due = self._poll, False, False
            self._began = self._clock()
            return poll

    def wait(self) -> bool | None:
        """Wait until a cycle is to begin and answer as :meth:`take`; None only when it ended."""
        with self._changed:
            while not self._ended:
                if (poll := self.take()) is not None:
                    return poll
                self._changed.wait(self._pause())
        return None

    def _pause(self) -> float | None:
        """Seconds until a cycle is to begin; None: nobody rang."""
        if self._poll or self._ended:
            return 0.0
        return max(0.0, self._began + self._spacing - self._clock()) if self._due else None
