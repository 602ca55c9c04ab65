"""What a proof reads of both repos over ranges: a few headers and pieces of tensors, within a budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bot.hub.door import HubDoor
from bot.store.repos import Variant
from core import safetensors
from core.gguf_files import RepoFile
from core.gguf_header import GGUFHeader, NeedMoreBytes, Tensor, check_whole, parse_header
from core.gguf_header import read_header as read_gguf_header
from core.safetensors import SafeTensor
from core.tensor_proof import Plan

_MAX_CONFIG: Final = 1 << 20
#: Files of a GGUF in shards; all their headers are read.
_MAX_SHARDS: Final = 64
#: Tensors of a GGUF; the largest models have some 1,200.
_MAX_TENSORS: Final = 4096
#: A first range of a later shard, which has no vocabulary; more is read twice as far each time.
_SHARD_RANGE: Final = 64 << 10


class UnprovableError(Exception):
    """No verdict but 'unprovable'; the message is the reason, a sentence."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one turn of a proof may take: requests, and bytes of both repos in all."""

    requests: int = 160
    n_bytes: int = 32 << 20


class Reader:
    """Ranged reads that are counted; what comes short, or goes over a limit, ends the proof."""

    def __init__(self, hub: HubDoor, limits: Limits) -> None:
        self._hub, self.limits = hub, limits
        self.requests = self.n_bytes = 0

    @property
    def left(self) -> tuple[int, int]:
        """(requests, bytes) that may still be asked for."""
        return self.limits.requests - self.requests, self.limits.n_bytes - self.n_bytes

    def count(self, n_bytes: int = 0) -> None:
        """Count a request."""
        self.requests += 1
        self.n_bytes += n_bytes
        if self.requests > self.limits.requests or self.n_bytes > self.limits.n_bytes:
            limits = f"{self.limits.requests} requests or {self.limits.n_bytes >> 20} MiB"
            raise UnprovableError(f"It would take more than {limits} to read the headers alone.")

    def range(self, repo_id: str, path: str, revision: str, offset: int, length: int) -> bytes:
        """Bytes of a file, all of them."""
        self.count(length)
        data = self._hub.read_range(repo_id, path, revision=revision, offset=offset, length=length)
        if len(data) != length:
            raise UnprovableError(f"{path} of {repo_id} is shorter than the Hub says.")
        return data

    def of(self, repo_id: str, file: RepoFile, revision: str) -> Callable[[int, int], bytes]:
        """``read(offset, length)`` of a file."""
        return lambda offset, length: self.range(repo_id, file.path, revision, offset, length)

    def whole(self, repo_id: str, file: RepoFile, revision: str, *, limit: int) -> bytes:
        """A small file."""
        if file.size > limit:
            raise UnprovableError(f"{file.path} of {repo_id} is larger than {limit >> 20} MiB.")
        return self.range(repo_id, file.path, revision, 0, file.size)


@dataclass(frozen=True, slots=True)
class Placed:
    """A GGUF's tensor and where it is: the file, and where that file's tensor data starts."""

    file: RepoFile
    data_start: int
    tensor: Tensor


class Gguf:
    """A GGUF's key-values and all its tensors, by name in the order of its files."""

    def __init__(self, reader: Reader, reference: Variant) -> None:
        """Read the headers of all its files."""
        if len(reference.files) > _MAX_SHARDS:
            raise UnprovableError(f"It has more than {_MAX_SHARDS} files.")
        self.kv: dict[str, Any] = {}
        self.architecture = ""
        self.tensors: dict[str, Placed] = {}
        for i, file in enumerate(reference.files):
            read = reader.of(reference.repo_id, file, reference.revision)
            if i == 0:
                header = read_gguf_header(read, size=file.size, name=file.path)
                self.kv, self.architecture = header.kv, header.architecture or ""
            else:
                header = _shard_header(read, file)
            for tensor in sorted(header.tensors, key=lambda one: one.offset):
                if tensor.name in self.tensors:
                    raise UnprovableError(f"{tensor.name} stands in two of its files.")
                self.tensors[tensor.name] = Placed(file, header.data_start, tensor)
            if len(self.tensors) > _MAX_TENSORS:
                raise UnprovableError(f"It has more than {_MAX_TENSORS} tensors.")

    @property
    def n_blocks(self) -> int:
        """Its blocks, as its header says; 0 where that is no number."""
        count = self.kv.get(f"{self.architecture}.block_count")
        return count if type(count) is int else 0


