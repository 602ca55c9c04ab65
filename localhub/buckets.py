"""Buckets: folders of plain files, so that a Job can have one mounted; uploads arrive as Xet's chunks.

A Job may put links into a bucket: nothing here follows one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .disk import Locks, now, random_id, read_json_cached, stamp, write_atomic, write_json
from .errors import BadRequest, Conflict, NotFound, RepoNotFound
from .names import check_path, check_repo_id
from .xet import Segment, parse_shard, unpacked_chunks

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_FILES = 1_000_000


@dataclass(frozen=True)
class BucketFile:
    """A file in a bucket; `id` stands for this content of it, and is another one once it was written to."""

    path: str
    size: int
    mtime_ns: int
    id: str

    def row(self) -> dict[str, Any]:
        """As the API tells it."""
        when = stamp(datetime.fromtimestamp(self.mtime_ns / 1e9, UTC))
        return {
            "type": "file", "path": self.path, "size": self.size, "xetHash": self.id, "mtime": when, "uploadedAt": when,
        }  # fmt: skip


@dataclass(frozen=True)
class Bucket:
    """One bucket: its name and its folder."""

    bucket_id: str
    path: Path

    @property
    def owner(self) -> str:
        """The user or organisation it belongs to."""
        return self.bucket_id.split("/")[0]

    @property
    def lock(self) -> str:
        """The name of its lock."""
        return f"buckets/{self.bucket_id}"

    @property
    def files(self) -> Path:
        """Where its files lie; what a Job sees."""
        return self.path / "files"

    def meta(self) -> dict[str, Any]:
        """Its settings: id, private, createdAt."""
        meta = read_json_cached(self.path / "bucket.json")
        if meta is None:
            raise RepoNotFound("Bucket not found")
        return dict(meta)

    def set_private(self, private: bool) -> None:
        """Who may see it."""
        write_json(self.path / "bucket.json", {**self.meta(), "private": private})

    def rows(self) -> Iterator[BucketFile]:
        """All files, by name; links and devices are passed over."""
        found = 0
        for folder, names, files in os.walk(self.files, followlinks=False):
            names.sort()
            prefix = Path(folder).relative_to(self.files).as_posix()
            for name in sorted(files):
                path = name if prefix == "." else f"{prefix}/{name}"
                with suppress(OSError):
                    about = os.lstat(Path(folder, name))
                    if stat.S_ISREG(about.st_mode):
                        found += 1
                        yield self._row(path, about)
            if found > _MAX_FILES:
                raise BadRequest("The bucket holds too many files")

    def row(self, path: str) -> BucketFile | None:
        """One file, or None where there is none."""
        try:
            with self.open(path) as file:
                return self._row(path, os.fstat(file.fileno()))
        except NotFound:
            return None

    def by_id(self, file_id: str) -> BucketFile | None:
        """The file with this content's id."""
        return next((row for row in self.rows() if row.id == file_id), None)

    def _row(self, path: str, about: os.stat_result) -> BucketFile:
        key = f"{self.bucket_id}\0{path}\0{about.st_ino}\0{about.st_mtime_ns}\0{about.st_size}"
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return BucketFile(path, about.st_size, about.st_mtime_ns, digest)

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """A file's bytes; 404 where there is none, or something else than a file."""
        parts = check_path(path).split("/")
        try:
            with self._folder(parts[:-1]) as folder:
                # O_NONBLOCK: a pipe that a Job left there must not hold us up.
                fd = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            raise NotFound(f"{path} is not in the bucket") from None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotFound(f"{path} is no file")
            yield file

    def put(self, path: str, source: Path, *, mtime_ms: int | None) -> None:
        """Move a finished file here, in place of what has its name."""
        parts = check_path(path).split("/")
        if mtime_ms is not None:
            os.utime(source, ns=(mtime_ms * 1_000_000, mtime_ms * 1_000_000))
        try:
            with self._folder(parts[:-1], make=True) as folder:
                os.rename(source, parts[-1], dst_dir_fd=folder)
        except OSError as error:
            raise Conflict(f"{path} can't be written: a part of it is no folder, or it is one") from error

    def delete(self, path: str) -> None:
        """Take a file away, and folders that are empty then (a bucket has no empty ones); harmless where it is gone."""
        parts = check_path(path).split("/")
        with suppress(OSError), self._folder(parts[:-1]) as folder:
            os.unlink(parts[-1], dir_fd=folder)
        for depth in range(len(parts) - 1, 0, -1):
            with suppress(OSError), self._folder(parts[: depth - 1]) as folder:
                os.rmdir(parts[depth - 1], dir_fd=folder)

    def folder_of(self, path: str | None) -> Path | None:
        """The folder below `path` as a Job has it mounted, or None where there is none."""
        parts = check_path(path.strip("/")).split("/") if path and path.strip("/") else []
        try:
            with self._folder(parts):
                return self.files.joinpath(*parts)
        except OSError:
            return None

    @contextmanager
    def _folder(self, parts: list[str], *, make: bool = False) -> Iterator[int]:
        """A folder's descriptor, reached without following a link."""
        fd = os.open(self.files, _FOLDER)
        try:
            for part in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                inner = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


