"""What a long run has finished, on disk: after a kill -9 it goes on from there and ends in the same figures.

A checkpoint is a file of records, each with its length and checksum, after a line that says what run it is of. A
record cut short by the kill is dropped with what follows it; a checkpoint of another run is not used.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import xxhash

from core.canonical import fingerprint, storage_error

_MAGIC = b"quantcard-checkpoint-1\n"
_HEAD = struct.Struct("<IQ")
#: Seconds between syncs to the disk: what lies in the system's cache survives the death of the process.
SYNC_INTERVAL = 2.0


def open_locked(path: Path) -> int:
    """A file opened (made where it is not there) that no other process has so; -1 where another one has.

    Raises:
        OSError: it can't be opened.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return -1
        # Between our opening and locking it, its owner may have renamed or removed it.
        with suppress(OSError):
            if path.stat().st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)


class Checkpoint:
    """Records of one run, kept at ``path`` until :meth:`remove`; ``path`` None keeps nothing, and neither does one
    that another process is using.

    Args:
        identity: everything that decides the run's figures.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """

    def __init__(self, path: Path | None, identity: object) -> None:
        self.path = path
        #: what an earlier run of the same identity finished
        self.records: list[bytes] = []
        self._file = -1
        self._synced = time.monotonic()
        if path is None:
            return
        self._header = _MAGIC + fingerprint(identity).encode() + b"\n"
        self._end = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_locked(path)
            if self._file >= 0:
                self._load()
        except OSError as error:
            self.close()
            raise storage_error(path, error) from error

    def _load(self) -> None:
        assert self.path is not None
        data = self.path.read_bytes()
        end = len(self._header)
        if data[:end] != self._header:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, self._header, 0)
            self._end = end
            return
        while len(data) - end >= _HEAD.size:
            length, digest = _HEAD.unpack_from(data, end)
            record = data[end + _HEAD.size : end + _HEAD.size + length]
            if len(record) < length or xxhash.xxh3_64_intdigest(record, seed=end) != digest:
                break
            self.records.append(record)
            end += _HEAD.size + length
        os.ftruncate(self._file, end)
        self._end = end

    def keep_only(self, n: int) -> None:
        """Drop all but the first ``n`` records: what follows turned out not to be whole."""
        if self._file < 0 or n >= len(self.records):
            return
        del self.records[n:]
        self._end = len(self._header) + sum(_HEAD.size + len(record) for record in self.records)
        os.ftruncate(self._file, self._end)

    def append(self, record: bytes, *, before_sync: Callable[[], None] | None = None) -> None:
        """Keep a record; every :data:`SYNC_INTERVAL` seconds all so far is synced to the disk.

        Args:
            before_sync: called before, to sync what the record speaks of.

        Raises:
            StorageError: the disk is full.
        """
        if self._file < 0:
            return
        assert self.path is not None
        data = _HEAD.pack(len(record), xxhash.xxh3_64_intdigest(record, seed=self._end)) + record
        try:
            written = os.pwrite(self._file, data, self._end)
            if written != len(data):
                # A disk that fills up takes a part; the next attempt says why.
                os.pwrite(self._file, data[written:], self._end + written)
            self._end += len(data)
            if time.monotonic() - self._synced >= SYNC_INTERVAL:
                if before_sync:
                    before_sync()
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            raise storage_error(self.path, error) from error

    def close(self) -> None:
        """Close the file and leave it for the next run, if it holds anything; safe to call twice."""
        if self._file >= 0:
            if self._end <= len(self._header):
                self._unlink()
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """The run has ended: nothing is left to go on from."""
        if self._file >= 0:
            self._unlink()
            os.close(self._file)
            self._file = -1

    def _unlink(self) -> None:
        if self.path is not None:
            with suppress(FileNotFoundError):
                self.path.unlink()
