"""The Hub's `gguf` facts of a repo, read from the header of one of its GGUF files."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from .gitobj import Tree
from .store import RepoStore

_SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_STRING = 4 * 1024 * 1024
_MAX_ITEMS = 4_000_000
_TOKENS = {"tokenizer.ggml.bos_token_id": "bos_token", "tokenizer.ggml.eos_token_id": "eos_token"}


class _Unreadable(ValueError):
    """Not a GGUF header, or one with absurd numbers in it."""


class _Reader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise _Unreadable("the header ends too early")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self) -> int:
        value = int(self.number("<Q"))
        if value > _MAX_ITEMS:
            raise _Unreadable("absurd count")
        return value

    def string(self) -> str:
        size = self.number("<Q")
        if size > _MAX_STRING:
            raise _Unreadable("absurd string length")
        return self.take(size).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value; arrays of strings are kept (the tokens), arrays of numbers are skipped."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise _Unreadable(f"unknown type {kind}")
        inner, length = self.number("<I"), self.count()
        if inner == _STRING:
            return [self.string() for _ in range(length)]
        if inner not in _SCALARS:
            raise _Unreadable("nested arrays are not read")
        self._file.seek(struct.calcsize(_SCALARS[inner]) * length, 1)
        return None


def _header(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    reader = _Reader(file)
    if reader.take(4) != b"GGUF" or reader.number("<I") not in (2, 3):
        raise _Unreadable("not a GGUF file")
    tensors, pairs = reader.count(), reader.count()
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.string()
        values[key] = reader.value(reader.number("<I"))
    total = 0
    for _ in range(tensors):
        reader.string()
        dims = reader.number("<I")
        if dims > 8:
            raise _Unreadable("absurd number of dimensions")
        total += math.prod(reader.number("<Q") for _ in range(dims))
        reader.take(12)  # type and offset
    return values, total


@lru_cache(maxsize=2048)
def of_file(path: Path) -> dict[str, Any] | None:
    """Parameters, architecture, context length, chat template, special tokens; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            values, total = _header(file)
    except (OSError, ValueError, struct.error, MemoryError, OverflowError):
        return None
    architecture = values.get("general.architecture")
    out: dict[str, Any] = {"total": total, "architecture": architecture}
    context = values.get(f"{architecture}.context_length")
    if isinstance(context, int):
        out["context_length"] = context
    if isinstance(values.get("tokenizer.chat_template"), str):
        out["chat_template"] = values["tokenizer.chat_template"]
    tokens = values.get("tokenizer.ggml.tokens") or []
    for key, name in _TOKENS.items():
        index = values.get(key)
        if isinstance(index, int) and 0 <= index < len(tokens):
            out[name] = tokens[index]
    return out


def of_repo(store: RepoStore, tree: Tree) -> dict[str, Any] | None:
    """The facts of a repo's first readable GGUF file (of the model itself, not of a projector)."""
    names = sorted(path for path in tree if path.endswith(".gguf"))
    names.sort(key=lambda path: "mmproj" in path.lower() or "imatrix" in path.lower())
    for path in names[:3]:
        found = of_file(store.content_path(tree[path]))
        if found is not None:
            return found
    return None
