"""Lets writers of one database through one after another.

SQLite makes a writer that finds the database locked look again ever more seldom, so that with eight busy workers one of
them may not get through for half a minute. Here it looks again every millisecond or so, at a lock that costs nothing to
look at, and every writer has the same chance.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows: SQLite's own waiting has to do
    fcntl = None  # type: ignore[assignment]

#: Seconds that a writer waits at most.
PATIENCE_S = 30.0
#: Seconds between looks: at first, and after a while.
_SHORT_S, _LONG_S, _WHILE_S = 0.0005, 0.005, 0.1


class Turnstile:
    """One connection's way through; each has a file descriptor of its own."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        if fcntl is not None:
            try:
                self._file = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError:
                # A folder that can't be written: SQLite will say so when something is to be written.
                self._file = None

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Wait for our turn; gives the seconds of patience that are left, 0 where it did not come."""
        if self._file is None:
            yield PATIENCE_S
            return
        begun, waited = time.monotonic(), 0.0
        while not (got := self._try()) and waited < PATIENCE_S:
            # Not all at once.
            time.sleep((_SHORT_S if waited < _WHILE_S else _LONG_S) * random.uniform(0.5, 1.5))
            waited = time.monotonic() - begun
        try:
            yield max(PATIENCE_S - waited, 0.0)
        finally:
            if got:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _try(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
