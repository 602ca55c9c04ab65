"""One service for one database: a lock that the system itself drops when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bot.clock import iso
from core.closes import Closes
from core.errors import SettingsError, StorageError

#: Characters of the file that are read; it holds three short values.
_LONGEST = 4096
#: Seconds for the one before us to end, and for whoever only looks whether it is held.
_PATIENCE_S = 1.0
#: The last moment that a date can be told of.
_LAST = 2.5e11


class AlreadyServedError(SettingsError):
    """Another service holds this database."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock; ``since``: seconds since the epoch."""

    pid: int
    host: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {iso(self.since)}"


def lock_path(db: Path) -> Path:
    """The lock's file: beside the database, whichever way that is named."""
    real = db.resolve()
    return real.with_name(f"{real.name}.lock")


class InstanceLock(Closes):
    """Held from its making to :meth:`close` or the process's end. The file stays; only the lock on it counts.

    A file that a killed process left, or that names a process id which another one has by now (as in a container
    that was started again), is no obstacle. Processes that this one starts do not inherit the lock.

    Args:
        now: seconds since the epoch, told to others who want it.

    Raises:
        AlreadyServedError: another process (or another service of this one) holds it.
        StorageError: the file can't be made or locked.
    """

    def __init__(self, db: Path, *, now: float) -> None:
        self.path = lock_path(db)
        self._handle: int | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = _locked(self.path, seconds=_PATIENCE_S)
        except OSError as error:
            raise StorageError(
                f"The lock {self.path} can't be taken ({error.strerror}). Check the folder and its permissions."
            ) from error
        if self._handle is None:
            holder = holder_of(db)
            who = f" ({holder})" if holder else ""
            raise AlreadyServedError(
                f"Another 'quantcard serve'{who} serves {db} already. Stop it first, or give this one another --db."
            )
        # Only for the sentence above: on a full disk the lock holds all the same.
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), now))).encode(), 0)

    def close(self) -> None:
        """Let others have it."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                os.ftruncate(handle, 0)
            os.close(handle)


def held(db: Path) -> bool:
    """Whether a service runs over this database now."""
    try:
        handle = os.open(lock_path(db), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return False


def holder_of(db: Path) -> Holder | None:
    """Who says to hold the lock, or held it last and was killed; None where nobody says so."""
    try:
        with lock_path(db).open("rb") as file:
            found = json.loads(file.read(_LONGEST))
        one = Holder(int(found["pid"]), str(found["host"])[:100], float(found["since"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return one if 0 <= one.since < _LAST else None


def _locked(path: Path, *, seconds: float) -> int | None:
    """The locked file, or None where somebody else holds it for that long.

    Raises:
        OSError: it can't be made, or the file system has no locks.
    """
    until = time.monotonic() + seconds
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever removed the file meanwhile would let a second one in beside us.
            if _same(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(handle)
                return None
            time.sleep(0.05)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
