"""A job's own folder: private, and removed when the job or, after a kill, its parent is gone."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from core.canonical import storage_error

_PREFIX = "quantcard-job-"
#: Seconds after which a folder without a lock is nobody's.
_OLD = 7 * 24 * 3600.0


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder for one job. A lock beside it ends with this process, however it ends.

    Raises:
        StorageError: there is no room for temporary files.
    """
    base = tempfile.gettempdir()
    try:
        _sweep_once(base)
        lock, held = _locked(base)
        folder = lock.with_suffix("")
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise storage_error(Path(base), error) from error
    try:
        yield folder
    finally:
        end_stuck({str(folder)})
        remove(folder)
        lock.unlink(missing_ok=True)
        os.close(held)


def _locked(base: str) -> tuple[Path, int]:
    """A new lock that we hold: the folder comes after it, so that a sweep never sees one whose owner has none."""
    while True:
        held, name = tempfile.mkstemp(prefix=_PREFIX, suffix=".lock", dir=base)
        fcntl.flock(held, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if Path(name).stat().st_ino == os.fstat(held).st_ino:
                return Path(name), held
        # A sweep was faster than our lock.
        os.close(held)


def remove(folder: Path) -> None:
    """Remove a folder whatever a job made of it: also what it took its own rights from."""

    def again(_function: object, path: str, _error: object) -> None:
        with suppress(OSError):
            here = Path(path)
            here.parent.chmod(0o700)
            if here.is_dir() and not here.is_symlink():
                here.chmod(0o700)
                here.rmdir()
            else:
                here.unlink()

    shutil.rmtree(folder, onerror=again)
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _sweep_once(base: str) -> None:
    sweep(base)


def sweep(base: str | None = None) -> int:
    """Remove the folders of parents that are dead; how many there were."""
    found = 0
    for lock in Path(base or tempfile.gettempdir()).glob(f"{_PREFIX}*.lock"):
        with suppress(OSError):
            held = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder = lock.with_suffix("")
                end_stuck({str(folder)})
                if folder.exists() and _is_ours(folder):
                    remove(folder)
                    found += 1
                lock.unlink(missing_ok=True)
            finally:
                os.close(held)
    for folder in Path(base or tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            # An older version's, which had no locks.
            old = time.time() - folder.stat().st_mtime > _OLD
            if folder.suffix != ".lock" and not Path(f"{folder}.lock").exists() and old and _is_ours(folder):
                remove(folder)
                found += 1
    return found


def end_stuck(folders: Collection[str]) -> int:
    """Kill what bubblewrap left of sandboxes over these folders; how many there were.

    Where the outer of its two processes is killed while it sets a sandbox up, the inner one waits for it for ever.
    """
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if Path(os.fsdecode(words[0])).name == "bwrap" and any(os.fsencode(one) in words for one in folders):
                os.kill(int(entry.name), signal.SIGKILL)
                found += 1
    return found


def _is_ours(folder: Path) -> bool:
    """Whether it may be touched: a folder of this user, or of one that root gave it to."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and os.getuid() in (0, found.st_uid)


def used(folders: Iterable[Path], *, most_files: int) -> tuple[int, int]:
    """Bytes on disk and number of entries below ``folders``; counting ends where there are too many."""
    size, n = 0, 0
    waiting = [str(folder) for folder in folders]
    while waiting and n <= most_files:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                n += 1
                if n > most_files:
                    break
                with suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    size += about.st_blocks * 512
                    if stat.S_ISDIR(about.st_mode):
                        waiting.append(entry.path)
    return size, n


def make_plain(folder: Path, *, owner: int | None = None) -> None:
    """Leave only folders and plain files of ours in what a job could write to.

    A link that it left would be followed by whoever takes its files: out of the sandbox.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            with suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode):
                    if owner is not None:
                        os.chown(entry.path, owner, os.getgid(), follow_symlinks=False)
                    make_plain(Path(entry.path), owner=owner)
                elif not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                    Path(entry.path).unlink()
                else:
                    if owner is not None:
                        os.chown(entry.path, owner, os.getgid(), follow_symlinks=False)
                    if about.st_mode & 0o7000:
                        Path(entry.path).chmod(about.st_mode & 0o777)
