"""Timers that keep their time when somebody sets the machine's clock.

APScheduler plans by the wall clock. Set forward by hours it fires once, which does no harm; set back by hours it
would wait those hours. So we compare the clock with one that only goes forward, and move what is planned along.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from apscheduler.schedulers.base import BaseScheduler

from core.closes import Closes

logger = logging.getLogger(__name__)

#: Seconds between looks, and by which the clock may run away between two of them (slewing, a busy machine).
_EVERY_S, _SLACK_S = 5.0, 2.0


class ClockWatch(Closes):
    """Moves a scheduler's plans along with the wall clock.

    Args:
        jumped: called with how far the clock was set, in seconds; negative: back.
        wall: seconds since the epoch; ``steady``: seconds that only go forward.
    """

    def __init__(
        self,
        scheduler: BaseScheduler,
        *,
        jumped: Callable[[float], None],
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler, self._jumped, self._wall, self._steady = scheduler, jumped, wall, steady
        self._offset = wall() - steady()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="clock-watch", daemon=True)

    def start(self) -> None:
        """Watch, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._ended.set()

    def look(self) -> float:
        """Look once; returns by how many seconds the clock was set since the last look, 0 where it was not."""
        offset = self._wall() - self._steady()
        moved = offset - self._offset
        if abs(moved) <= _SLACK_S:
            # What a slow drift adds up to is no jump.
            self._offset = offset
            return 0.0
        self._offset = offset
        for job in self._scheduler.get_jobs():
            # A job that waits to be added has no time yet.
            if (planned := getattr(job, "next_run_time", None)) is not None:
                job.modify(next_run_time=planned + timedelta(seconds=moved))
        self._jumped(moved)
        return moved

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self.look()
            except Exception:
                logger.exception("The clock could not be looked after.")
