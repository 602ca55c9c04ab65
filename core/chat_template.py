"""Compares chat templates as text; none is ever rendered.

A template that an uploader repaired, or that a converter took from elsewhere, changes what a model is told. So a file's
is held against the base model's and against those of the files beside it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes of a template that is looked at; the longest that is known has some 40 KiB.
MAX_TEMPLATE = 256 << 10
#: Lines of a diff that are kept, and characters of each.
MAX_LINES, MAX_WIDTH = 200, 400
#: Pairs of equal lines times lines, above which two texts are only counted: finding the best match takes that many
#: steps at worst, about a second.
_MAX_WORK = 30_000_000
_CONTEXT = 3

#: As difflib has them: (equal | replace | delete | insert, from and to in theirs, from and to in ours).
_Code = tuple[str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class TemplateDiff:
    """What ``ours`` is beside ``theirs``: lines that were added and removed, and a unified diff, bounded and printable.

    ``only_whitespace``: they differ, but not once all whitespace is gone; ``only_newlines``: nor in anything but line
    endings and what follows the last visible character.
    """

    ours_sha256: str
    theirs_sha256: str
    same: bool
    only_whitespace: bool
    only_newlines: bool
    added: int
    removed: int
    diff_lines: tuple[str, ...]

    @property
    def said(self) -> str:
        """``+3 −1 lines``, and where it is so, that only whitespace differs."""
        if self.same:
            return "the same"
        count = f"+{self.added} −{self.removed} lines"
        if self.only_newlines:
            return f"{count}, line endings only"
        return f"{count}, whitespace only" if self.only_whitespace else count


def sha256_of(text: str) -> str:
    """What a template is known by: the sha256 of its UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def compare(ours: str, theirs: str) -> TemplateDiff:
    """How two templates differ, as text: what ``ours`` added and removed. Takes a bounded time whatever they hold."""
    a, b = theirs.split("\n"), ours.split("\n")
    codes = [] if ours == theirs else _opcodes(a, b)
    if codes is None:
        before, after = Counter(a), Counter(b)
        added, removed = (after - before).total(), (before - after).total()
        lines = ["(too long for a diff, so lines are only counted)"]
    else:
        added = sum(j2 - j1 for kind, _, _, j1, j2 in codes if kind != "equal")
        removed = sum(i2 - i1 for kind, i1, i2, _, _ in codes if kind != "equal")
        lines = _unified(codes, a, b)
    return TemplateDiff(
        ours_sha256=sha256_of(ours),
        theirs_sha256=sha256_of(theirs),
        same=ours == theirs,
        only_whitespace=ours != theirs and "".join(ours.split()) == "".join(theirs.split()),
        only_newlines=ours != theirs and _endings_aside(ours) == _endings_aside(theirs),
        added=added,
        removed=removed,
        diff_lines=tuple(_bounded(lines)),
    )


def unified(diff: TemplateDiff, *, ours: str, theirs: str) -> list[str]:
    """The diff's lines under the names of both sides, ready to be printed."""
    return [f"--- {printable(theirs)}", f"+++ {printable(ours)}", *diff.diff_lines]


def printable(line: str) -> str:
    """A line of a stranger's text without control characters, and of a bounded width."""
    shown = "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line[: MAX_WIDTH + 1])
    return shown if len(shown) <= MAX_WIDTH else shown[:MAX_WIDTH] + "…"


def _endings_aside(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()


def _opcodes(a: Sequence[str], b: Sequence[str]) -> list[_Code] | None:
    """Steps from ``a`` to ``b``, or None where finding them could take too long."""
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    mid_a, mid_b = a[head : len(a) - tail], b[head : len(b) - tail]
    counts = Counter(mid_b)
    pairs = sum(n * counts[line] for line, n in Counter(mid_a).items())
    if pairs * min(len(mid_a), len(mid_b)) > _MAX_WORK:
        return None
    matcher = difflib.SequenceMatcher(None, mid_a, mid_b, autojunk=False)
    codes: list[_Code] = [("equal", 0, head, 0, head)] if head else []
    codes += [(kind, i1 + head, i2 + head, j1 + head, j2 + head) for kind, i1, i2, j1, j2 in matcher.get_opcodes()]
    if tail:
        codes.append(("equal", len(a) - tail, len(a), len(b) - tail, len(b)))
    return codes


def _unified(codes: list[_Code], a: Sequence[str], b: Sequence[str]) -> list[str]:
    """A unified diff's hunks with three lines of context."""
    lines: list[str] = []
    for group in _groups(codes):
        first, last = group[0], group[-1]
        lines.append(f"@@ -{_span(first[1], last[2])} +{_span(first[3], last[4])} @@")
        for kind, i1, i2, j1, j2 in group:
            if kind == "equal":
                lines += [f" {line}" for line in a[i1:i2]]
                continue
            lines += [f"-{line}" for line in a[i1:i2]]
            lines += [f"+{line}" for line in b[j1:j2]]
    return lines


def _groups(codes: list[_Code]) -> list[list[_Code]]:
    """Changes with the context around them; two that share it are one group."""
    groups: list[list[_Code]] = []
    current: list[_Code] = []
    for index, (kind, i1, i2, j1, j2) in enumerate(codes):
        if kind != "equal":
            current.append((kind, i1, i2, j1, j2))
            continue
        is_last = index == len(codes) - 1
        if current and not is_last and i2 - i1 <= 2 * _CONTEXT:
            current.append((kind, i1, i2, j1, j2))
            continue
        if current:
            n = min(_CONTEXT, i2 - i1)
            groups.append([*current, (kind, i1, i1 + n, j1, j1 + n)])
        n = min(_CONTEXT, i2 - i1)
        current = [] if is_last else [(kind, i2 - n, i2, j2 - n, j2)]
    if current and any(code[0] != "equal" for code in current):
        groups.append(current)
    return groups


def _span(start: int, stop: int) -> str:
    """A range of lines as unified diffs write it: one-based, with the length unless it is 1."""
    length = stop - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"


def _bounded(lines: list[str]) -> list[str]:
    shown = [printable(line) for line in lines[:MAX_LINES]]
    more = len(lines) - len(shown)
    return [*shown, f"({more} more lines)"] if more > 0 else shown
