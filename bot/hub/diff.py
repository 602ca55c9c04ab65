"""A change to a text as ``git`` and ``patch`` read it. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator


def unified(before: str | None, after: str, *, path: str) -> Iterator[str]:
    """The lines of a unified diff, each with its newline; ``before`` is None for a new file."""
    old = "/dev/null" if before is None else f"a/{path}"
    for line in difflib.unified_diff(_lines(before or ""), _lines(after), old, f"b/{path}"):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """Lines as git counts them: only LF ends one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
