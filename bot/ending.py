"""How the service ends: no new job, time for the running ones, then they are put back. A second signal: at once."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds after which a process that was told twice to end is ended from within, whatever hangs.
_AT_ONCE_S = 5.0


class Ending:
    """Takes signals and turns them into the steps of an end, in a thread of its own.

    A signal's handler runs in the middle of anything, so it only notes the signal.

    Args:
        drain_s: seconds that the work gets to end by itself.
        busy: whether there is any.
        begin: begins no new work; ``put_back``: ends the work that runs; ``leave``: ends the rest of the process.
        hurry: ends what ``leave`` still waits for.
    """

    def __init__(
        self,
        *,
        drain_s: float,
        busy: Callable[[], bool],
        begin: Callable[[], None],
        put_back: Callable[[], None],
        leave: Callable[[], None],
        hurry: Callable[[], None],
    ) -> None:
        self._drain_s, self._busy = drain_s, busy
        self._begin, self._put_back, self._leave, self._hurry = begin, put_back, leave, hurry
        self._signals: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.hurried = threading.Event()
        self.interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT while the block runs, where this is the main thread."""
        thread = threading.Thread(target=self._run, name="ending", daemon=True)
        thread.start()
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # It would hold on to everything that it could end.
            self._signals.put(None)
            thread.join(timeout=1.0)

    def ask(self, number: int = signal.SIGTERM) -> None:
        """End as if that signal had come."""
        self._signals.put(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.put(number)

    def _run(self) -> None:
        first = self._signals.get()
        if first is None:
            return
        self.interrupted = first == signal.SIGINT
        self._begin()
        until = time.monotonic() + self._drain_s
        while self._busy() and time.monotonic() < until and self._signals.empty():
            time.sleep(0.1)
        self._put_back()
        self._leave()
        if (second := self._signals.get()) is not None:
            self.at_once(second)

    def at_once(self, number: int = signal.SIGTERM, *, seconds: float = _AT_ONCE_S) -> None:
        """Wait for nothing any more; what still hangs after some seconds is cut off, as a kill would."""
        self.hurried.set()
        self._hurry()
        time.sleep(seconds)
        logger.error("Something did not end; the process is cut off.")
        os._exit(128 + number)
