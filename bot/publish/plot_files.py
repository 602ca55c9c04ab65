"""The plots' files beside a card: where they lie, and which of such files are ours. Pure.

A plot of ours says so in a text chunk, so that a file of that name that an owner made is never written over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SIZE_PLOT = "quantcard/size-kld.png"
SPEED_PLOT = "quantcard/speed-kld.png"
PLOT_FILES = (SIZE_PLOT, SPEED_PLOT)
#: Bytes that a plot has at most.
PLOT_LIMIT = 100_000
#: The text chunk (keyword, text) that every plot of ours has.
MARK = "quantcard", "plot v=1"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 16


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot in a section: the file's path in the repo, and in plain words what it shows (not escaped yet)."""

    path: str
    alt: str


def is_our_plot(data: bytes) -> bool:
    """Whether these bytes are a PNG with our mark ahead of its picture."""
    if not data.startswith(_SIGNATURE):
        return False
    at, mark = len(_SIGNATURE), "\0".join(MARK).encode()
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return False
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"tEXt" and data[at + 8 : at + 8 + length] == mark:
            return True
        if kind in (b"IDAT", b"IEND"):
            return False
        at += 12 + length
    return False
