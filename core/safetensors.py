"""Reads safetensors headers and their index from bytes of any origin; never trusts a length, an offset or a name.

Format: eight bytes of length (little-endian), a JSON object of that length, then the tensors' bytes. A model in
several files has a ``model.safetensors.index.json`` that says which tensor lies in which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from core.errors import InputError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
#: Bytes of a header, and of an index. Those of shards have some dozens of kB; the index of 94 layers with 128 experts
#: each has 4 MB.
MAX_HEADER: Final = 4 << 20
MAX_INDEX: Final = 8 << 20
#: Tensors in one file, and in all of a model.
MAX_TENSORS: Final = 20_000
MAX_INDEXED: Final = 100_000
#: Colons, commas and brackets that JSON has for one tensor: what each of them begins takes memory once it is parsed.
_MARKS_OF_TENSOR: Final = 16
_MARKS_OF_ENTRY: Final = 3
MAX_NAME: Final = 512
MAX_DIMS: Final = 8
#: A first range of this size holds most headers whole.
FIRST_RANGE: Final = 128 << 10

#: Bytes of an element. Types that pack several into a byte are left out, and so are tensors kept in them.
DTYPES: Final[dict[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FILE = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


class SafetensorsError(InputError):
    """The safetensors file is damaged, truncated, or not safetensors."""


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor: ``shape`` in PyTorch's order (row length last), ``offset`` in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def parse_header(data: bytes, *, size: int, name: str) -> dict[str, SafeTensor]:
    """The tensors of a file of ``size`` bytes that begins with ``data`` (its whole header at least).

    Tensors of types that are not known here are left out.

    Raises:
        SafetensorsError: its numbers can't be true, or it is not safetensors.
    """
    length = header_length(data, size=size, name=name)
    found = _object(data[8 : 8 + length], name, marks=_MARKS_OF_TENSOR * MAX_TENSORS)
    found.pop("__metadata__", None)
    _check_names(found, name, most=MAX_TENSORS)
    start, tensors = 8 + length, {}
    for key, entry in found.items():
        kind, shape, begin, end = _entry(entry, f"{name}: {key[:100]!r}")
        if not 0 <= begin <= end <= size - start:
            raise SafetensorsError(f"{name}: the tensor {key[:100]!r} lies outside of the file.")
        if kind in DTYPES:
            if prod(shape) * DTYPES[kind] != end - begin:
                raise SafetensorsError(f"{name}: the bytes of the tensor {key[:100]!r} do not fit its shape.")
            tensors[key] = SafeTensor(key, kind, shape, start + begin, end - begin)
    return tensors


def header_length(data: bytes, *, size: int, name: str) -> int:
    """Bytes of the JSON header of a file of ``size`` bytes, from its first eight.

    Raises:
        SafetensorsError: it can't be true.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length < 2 or length > MAX_HEADER or 8 + length > size:
        raise SafetensorsError(f"{name} is not a safetensors file, or is damaged: its header can't be {length} bytes.")
    return length


def read_header(read: Callable[[int, int], bytes], *, size: int, name: str) -> dict[str, SafeTensor]:
    """The tensors of a file of ``size`` bytes, read through ``read(offset, length)`` in one range or two.

    Raises:
        SafetensorsError: see :func:`parse_header`.
    """
    data = read(0, min(FIRST_RANGE, size))
    wanted = 8 + header_length(data, size=size, name=name)
    if len(data) < wanted:
        data += read(len(data), wanted - len(data))
    if len(data) < wanted:
        raise SafetensorsError(f"{name} ends inside its header.")
    return parse_header(data, size=size, name=name)


def parse_index(data: bytes, *, name: str) -> dict[str, str]:
    """The file of each tensor, by an index.

    Raises:
        SafetensorsError: it is no index, or names files that are none of its repo.
    """
    if len(data) > MAX_INDEX:
        raise SafetensorsError(f"{name} has {len(data)} bytes; that can't be an index of safetensors files.")
    found = _object(data, name, marks=_MARKS_OF_ENTRY * MAX_INDEXED).get("weight_map")
    if not isinstance(found, dict):
        raise SafetensorsError(f"{name} is no index of safetensors files.")
    _check_names(found, name, most=MAX_INDEXED)
    # Each file's name once, not once for each of its tensors.
    files = {str(file): str(file) for file in found.values()}
    for file in files:
        if not _FILE.fullmatch(file):
            raise SafetensorsError(f"{name} names {file[:100]!r}, which is no safetensors file beside it.")
    return {key: files[str(file)] for key, file in found.items()}


def _check_names(found: dict[str, Any], name: str, *, most: int) -> None:
    if len(found) > most or any(len(key) > MAX_NAME for key in found):
        raise SafetensorsError(f"{name} claims {len(found)} tensors, or one with a name that can't be true.")


def _object(data: bytes, name: str, *, marks: int) -> dict[str, Any]:
    """A JSON object with each key once; what would take far more memory than bytes is not parsed."""
    if sum(map(data.count, (b":", b",", b"{", b"["))) > marks:
        raise SafetensorsError(f"{name} holds more than {marks} values; that can't be true.")
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise SafetensorsError(f"{name} is damaged: its JSON can't be read.") from None
    if not isinstance(found, dict):
        raise SafetensorsError(f"{name} is no header of safetensors.")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _entry(entry: Any, what: str) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, begin and end of one tensor."""
    if not isinstance(entry, dict):
        raise SafetensorsError(f"{what} is no tensor.")
    kind, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(kind, str) or shape is None or offsets is None or len(offsets) != 2:
        raise SafetensorsError(f"{what} has a type, shape or place that can't be true.")
    return kind, shape, offsets[0], offsets[1]


def _counts(values: Any) -> tuple[int, ...] | None:
    """A short list of numbers that a size may have, or None."""
    if not isinstance(values, list) or len(values) > MAX_DIMS:
        return None
    return tuple(values) if all(type(value) is int and 0 <= value < 1 << 48 for value in values) else None
