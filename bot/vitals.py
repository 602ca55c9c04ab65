"""How the running service is: what its parts note, and from that whether it is ready. The decision is pure."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

#: Bytes that the disks must have for the service to be ready: for models and results, and for the database.
DATA_ROOM, DB_ROOM = 512 << 20, 64 << 20
#: Polling intervals without a sign of life after which something is wrong, and seconds that it takes at least.
INTERVALS, AT_LEAST_S = 3, 600.0
ENDING = "The service is ending."


@dataclass(frozen=True)
class Seen:
    """What is known at one moment. Ages are by a clock that only goes forward; ``*_at`` are seconds since the epoch.

    ``alive_at``: by that clock, when a cycle ended well or a job came on. ``cycles`` counts those that ended, and
    ``failures`` those among them that failed as a whole; ``errors`` what went wrong in any.
    """

    started_at: float
    alive_at: float
    cycles: int = 0
    failures: int = 0
    errors: int = 0
    cycle_seconds: float = 0.0
    jobs_done: int = 0
    error: str | None = None
    draining: bool = False
    worker_died: bool = False
    trouble: str | None = None
    clock_jumps: int = 0
    backups: int = 0
    backup_failures: int = 0
    backup_at: float | None = None
    backup_error: str | None = None
    data_bytes: Mapping[str, int] = field(default_factory=dict)
    variants: Mapping[str, int] = field(default_factory=dict)


class Vitals:
    """What the service's threads note about themselves. Safe to use from several threads.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, *, started_at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.RLock()
        self._seen = Seen(started_at=started_at, alive_at=clock())

    @property
    def seen(self) -> Seen:
        """What is known now."""
        with self._lock:
            return self._seen

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life."""
        return self._clock() - self.seen.alive_at

    def alive(self) -> None:
        """A job came on."""
        self.note(alive_at=self._clock())

    def cycle_ended(self, *, seconds: float, errors: int) -> None:
        """A cycle ended; what went wrong in single repos is not its failure."""
        with self._lock:
            self._seen = replace(
                self._seen,
                alive_at=self._clock(),
                cycles=self._seen.cycles + 1,
                errors=self._seen.errors + errors,
                cycle_seconds=seconds,
                error=None,
            )

    def cycle_failed(self, error: str, *, seconds: float) -> None:
        """A cycle failed as a whole; ``error`` may be read by anybody."""
        with self._lock:
            self._seen = replace(
                self._seen,
                cycles=self._seen.cycles + 1,
                failures=self._seen.failures + 1,
                errors=self._seen.errors + 1,
                cycle_seconds=seconds,
                error=error,
            )

    def note(self, **changes: object) -> None:
        """Note anything else."""
        with self._lock:
            self._seen = replace(self._seen, **changes)  # type: ignore[arg-type]

    def count(self, name: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self._seen = replace(self._seen, **{name: getattr(self._seen, name) + 1})


def limit_s(poll_interval_s: float) -> float:
    """Seconds without a sign of life after which something is wrong. Pure."""
    return max(INTERVALS * poll_interval_s, AT_LEAST_S)


def unready(
    seen: Seen,
    *,
    silent_s: float,
    limit_s: float,
    database: str | None,
    free: Mapping[str, int],
    room: Mapping[str, int],
) -> list[str]:
    """Why the service is not ready, in sentences that anybody may read; empty: it is. Pure.

    Args:
        silent_s: seconds since the last sign of life; ``limit_s``: how many there may be.
        database: what is the matter with it, if anything.
        free: bytes that each disk has; ``room``: bytes that it must have.
    """
    found = []
    if seen.draining:
        found.append(ENDING)
    if seen.worker_died:
        found.append("The thread that works has died; the log says why. Restart the service.")
    if seen.trouble:
        found.append(f"Nothing can be measured: {seen.trouble}")
    if database:
        found.append(database)
    for name, wanted in room.items():
        if name in free and free[name] < wanted:
            has, needs = f"{free[name] / 1e6:.0f} MB", f"{wanted / 1e6:.0f} MB"
            found.append(f"The disk of the {name} has {has} free and needs {needs}. Free some space.")
    if silent_s > limit_s and not seen.draining:
        last = f" The last one said: {seen.error}" if seen.error else ""
        found.append(f"No cycle has ended well for {silent_s:.0f} s, and no job came on.{last}")
    return found


def free_bytes(path: Path) -> int | None:
    """Bytes that the disk of a path has for us; None where it can't be told."""
    for one in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(one).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
