"""How much of the disk we take: what lies there, what of it may go, and room for what comes.

What may go is decided by :func:`choose` alone: nothing that a running job holds or that is being fetched, first what
no open job needs, then what is needed last. A baseline can be recorded again, so it goes like a model; corpora and
what was measured never do.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from core.errors import StorageError, TooLargeError

logger = logging.getLogger(__name__)

DOOMED: Final = ".doomed-"
#: Bytes that stay free, or this share of the disk where that is less: the database and results must find room.
_RESERVE: Final = 2 << 30
_RESERVE_SHARE: Final = 0.02
#: In a folder that is being filled: how many bytes it is to have in the end.
PROMISE: Final = ".promise"

Kind = Literal["model", "baseline"]
_KINDS: Final[tuple[Kind, ...]] = ("model", "baseline")


@dataclass(frozen=True, slots=True)
class Stored:
    """One thing that may be evicted whole: a variant with all its shards, or a baseline with its head.

    ``name`` is its folder's: a variant's key, or a baseline's name (:func:`bot.queue.places.baseline_path`).
    ``last_use`` is in seconds since the epoch, ``busy``: somebody is filling it.
    """

    kind: Kind
    name: str
    size: int
    last_use: float
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What open jobs need, by folder name, each with where in the queue it is needed first; 0: by a running job."""

    models: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    baselines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def place(self, kind: Kind, name: str) -> int | None:
        """Where in the queue something is needed first; None: nowhere."""
        return (self.models if kind == "model" else self.baselines).get(name)


@dataclass(frozen=True, slots=True)
class OpenJob:
    """What a job that has not ended needs on disk: a variant's key, and its baseline's folder name if it has one."""

    model: str
    baseline: str | None = None
    running: bool = False


def demand_of(jobs: Iterable[OpenJob]) -> Demand:
    """What open jobs need, given in the order in which they will start; running ones may stand anywhere. Pure."""
    models: dict[str, int] = {}
    baselines: dict[str, int] = {}
    for place, job in enumerate(jobs, start=1):
        at = 0 if job.running else place
        models[job.model] = min(at, models.get(job.model, at))
        if job.baseline is not None:
            baselines[job.baseline] = min(at, baselines.get(job.baseline, at))
    return Demand(models, baselines)


def choose(stored: Sequence[Stored], demand: Demand, *, to_free: int, place: int | None) -> list[Stored] | None:
    """What to evict so that ``to_free`` bytes come free, or None where that much can't be had. Pure.

    Args:
        place: where in the queue the room is needed; only what is needed later goes. None: only what nobody needs.
    """
    if to_free <= 0:
        return []

    def rank(one: Stored) -> tuple[float, float, int]:
        at = demand.place(one.kind, one.name)
        return (-1.0 if at is None else 1.0 / max(at, 1), one.last_use, -one.size)

    def may_go(one: Stored) -> bool:
        at = demand.place(one.kind, one.name)
        return not one.busy and one.size > 0 and (at is None or (place is not None and at > max(place, 0)))

    chosen: list[Stored] = []
    freed = 0
    for one in sorted(filter(may_go, stored), key=rank):
        if freed >= to_free:
            break
        chosen.append(one)
        freed += one.size
    if freed < to_free:
        return None
    # A large one that came last may make smaller ones before it needless; the most needed are spared first.
    for one in reversed(list(chosen)):
        if freed - one.size >= to_free:
            chosen.remove(one)
            freed -= one.size
    return chosen