def _shard_header(read: Callable[[int, int], bytes], file: RepoFile) -> GGUFHeader:
    """The header of a shard that has no vocabulary, in a few kB."""
    data = b""
    end = min(_SHARD_RANGE, file.size)
    while True:
        data += read(len(data), end - len(data))
        try:
            header = parse_header(data, whole=end == file.size, name=file.path)
        except NeedMoreBytes:
            end = min(2 * end, file.size)
            continue
        check_whole(header, size=file.size, name=file.path)
        return header


class Base:
    """A base model's files as of one commit: its config, the file of each tensor, and where one lies in it."""

    def __init__(self, reader: Reader, repo_id: str, sha: str, files: Mapping[str, RepoFile]) -> None:
        """Read its config and its index; headers are read as they are needed."""
        self._reader, self.repo_id, self.sha, self._files = reader, repo_id, sha, files
        self._headers: dict[str, dict[str, SafeTensor]] = {}
        self._hash = hashlib.sha256()
        self.config = self._config()
        self.file_of: Mapping[str, str]
        if safetensors.INDEX in files:
            data = reader.whole(repo_id, files[safetensors.INDEX], sha, limit=safetensors.MAX_INDEX)
            self.file_of = safetensors.parse_index(data, name=safetensors.INDEX)
            self._hash.update(data)
        elif safetensors.SINGLE in files:
            self.file_of = dict.fromkeys(self._header(safetensors.SINGLE), safetensors.SINGLE)
        else:
            raise UnprovableError(f"{repo_id} has no safetensors to compare with.")
        for path in sorted(set(self.file_of.values())):
            file = files.get(path)
            # A file whose checksum is not told is another one in each commit.
            self._hash.update(f"{path} {(file and file.sha256) or sha}\n".encode())

    @property
    def fingerprint(self) -> str:
        """The same as long as its config, its index and the files with its weights are."""
        return self._hash.hexdigest()

    def _config(self) -> dict[str, Any]:
        found: Any = None
        if (file := self._files.get("config.json")) is not None:
            data = self._reader.whole(self.repo_id, file, self.sha, limit=_MAX_CONFIG)
            self._hash.update(data)
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                found = None
        if not isinstance(found, dict) or not found:
            raise UnprovableError(f"{self.repo_id} has no config.json that can be read.")
        if found.get("quantization_config"):
            raise UnprovableError(f"{self.repo_id} is stored quantized itself.")
        return found

    def knows(self, name: str) -> bool:
        """Whether the header that a tensor stands in was read already."""
        return self.file_of[name] in self._headers

    def tensor(self, name: str) -> SafeTensor | None:
        """A tensor, by its file's header; None where that does not have it, or keeps it in a type not known here."""
        return self._header(self.file_of[name]).get(name)

    def _header(self, path: str) -> dict[str, SafeTensor]:
        if path not in self._headers:
            if path not in self._files:
                raise UnprovableError(f"{self.repo_id} has no {path}, which its index names.")
            file = self._files[path]
            read = self._reader.of(self.repo_id, file, self.sha)
            self._headers[path] = safetensors.read_header(read, size=file.size, name=path)
        return self._headers[path]


class Pieces:
    """Reads a plan's ranges, each once and only when something of it is wanted.

    Args:
        sources: by the plan's name of a file, its repo, path and revision.
    """

    def __init__(self, reader: Reader, plan: Plan, sources: Mapping[str, tuple[str, str, str]]) -> None:
        self._reader, self._plan, self._sources = reader, plan, sources
        self._read: dict[tuple[str, int], bytes] = {}

    def get(self, file: str, start: int, end: int) -> memoryview:
        """Bytes of a file from ``start`` up to ``end``, which the plan holds."""
        begin, stop = next(one for one in self._plan.requests_of(file) if one[0] <= start and end <= one[1])
        if (file, begin) not in self._read:
            self._read[file, begin] = self._reader.range(*self._sources[file], begin, stop - begin)
        return memoryview(self._read[file, begin])[start - begin : end - begin]
