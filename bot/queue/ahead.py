"""Fetches the files of jobs that come next while one is measured, so that no machine waits for the network."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bot.hub.door import HubDoor
from bot.queue.disk import Disk
from bot.queue.fetch import is_fetched, model_path
from bot.store.repos import Variant
from core.errors import QuantcardError, StorageError
from core.sandbox.child import JobStopped

logger = logging.getLogger(__name__)

#: Seconds between looks at what comes next; before a file that could not be had is tried again; before one for which
#: there was no room is.
_LOOK_S: Final = 5.0
_AGAIN_S: Final = 600.0
_ROOM_S: Final = 30.0


class Ahead:
    """A thread that keeps the next files at hand. Use as a context manager, or :meth:`start` and :meth:`stop`.

    What fails here is only logged: the job that needs the file will say so itself. A worker that wants a file which
    is being fetched here waits for it.

    Args:
        disk: room is made for a file only by evicting what is needed later than it.
        upcoming: the variants of coming jobs, the next one first, as many as may be fetched ahead; called in this
            thread.
        bytes_per_s: no faster than this in all.
        look_s: seconds between looks.
    """

    def __init__(
        self,
        data: Path,
        hub: HubDoor,
        disk: Disk,
        upcoming: Callable[[], list[Variant]],
        *,
        bytes_per_s: float | None = None,
        look_s: float = _LOOK_S,
    ) -> None:
        self._data, self._hub, self._disk, self._upcoming = data, hub, disk, upcoming
        self._bytes_per_s, self._look_s = bytes_per_s, look_s
        self._stop, self._wake = threading.Event(), threading.Event()
        #: By variant, when it may be tried again (monotonic seconds).
        self._failed: dict[str, float] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin; safe to call twice."""
        if self._thread is None:
            # A new flag each time: a thread that was left behind must not be revived.
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="ahead", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Look at once: something has changed in the queue."""
        self._wake.set()

    def stop(self, *, timeout: float = 1.0) -> None:
        """End, leaving what was fetched so far; a connection that gives nothing is not waited for any longer."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._wake.clear()
            try:
                fetched = self._fetch_next(stop.is_set)
            except JobStopped:
                return
            except Exception:
                logger.exception("Looking at what comes next ended in an error of ours.")
                fetched = False
            if not fetched:
                self._wake.wait(self._look_s)

    def _fetch_next(self, stop: Callable[[], bool]) -> bool:
        """Fetch the first file that is not here; whether there was one."""
        now = time.monotonic()
        for variant in self._upcoming():
            if stop():
                raise JobStopped
            if now < self._failed.get(variant.key, now):
                continue
            try:
                if is_fetched(self._data, variant):
                    continue
                model_path(self._data, variant, self._hub, disk=self._disk, stop=stop, bytes_per_s=self._bytes_per_s)
                logger.info("Fetched %s of %s ahead of its job.", variant.name, variant.repo_id)
                return True
            except QuantcardError as error:
                self._failed[variant.key] = now + (_ROOM_S if isinstance(error, StorageError) else _AGAIN_S)
                logger.info("%s of %s is not fetched ahead: %s", variant.name, variant.repo_id, error)
        return False
