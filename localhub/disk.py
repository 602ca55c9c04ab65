"""Writing that survives a kill: temporary file, fsync, rename. And locks, across threads and processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

#: A file younger than this may change again without a change of its time stamp (file systems count in ticks).
_SETTLED_NS = 100_000_000


class _Durability(threading.local):
    on = True


_durability = _Durability()


@contextmanager
def without_fsync() -> Iterator[None]:
    """In this thread, writing no longer waits for the disk: for folders that can be filled again."""
    before = _durability.on
    _durability.on = False
    try:
        yield
    finally:
        _durability.on = before


def sync_file(fd: int) -> None:
    """Make what was written to this file durable."""
    if _durability.on:
        os.fsync(fd)


def stamp(moment: datetime) -> str:
    """A time in the Hub's format, `2026-01-31T12:00:00.000Z`: to the millisecond, and sorted as text it is in order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def now() -> str:
    """The time in the Hub's format."""
    return stamp(datetime.now(UTC))


def later_than(date: str) -> str:
    """One millisecond after a time in the Hub's format."""
    return stamp(datetime.fromisoformat(date) + timedelta(milliseconds=1))


def random_id() -> str:
    """24 hex digits, the shape of the Hub's object ids."""
    return uuid.uuid4().hex[:24]


def stable_id(*parts: str) -> str:
    """A 24-digit id that is the same every time for the same thing (users have no record to store one in)."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def sync_dir(path: Path) -> None:
    """Make a rename in this folder durable."""
    if not _durability.on:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temp_beside(path: Path) -> Path:
    """A temporary name in the same folder, so that the rename is atomic; leftovers are never read."""
    return path.with_name(f".{uuid.uuid4().hex}.tmp")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the file with these bytes: a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_beside(path)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            sync_file(file.fileno())
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_atomic` for JSON, indented: people are meant to be able to read and mend the folder."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    write_atomic(path, text.encode("utf-8", "surrogatepass"), mode=mode)


def read_json(path: Path) -> Any:
    """The file's JSON, or None where there is no file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


@lru_cache(maxsize=65_536)
def _parsed(path: str, _stamp: tuple[int, int, int]) -> Any:
    return json.loads(Path(path).read_bytes())


def read_json_cached(path: Path) -> Any:
    """`read_json` that parses a file again only after it changed. The value is shared: copy it before changing it."""
    name = str(path)
    try:
        stat = os.stat(name)  # noqa: PTH116 (a listing asks this of ten thousand files)
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if time.time_ns() - stat.st_mtime_ns < _SETTLED_NS:
            return json.loads(path.read_bytes())
        return _parsed(name, seen)
    except FileNotFoundError:
        return None


class _Lock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.RLock()
        self._depth = 0
        self._fd = -1

    def acquire(self) -> None:
        self._threads.acquire()
        if self._depth == 0:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            except BaseException:
                self._threads.release()
                raise
        self._depth += 1

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._fd)  # closing drops the flock
        self._threads.release()


class Locks:
    """One lock a name: re-entrant, and held against other threads and (flock) other processes."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "locks"
        self._guard = threading.Lock()
        self._locks: dict[str, _Lock] = {}

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Hold the locks of these names; taken in sorted order so that two callers cannot deadlock."""
        taken: list[_Lock] = []
        try:
            for name in sorted(set(names)):
                with self._guard:
                    if name not in self._locks:
                        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
                        self._locks[name] = _Lock(self._folder / f"{digest}.lock")
                    lock = self._locks[name]
                lock.acquire()
                taken.append(lock)
            yield
        finally:
            for lock in reversed(taken):
                lock.release()