class Disk:
    """The data folder's share of the disk. Safe to use from several threads and processes.

    Args:
        limit: bytes that everything in the data folder may take; None: what is free, less a reserve.
        demand: what open jobs need; while its context is open no job can be claimed. Without it nothing is evicted.
    """

    def __init__(
        self,
        data: Path,
        *,
        limit: int | None = None,
        demand: Callable[[], AbstractContextManager[Demand]] | None = None,
    ) -> None:
        self._data, self._limit, self._demand = data, limit, demand
        self._lock = threading.Lock()

    def make_room(self, folder: Path, n_bytes: int, *, wanted: str) -> None:
        """See to it that ``n_bytes`` more fit, and promise them to a folder, which its filler has locked.

        The promise counts until the folder holds what was promised, or nobody fills it any more.

        Raises:
            TooLargeError: more than the limit allows at all.
            StorageError: no room now; other jobs hold it, or the disk is full of other things.
        """
        if self._limit is not None and n_bytes > self._limit:
            raise TooLargeError(
                f"{wanted} needs {_gb(n_bytes)} on disk, {_gb(self._limit)} are allowed (QUANTCARD_DISK_BUDGET_GB)."
            )
        with self._lock, _one_at_a_time(self._data):
            already = _size(folder)
            stored, used = scan(self._data)
            promised = sum(self._missing(one) for one in stored if one.busy and one.name != folder.name)
            short = n_bytes + promised - self._available(used)
            if short > 0:
                self._evict(stored, folder.name, short, wanted=wanted, n_bytes=n_bytes)
            try:
                (folder / PROMISE).write_text(str(already + n_bytes))
            except OSError as error:
                raise StorageError(f"The model folder can't be used ({error.strerror}). Free some space.") from error

    def _evict(self, stored: Sequence[Stored], name: str, short: int, *, wanted: str, n_bytes: int) -> None:
        with self._demand() if self._demand else nullcontext(Demand()) as demand:
            # Not known what is needed: nothing may go.
            others = [one for one in stored if one.name != name] if self._demand else []
            chosen = choose(others, demand, to_free=short, place=demand.place("model", name))
            if chosen is None:
                allowed = " by QUANTCARD_DISK_BUDGET_GB" if self._limit is not None else ""
                raise StorageError(
                    f"{wanted} needs {_gb(n_bytes)} on disk, {_gb(max(0, n_bytes - short))} are free{allowed} and "
                    "nothing else can go now. Free some space; it is tried again."
                )
            doomed = [found for one in chosen if (found := set_folder_aside(self._folder(one)))]
        for one in chosen:
            logger.info("Evicted %s %s (%s) for %s.", one.kind, one.name[:16], _gb(one.size), wanted)
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True)

    def _available(self, used: int) -> int:
        try:
            disk = shutil.disk_usage(self._data)
        except OSError as error:
            raise StorageError(f"The data folder can't be used ({error.strerror}). Check it.") from error
        free = disk.free - min(_RESERVE, int(_RESERVE_SHARE * disk.total))
        return free if self._limit is None else min(free, self._limit - used)

    def _missing(self, one: Stored) -> int:
        """Bytes promised to a folder that is being filled, less those it has."""
        try:
            return max(0, int((self._folder(one) / PROMISE).read_text()) - one.size)
        except (OSError, ValueError):
            return 0

    def _folder(self, one: Stored) -> Path:
        return self._data / f"{one.kind}s" / one.name


def scan(data: Path) -> tuple[list[Stored], int]:
    """What may be evicted, and the bytes of everything in the data folder."""
    found = [
        Stored(kind, folder.name, _size(folder), _last_use(folder), busy=_is_locked(folder))
        for kind in _KINDS
        for folder in _folders(data / f"{kind}s")
        if not folder.name.startswith(".")
    ]
    return found, _size(data)


def touch(folder: Path) -> None:
    """Note that what lies in a folder is used now."""
    with suppress(OSError):
        os.utime(folder)


@contextmanager
def locked(folder: Path, *, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a folder, which is made if need be, while it is filled: nobody else fills it or takes it away.

    Args:
        wait: called again and again while somebody else holds it; it may raise.

    Raises:
        StorageError: the folder can't be made.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError as error:
            if isinstance(error, FileExistsError) and (folder.is_dir() or not folder.exists()):
                # It was taken away, or made anew, while mkdir looked at what stands there.
                continue
            raise StorageError(f"The model folder can't be used ({error.strerror}). Check the data folder.") from error
        try:
            if not _try_lock(handle):
                wait()
                continue
            # It may have been taken away between our opening and our locking it.
            if not _is_still(folder, handle):
                continue
            yield
            return
        finally:
            os.close(handle)


def set_folder_aside(folder: Path) -> Path | None:
    """Rename a folder that nobody fills, so that nobody takes its files for whole; where it lies now, or None."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        if not _try_lock(handle):
            return None
        doomed = folder.with_name(f"{DOOMED}{uuid.uuid4().hex}")
        folder.rename(doomed)
        return doomed
    except OSError:
        return None
    finally:
        os.close(handle)


@contextmanager
def _one_at_a_time(data: Path) -> Iterator[None]:
    """Room is made by one process at a time: what one has counted on, the next one must not."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        handle = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(f"The data folder can't be used ({error.strerror}). Check it.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_still(folder: Path, handle: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(handle))
    except OSError:
        return False


def _is_locked(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return []


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(root: Path) -> int:
    """Bytes that the files below a folder take on disk; what vanishes meanwhile counts nothing."""
    total, pending = 0, [str(root)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    with suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
