"""A file in the making beside the place where it will stand: kept over a kill, gone after an error."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.canonical import storage_error
from core.errors import StorageError
from jobs.checkpoint import open_locked


class PartFile:
    """``.NAME.part``, written place by place and renamed to NAME when it is whole.

    Raises:
        StorageError: the folder can't be written, or another process is making the same file.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.part")
        self.checkpoint = out.with_name(f".{out.name}.checkpoint")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_locked(self.path)
        except OSError as error:
            raise storage_error(out, error) from error
        if self._file < 0:
            raise StorageError(f"{out} is being recorded by another process. Wait for it, or give another --out.")

    def require(self, n_bytes: int) -> None:
        """Make it a file of at most ``n_bytes``; raise :class:`StorageError` unless the disk has room for it."""
        # What an earlier recording of another size left behind it is cut off.
        os.ftruncate(self._file, min(n_bytes, os.fstat(self._file).st_size))
        found = os.statvfs(self.path.parent)
        have = os.fstat(self._file).st_blocks * 512
        if found.f_bavail * found.f_frsize < n_bytes - have:
            raise StorageError(
                f"The disk is too full: {self.out} needs {n_bytes / 1e9:.3g} GB, "
                f"{found.f_bavail * found.f_frsize / 1e9:.3g} GB are free. Free some space and run it again."
            )

    def write(self, data: Any, offset: int) -> None:
        """Write bytes at a place; from any thread.

        Raises:
            StorageError: the disk is full.
        """
        view = memoryview(data).cast("B")
        try:
            while view:
                n = os.pwrite(self._file, view, offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            raise storage_error(self.out, error) from error

    def read(self, n: int, offset: int) -> bytes:
        """Up to ``n`` bytes at a place."""
        return os.pread(self._file, n, offset)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._file)

    def finish(self) -> None:
        """The file is whole: put it where it belongs.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self.sync()
            # From here on a kill costs the recording, but another process's file is never taken for ours.
            self.checkpoint.unlink(missing_ok=True)
            self.path.replace(self.out)
        except OSError as error:
            raise storage_error(self.out, error) from error
        self.close()

    def close(self) -> None:
        """Leave what there is for the next run; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Leave nothing behind; nothing to do once it is closed."""
        if self._file < 0:
            return
        for path in (self.path, self.checkpoint):
            with suppress(FileNotFoundError):
                path.unlink()
        self.close()
