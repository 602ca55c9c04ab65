"""A user for each job where there is no bubblewrap: one that nobody else runs as."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import SandboxError
from core.sandbox.scratch import make_plain

_FIRST, _COUNT = 200_000, 1000


@contextmanager
def own_user(folders: Sequence[Path]) -> Iterator[int]:
    """A free user id that owns ``folders`` as long as the block runs; needs root.

    Whatever still runs as it at the end is killed, and the folders are ours again, plain files only.

    Raises:
        SandboxError: none is free.
    """
    place = _locks()
    for uid in range(_FIRST, _FIRST + _COUNT):
        held = os.open(place / str(uid), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            continue
        try:
            # Its lock is free, so what still runs as it was left by a parent that is dead.
            end_all_of(uid)
            for folder in folders:
                _give(folder, uid)
            yield uid
            return
        finally:
            end_all_of(uid)
            for folder in folders:
                with suppress(OSError):
                    os.chown(folder, os.getuid(), os.getgid())
                make_plain(folder, owner=os.getuid())
            os.close(held)
    raise SandboxError(f"All {_COUNT} users that jobs run as are in use. Set local_slots lower.")


def _locks() -> Path:
    """A folder of root's for locks on user ids."""
    folder = Path("/run" if os.access("/run", os.W_OK) else tempfile.gettempdir()) / "quantcard-users"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise SandboxError(f"{folder} is not a folder of ours. Remove it.")
    return folder


def _give(folder: Path, uid: int) -> None:
    os.chown(folder, uid, uid, follow_symlinks=False)
    for root, names, files in os.walk(folder):
        for name in (*names, *files):
            os.chown(Path(root, name), uid, uid, follow_symlinks=False)


def end_all_of(uid: int, *, seconds: float = 5.0) -> None:
    """Kill every process of a user and wait until there is none."""
    until = time.monotonic() + seconds
    while found := _processes_of(uid):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _processes_of(uid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with suppress(OSError):
                    # A zombie has ended; its parent takes it.
                    if place.stat().st_uid == uid and not _is_zombie(place):
                        found.append(int(place.name))
    return found


def _is_zombie(place: Path) -> bool:
    return (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
