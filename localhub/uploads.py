"""How files come in: which go to LFS, and a streamed upload whose hash is checked before it is kept."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import uuid
from pathlib import Path
from typing import Literal

from .disk import sync_dir
from .errors import BadRequest, TooLarge
from .store import RepoStore

MAX_REGULAR = 10 * 1024 * 1024

_LFS_SUFFIXES = (
    ".gguf", ".parquet", ".safetensors", ".bin", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".pt", ".pth",
    ".onnx", ".npz", ".npy", ".pkl", ".zip", ".gz", ".xz", ".zst", ".tar", ".arrow", ".h5", ".pdf",
    ".kld", ".imatrix",
)  # fmt: skip
_ALWAYS_REGULAR = ("README.md", ".gitattributes", ".gitignore")


def lfs_patterns(gitattributes: str) -> tuple[str, ...]:
    """The patterns that `.gitattributes` sends to LFS."""
    rows = (line.split() for line in gitattributes.splitlines() if not line.lstrip().startswith("#"))
    return tuple(row[0] for row in rows if len(row) > 1 and "filter=lfs" in row[1:])


def upload_mode(path: str, *, size: int, sample: bytes, patterns: tuple[str, ...]) -> Literal["lfs", "regular"]:
    """LFS by name, by `.gitattributes`, above 10 MB, or if the first bytes are not text."""
    name = path.rsplit("/", 1)[-1]
    if path in _ALWAYS_REGULAR or size == 0:
        return "regular"
    if size > MAX_REGULAR or name.lower().endswith(_LFS_SUFFIXES) or _is_binary(sample):
        return "lfs"
    for pattern in patterns:
        # as in git: without a slash it is about the name, with one about the path
        target = path if "/" in pattern.strip("/") else name
        if fnmatch.fnmatchcase(target, pattern.lstrip("/").replace("**/", "*")):
            return "lfs"
    return "regular"


def _is_binary(sample: bytes) -> bool:
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        # a sample may end in the middle of a character
        return error.start < len(sample) - 3
    return False


class Incoming:
    """An upload on its way to disk. `write` and `finish` block: call them from a thread."""

    def __init__(self, folder: Path, *, sha256: str, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"upload-{uuid.uuid4().hex}"
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self._want = (sha256, size)
        self._got = 0

    def write(self, data: bytes) -> None:
        """Keep a piece; too many bytes are refused at once."""
        self._got += len(data)
        if self._got > self._want[1]:
            raise TooLarge("More bytes than were announced")
        self._hash.update(data)
        self._file.write(data)

    def finish(self, store: RepoStore) -> None:
        """Check size and hash, then move it to its place."""
        sha256, size = self._want
        if self._got != size or self._hash.hexdigest() != sha256:
            raise BadRequest(f"The content does not match its oid {sha256} and size {size}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        target = store.lfs_path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)
        sync_dir(target.parent)

    def discard(self) -> None:
        """Clean up; harmless after `finish`."""
        self._file.close()
        self._path.unlink(missing_ok=True)
