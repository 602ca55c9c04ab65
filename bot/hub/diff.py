"""A change to a text as ``git`` and ``patch`` read it. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator


def unified(before: str | None, after: str | None, *, path: str) -> Iterator[str]:
    """The lines of a unified diff, each with its newline; None is no file, before it was made or once it is deleted."""
    old, new = ("/dev/null" if text is None else f"{side}/{path}" for side, text in (("a", before), ("b", after)))
    for line in difflib.unified_diff(_lines(before or ""), _lines(after or ""), old, new):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """Lines as git counts them: only LF ends one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
