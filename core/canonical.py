"""Canonical JSON, hashes of it, and atomic writes: what fingerprints and files are made with."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import StorageError

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENOTDIR}
)


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys, no spaces, UTF-8: the same text for the same value, always."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of ``value``."""
    # A lone surrogate (an undecodable byte in a name) has no UTF-8, but must not stop anything either.
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path, *, block: int = 1 << 20) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(block):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` whole and synced, or not at all.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise storage_error(path, error) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def _clear_abandoned(path: Path) -> None:
    """Remove what a killed process left of its attempt to write ``path``: parts that nobody holds a lock on."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` whole or not at all (see :func:`atomic_file`)."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to raise for an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"The disk is full: {path} could not be written. Free some space and run it again.")
    return StorageError(f"{path} could not be written ({error.strerror}). Check the folder and its permissions.")
