"""Reads GGUF headers from bytes of any origin: never trusts a length, skips arrays, says when it needs more.

Format: the GGUF specification in ggml's ``docs/gguf.md`` (versions 2 and 3, little-endian). Only the header is
read (key-values and tensor infos), so a first range of a remote file is enough: see :func:`read_header`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from core.errors import GGUFError

MAGIC: Final = b"GGUF"
#: A first range of this size holds most headers whole; it is doubled until it does.
FIRST_RANGE: Final = 2 << 20
#: No honest header is larger: 64 MiB (a vocabulary of 262 k tokens with its merges takes some 15).
MAX_HEADER: Final = 64 << 20
MAX_KV: Final = 65_536
MAX_TENSORS: Final = 200_000
MAX_ARRAY: Final = 50_000_000
#: ggml's own limit.
MAX_DIMS: Final = 4
#: Elements of all tensors of a file, so that no lying header makes a number that 64 bits can't hold.
MAX_ELEMENTS: Final = 1 << 46
#: Arrays up to this many elements are kept (tags, languages, datasets); longer ones are skipped.
KEEP_ARRAY: Final = 64

_SCALARS: Final[dict[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9


class NeedMoreBytes(Exception):
    """The header goes on beyond the bytes given; ``at_least`` is how many are certainly needed."""

    def __init__(self, at_least: int) -> None:
        super().__init__(at_least)
        self.at_least = at_least


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array that was walked over, not kept: its element type id and length."""

    element_type: int
    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor info. ``shape`` is in ggml's order: the row length comes first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of elements (the product of the shape)."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """A whole header: key-values, tensor infos, and where the tensor data starts (bytes)."""

    version: int
    kv: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_start: int
    unknown_types: tuple[int, ...] = field(default=())

    @property
    def data_end(self) -> int:
        """Bytes the file must have for every tensor to be whole; 0 without tensors (a first shard may have none)."""
        return max((self.data_start + t.offset + t.n_bytes for t in self.tensors), default=0)

    @property
    def architecture(self) -> str | None:
        """``general.architecture``, e.g. ``llama``."""
        value = self.kv.get("general.architecture")
        return value if isinstance(value, str) else None


class _Cursor:
    """Walks over the bytes at hand; every step is checked against their end."""

    def __init__(self, data: bytes | memoryview, *, whole: bool, name: str) -> None:
        self.data, self.whole, self.name, self.at = data, whole, name, 0

    def take(self, n: int) -> int:
        start = self.at
        if n > MAX_HEADER or start + n > MAX_HEADER:
            raise GGUFError(f"{self.name}: its header claims more than {MAX_HEADER >> 20} MiB; that is not a GGUF.")
        if start + n > len(self.data):
            if self.whole:
                raise GGUFError(
                    f"{self.name} is truncated: it ends inside its header at byte {len(self.data)}. Fetch it again."
                )
            raise NeedMoreBytes(start + n)
        self.at = start + n
        return start

    def scalar(self, fmt: str) -> Any:
        start = self.take(struct.calcsize(fmt))
        return struct.unpack_from(fmt, self.data, start)[0]

    def raw_string(self) -> bytes:
        length = self.scalar("<Q")
        start = self.take(length)
        return bytes(self.data[start : start + length])

    def string(self) -> str:
        return self.raw_string().decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(depth=0)
        if kind not in _SCALARS:
            raise GGUFError(f"{self.name}: unknown metadata type {kind}; the file is damaged or not GGUF.")
        return self.scalar(_SCALARS[kind])

    def array(self, *, depth: int) -> Any:
        kind, length = self.scalar("<I"), self.scalar("<Q")
        if length > MAX_ARRAY or depth > 3:
            raise GGUFError(f"{self.name}: an array of {length} elements, {depth} deep, is not a real header.")
        # Arrays in arrays are never kept: nobody needs them, and lists of lists would multiply a hostile header.
        keep = length <= KEEP_ARRAY and depth == 0
        if kind in _SCALARS:
            size = struct.calcsize(_SCALARS[kind])
            start = self.take(size * length)
            if not keep:
                return SkippedArray(kind, length)
            return [struct.unpack_from(_SCALARS[kind], self.data, start + i * size)[0] for i in range(length)]
        if kind == _STRING:
            if keep:
                return [self.string() for _ in range(length)]
            self._skip_strings(length)
            return SkippedArray(kind, length)
        if kind == _ARRAY:
            for _ in range(length):
                self.array(depth=depth + 1)
            return SkippedArray(kind, length)
        raise GGUFError(f"{self.name}: unknown array type {kind}; the file is damaged or not GGUF.")

    def _skip_strings(self, count: int) -> None:
        # Each takes eight bytes at the least: known before the first is read.
        self.take(8 * count)
        self.at -= 8 * count
        # Vocabularies: hundreds of thousands of strings, so this loop stays tight.
        unpack, data, at, end = struct.Struct("<Q").unpack_from, self.data, self.at, len(self.data)
        for _ in range(count):
            if at + 8 > end:
                self.at = at
                self.take(8)
            at += 8 + unpack(data, at)[0]
            if at > end:
                self.at = end
                self.take(at - end)
        self.at = at


