"""HTTP byte ranges: which part of a file is asked for. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `end`, `end` excluded."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.end - self.start


def parse(header: str | None, size: int) -> Part | None:
    """The part, or None for the whole file (also where a header cannot be read or asks for several parts)."""
    match = _RANGE.fullmatch(header.strip().replace(" ", "")) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise RangeNotSatisfiable(size)
        return Part(size - length, size)
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return Part(start, end)
