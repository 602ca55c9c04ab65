"""Checksums of chunks that add up: rows may come in any order and from any thread, when they are in its cache."""

from __future__ import annotations

import threading
from typing import Any

import xxhash
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


def row_sums(rows: NDArray[Any], first: int) -> int:
    """Checksum of rows, shape (n, width), from row ``first`` on: xxh3 of each, seeded with its number, added up
    mod 2**64."""
    return sum(xxhash.xxh3_64_intdigest(row, seed=first + index) for index, row in enumerate(rows)) & _MASK


class ChunkSums:
    """The checksums of chunks whose rows come bit by bit."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}
        self._lock = threading.Lock()

    def add(self, chunk: int, rows: NDArray[Any], first: int) -> None:
        """Count rows of a chunk, shape (n, width), from row ``first`` on; from any thread."""
        found = row_sums(rows, first)
        with self._lock:
            self._sums[chunk] = (self._sums.get(chunk, 0) + found) & _MASK

    def take(self, chunk: int) -> int | None:
        """The checksum of a chunk whose rows have all come, which is then forgotten; None if none has."""
        return self._sums.pop(chunk, None)

    def take_all(self, chunks: range) -> list[int]:
        """The checksums of chunks whose rows have all come, which are then forgotten."""
        return [self._sums.pop(chunk) for chunk in chunks]