def parse_header(data: bytes | memoryview, *, whole: bool, name: str = "the file") -> GGUFHeader:
    """Parse a GGUF header from the first bytes of a file.

    Args:
        data: the file's first bytes.
        whole: whether ``data`` is the file to its end, so that running out means truncation.
        name: what to call the file in errors.

    Raises:
        NeedMoreBytes: the header goes on beyond ``data`` (never when ``whole``).
        GGUFError: not GGUF, truncated, or its numbers can't be true.
    """
    cursor = _Cursor(data, whole=whole, name=name)
    magic = bytes(data[:4])
    if magic != MAGIC[: len(magic)] or (whole and not magic):
        raise GGUFError(f"{name} is not a GGUF file (it does not begin with 'GGUF'). Give a .gguf file.")
    cursor.take(4)
    version = cursor.scalar("<I")
    if version not in (2, 3):
        what = "big-endian" if version in (0x02000000, 0x03000000) else f"version {version}"
        raise GGUFError(f"{name} is a {what} GGUF; versions 2 and 3, little-endian, can be read. Convert it again.")
    n_tensors, n_kv = cursor.scalar("<Q"), cursor.scalar("<Q")
    if n_tensors > MAX_TENSORS or n_kv > MAX_KV:
        raise GGUFError(f"{name}: {n_tensors} tensors and {n_kv} keys can't be true; the file is damaged.")
    kv: dict[str, Any] = {}
    for _ in range(n_kv):
        key = cursor.string()
        if key in kv:
            raise GGUFError(f"{name}: the key {key!r} stands in its header twice; llama.cpp refuses such a file.")
        kv[key] = cursor.value(cursor.scalar("<I"))
    infos = []
    names: set[str] = set()
    for _ in range(n_tensors):
        tensor_name = cursor.string()
        n_dims = cursor.scalar("<I")
        if n_dims > MAX_DIMS:
            raise GGUFError(f"{name}: tensor {tensor_name!r} has {n_dims} dimensions; the file is damaged.")
        if tensor_name in names:
            raise GGUFError(
                f"{name}: tensor {tensor_name!r} stands in its header twice; llama.cpp refuses such a file."
            )
        names.add(tensor_name)
        shape = tuple(cursor.scalar("<Q") for _ in range(n_dims))
        infos.append((tensor_name, shape, cursor.scalar("<I"), cursor.scalar("<Q")))
    alignment = kv.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise GGUFError(f"{name}: an alignment of {alignment!r} can't be true; the file is damaged.")
    data_start = -(-cursor.at // alignment) * alignment
    tensors, unknown = _sized(infos, name)
    return GGUFHeader(version, kv, tensors, data_start, unknown)


def _sized(infos: list[tuple[str, tuple[int, ...], int, int]], name: str) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Tensors with their sizes in bytes; a type that this gguf does not know is sized by its neighbour's offset."""
    offsets = sorted({offset for *_, offset in infos})
    following: dict[int, int | None] = dict.fromkeys(offsets) | dict(pairwise(offsets))
    tensors, unknown, total = [], set(), 0
    for tensor_name, shape, type_id, offset in infos:
        elements = 1
        for size in shape:
            elements *= size
        total += elements
        if total > MAX_ELEMENTS or offset > 1 << 50:
            raise GGUFError(
                f"{name}: tensor {tensor_name!r} can't be {elements} elements at {offset}; the file is damaged."
            )
        try:
            kind = GGMLQuantizationType(type_id)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            unknown.add(type_id)
            end = following[offset]
            type_name, n_bytes = f"TYPE_{type_id}", end - offset if end is not None else 0
        else:
            if (shape[0] if shape else 1) % block:
                raise GGUFError(
                    f"{name}: rows of tensor {tensor_name!r} are no multiple of {block}, as {kind.name} needs."
                )
            type_name, n_bytes = kind.name, elements // block * block_bytes
        tensors.append(Tensor(tensor_name, shape, type_name, offset, n_bytes))
    return tuple(tensors), tuple(sorted(unknown))


def read_header(read: Callable[[int, int], bytes], *, size: int, name: str) -> GGUFHeader:
    """The header of a file of ``size`` bytes read through ``read(offset, length)``, in as few ranges as it takes.

    Raises:
        GGUFError: not GGUF, damaged, or too short for the tensors it promises.
    """
    have = b""
    want = min(FIRST_RANGE, size)
    while True:
        piece = read(len(have), want - len(have)) if want > len(have) else b""
        have += piece
        if len(have) < want:
            raise GGUFError(f"{name} ends at byte {len(have)}, but {size} were promised. Fetch it again.")
        try:
            header = parse_header(have, whole=want >= size, name=name)
        except NeedMoreBytes as more:
            if more.at_least > size:
                raise GGUFError(
                    f"{name} is truncated: it ends at byte {size}, inside its header. Fetch it again."
                ) from None
            want = min(size, max(more.at_least, 2 * want))
            continue
        check_whole(header, size=size, name=name)
        return header


def check_whole(header: GGUFHeader, *, size: int, name: str) -> None:
    """Raise :class:`GGUFError` when the file ends before the tensors that its header promises."""
    if header.data_end > size:
        raise GGUFError(
            f"{name} is truncated: its header promises {header.data_end} bytes, the file has {size}. Fetch it again."
        )


def read_file_header(path: Path) -> GGUFHeader:
    """The header of a local GGUF file.

    Raises:
        GGUFError: the file is missing, can't be read, is truncated or not GGUF.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            return read_header(read, size=size, name=path.name)
    except FileNotFoundError:
        raise GGUFError(f"{path} does not exist. Check the path.") from None
    except OSError as error:
        raise GGUFError(f"{path} can't be read ({error.strerror}).") from None