class Buckets:
    """The `buckets/` folder, and what was uploaded for them (`xet/`)."""

    def __init__(self, root: Path, locks: Locks) -> None:
        self._root, self._locks = root, locks
        self._xorbs, self._recipes = root / "xet" / "xorbs", root / "xet" / "files"

    @property
    def name(self) -> str:
        """A name for what was uploaded here; another one once `xet/` was removed."""
        path = self._root / "xet" / "name"
        if not path.exists():
            with self._locks.hold("xet"):
                if not path.exists():
                    write_atomic(path, random_id().encode())
        return path.read_text()

    def _path(self, bucket_id: str) -> Path:
        owner, name = check_repo_id(bucket_id).split("/")
        return self._root / "buckets" / owner / name

    def get(self, bucket_id: str) -> Bucket:
        """The bucket; `RepoNotFound` if there is none."""
        path = self._path(bucket_id)
        if not (path / "bucket.json").exists():
            raise RepoNotFound("Bucket not found")
        return Bucket(bucket_id, path)

    def create(self, bucket_id: str, *, private: bool) -> Bucket:
        """Make one; `Conflict` if it exists."""
        path = self._path(bucket_id)
        bucket = Bucket(bucket_id, path)
        with self._locks.hold(bucket.lock):
            if (path / "bucket.json").exists():
                raise Conflict("You already created this bucket")
            bucket.files.mkdir(parents=True, exist_ok=True)
            write_json(path / "bucket.json", {"id": random_id(), "private": private, "createdAt": now()})
        return bucket

    def delete(self, bucket: Bucket) -> None:
        """Delete a bucket and all it holds."""
        trash = self._root / "tmp" / f"deleted-{uuid.uuid4().hex}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        with self._locks.hold(bucket.lock):
            try:
                bucket.path.rename(trash)
            except FileNotFoundError:
                raise RepoNotFound("Bucket not found") from None
        shutil.rmtree(trash, ignore_errors=True)

    def of(self, owner: str) -> Iterator[Bucket]:
        """The buckets of an owner, by name."""
        for meta in sorted((self._root / "buckets" / owner).glob("*/bucket.json")):
            yield Bucket(f"{owner}/{meta.parent.name}", meta.parent)

    # what comes in

    def has_xorb(self, name: str) -> bool:
        """Whether this xorb was uploaded."""
        return self._xorb(name).exists()

    def keep_xorb(self, name: str, source: Path) -> None:
        """Keep an uploaded xorb. Its name is taken for true: who uploads it can only harm files of their own."""
        target = self._xorb(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)

    def _xorb(self, name: str) -> Path:
        return self._xorbs / name[:2] / name

    def keep_shard(self, data: bytes) -> None:
        """Keep how files are made of xorbs; `BadRequest` where a xorb is missing."""
        for name, segments in parse_shard(data).items():
            for segment in segments:
                if not self.has_xorb(segment.xorb):
                    raise BadRequest(f"The xorb {segment.xorb} was not uploaded")
            rows = [[one.xorb, one.size, one.first, one.end] for one in segments]
            write_atomic(self._recipes / name[:2] / f"{name}.json", json.dumps(rows).encode())

    def assemble(self, name: str) -> Path:
        """Make an uploaded file of its chunks, in `tmp/`; `NotFound` where it was not uploaded."""
        try:
            rows = json.loads((self._recipes / name[:2] / f"{name}.json").read_bytes())
        except OSError:
            raise NotFound("This content was not uploaded") from None
        folder = self._root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"bucket-{uuid.uuid4().hex}"
        try:
            with path.open("xb") as file:
                for row in rows:
                    self._append(file, Segment(*row))
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.ENOENT:
                raise NotFound("This content is gone") from None
            raise
        return path

    def _append(self, file: IO[bytes], segment: Segment) -> None:
        before = file.tell()
        for chunk in unpacked_chunks(self._xorb(segment.xorb).read_bytes(), segment.first, segment.end):
            file.write(chunk)
        if file.tell() - before != segment.size:
            raise BadRequest("A shard says another size than its chunks have")
