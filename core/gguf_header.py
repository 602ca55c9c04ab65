"""Reads GGUF headers from bytes of any origin: never trusts a length, skips arrays, says when it needs more.

Only the header is read (key-values and tensor infos), so the first bytes of a remote file are enough: see
:func:`read_ranges`. How the bytes are walked over: :mod:`core.gguf_walk`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from core.errors import GGUFError
from core.gguf_walk import MAX_HEADER, NeedMoreBytes, SkippedArray, SkippedString, Walker

__all__ = [
    "GGUFHeader", "NeedMoreBytes", "Reading", "SkippedArray", "SkippedString", "Tensor", "check_whole", "parse_header",
    "read_file", "read_file_header", "read_header", "read_ranges",
]  # fmt: skip

_MIB: Final = 1 << 20
#: Where the first three ranges of a file end (bytes), from the least to the most; in between a guess decides. The
#: first holds most headers whole, the second one of 150 k tokens with merges, and three stay below 16 MB.
FIRST_RANGES: Final = ((2 * _MIB, 2 * _MIB), (4 * _MIB, 10 * _MIB), (25 * _MIB // 2, 15 * _MIB))
#: Later ones go as much further as the guess says, within these bounds.
LATER_RANGE: Final = (8 * _MIB, 16 * _MIB)
#: Elements of all tensors of a file, so that no lying header makes a number that 64 bits can't hold.
MAX_ELEMENTS: Final = 1 << 46
#: Kinds of tensors that our gguf does not know; other programs add a few dozen.
MAX_UNKNOWN_TYPES: Final = 64


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


@dataclass(frozen=True, slots=True)
class Reading:
    """A header with what it took to read it: how many ranges, and how many bytes in all."""

    header: GGUFHeader
    ranges: int
    bytes_read: int


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
    walker = Walker(name)
    if not walker.feed(bytes(data)):
        if whole:
            raise _truncated(name, len(data))
        raise NeedMoreBytes(walker.needed)
    return _header(walker)


def _truncated(name: str, size: int) -> GGUFError:
    if not size:
        return GGUFError(f"{name} is empty; that is no GGUF file. Fetch it again.")
    return GGUFError(f"{name} is truncated: it ends inside its header at byte {size}. Fetch it again.")


def _header(walker: Walker) -> GGUFHeader:
    """What a walker found, once it is whole."""
    alignment = walker.kv.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise GGUFError(f"{walker.name}: an alignment of {str(alignment)[:40]} can't be true; the file is damaged.")
    data_start = -(-walker.position // alignment) * alignment
    tensors, unknown = _sized(walker.infos, walker.name)
    return GGUFHeader(walker.version, walker.kv, tensors, data_start, unknown)


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
                f"{name}: tensor {tensor_name[:80]!r} can't be {elements} elements at {offset}; the file is damaged."
            )
        try:
            kind = GGMLQuantizationType(type_id)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            unknown.add(type_id)
            if len(unknown) > MAX_UNKNOWN_TYPES:
                raise GGUFError(
                    f"{name}: {len(unknown)} unknown tensor types can't be true; the file is damaged."
                ) from None
            end = following[offset]
            type_name, n_bytes = f"TYPE_{type_id}", end - offset if end is not None else 0
        else:
            if (shape[0] if shape else 1) % block:
                raise GGUFError(
                    f"{name}: rows of tensor {tensor_name[:80]!r} are no multiple of {block}, as {kind.name} needs."
                )
            type_name, n_bytes = kind.name, elements // block * block_bytes
        tensors.append(Tensor(tensor_name, shape, type_name, offset, n_bytes))
    return tuple(tensors), tuple(sorted(unknown))


def read_ranges(read: Callable[[int, int], bytes], *, size: int, name: str) -> Reading:
    """The header of a file of ``size`` bytes read through ``read(offset, length)``, in as few ranges as it takes.

    Each range follows the one before, and none is kept once it was walked over. A header of up to 12.5 MiB takes at
    most three ranges of 15 MiB in all, whatever it claims.

    Raises:
        GGUFError: not GGUF, damaged, or too short for the tensors it promises.
    """
    walker = Walker(name)
    have = ranges = 0
    while True:
        want = _next_end(walker, have, ranges, size)
        piece = read(have, want - have) if want > have else b""
        have, ranges = have + len(piece), ranges + 1
        if have < want:
            raise GGUFError(f"{name} ends at byte {have}, but {size} were promised. Fetch it again.")
        if walker.feed(piece):
            break
        del piece
        if have >= size or walker.needed > size:
            raise _truncated(name, size)
    header = _header(walker)
    check_whole(header, size=size, name=name)
    return Reading(header, ranges, have)


def _next_end(walker: Walker, have: int, ranges: int, size: int) -> int:
    """Where the next range ends: a guess from what was walked over, within bounds that no lie moves."""
    if ranges < len(FIRST_RANGES):
        least, most = FIRST_RANGES[ranges]
    else:
        least, most = (have + step for step in LATER_RANGE)
    return min(size, MAX_HEADER, max(least, min(most, walker.likely_end)))


def read_header(read: Callable[[int, int], bytes], *, size: int, name: str) -> GGUFHeader:
    """As :func:`read_ranges`, the header alone."""
    return read_ranges(read, size=size, name=name).header


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
    return read_file(path).header


def read_file(path: Path) -> Reading:
    """As :func:`read_file_header`, with what it took."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            return read_ranges(read, size=size, name=path.name)
    except FileNotFoundError:
        raise GGUFError(f"{path} does not exist. Check the path.") from None
    except OSError as error:
        raise GGUFError(f"{path} can't be read ({error.strerror}).") from None
