"""Three-way merge of a text by lines, with git's rules: edits that overlap or touch are a conflict. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_BYTES = 4 * 1024 * 1024
#: Beyond this many changed lines a side counts as one edit from its first to its last difference.
_MAX_EDITS = 1200

Lines = list[bytes]


@dataclass(frozen=True, slots=True)
class Edit:
    """Lines `start` to `end` (excluded) of the old text became lines `new_start` to `new_end` of the new one."""

    start: int
    end: int
    new_start: int
    new_end: int


def split(data: bytes) -> Lines:
    """The lines with their ends; only a line feed ends one, and the last may have none."""
    *lines, tail = data.split(b"\n")
    return [line + b"\n" for line in lines] + ([tail] if tail else [])


def is_text(data: bytes) -> bool:
    """Whether lines can be merged: UTF-8 without NUL, of a bounded size."""
    if len(data) > MAX_BYTES or b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _trace(old: Lines, new: Lines) -> list[list[int]] | None:
    """How far each diagonal reaches after 0, 1, 2, ... edits (Myers' greedy algorithm); None if too many are needed."""
    reach = {1: 0}
    trace: list[list[int]] = []
    for edits in range(min(len(old) + len(new), _MAX_EDITS) + 1):
        row: list[int] = []
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (diagonal != edits and reach[diagonal - 1] < reach[diagonal + 1])
            x = reach[diagonal + 1] if down else reach[diagonal - 1] + 1
            y = x - diagonal
            while x < len(old) and y < len(new) and old[x] == new[y]:
                x, y = x + 1, y + 1
            reach[diagonal] = x
            row.append(x)
            if x >= len(old) and y >= len(new):
                trace.append(row)
                return trace
        trace.append(row)
    return None


def _steps(trace: list[list[int]], x: int, y: int) -> Iterator[Edit]:
    """The trace walked back from the end of both texts: each line taken out or put in."""
    for count in range(len(trace) - 1, 0, -1):
        row, diagonal = trace[count - 1], x - y
        at = (diagonal + count) // 2  # of the diagonal above; the one below is at the place before
        down = diagonal == -count or (diagonal != count and row[at - 1] < row[at])
        x = row[at] if down else row[at - 1]
        y = x - (diagonal + 1 if down else diagonal - 1)
        yield Edit(x, x + (not down), y, y + down)


def edits(old: Lines, new: Lines) -> list[Edit]:
    """A shortest list of edits that makes the new text of the old one, in order, none touching another."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    old_mid, new_mid = old[head : len(old) - tail], new[head : len(new) - tail]
    if not old_mid and not new_mid:
        return []
    trace = _trace(old_mid, new_mid)
    if trace is None:
        return [Edit(head, len(old) - tail, head, len(new) - tail)]
    found: list[Edit] = []
    for step in _steps(trace, len(old_mid), len(new_mid)):
        if found and (step.end, step.new_end) == (found[-1].start, found[-1].new_start):
            after = found.pop()
            step = Edit(step.start, after.end, step.new_start, after.new_end)
        found.append(step)
    return [
        Edit(item.start + head, item.end + head, item.new_start + head, item.new_end + head) for item in found[::-1]
    ]


def merge(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Both sides' changes in one text, or None where they are in each other's way."""
    if ours == theirs or theirs == base:
        return ours
    if ours == base:
        return theirs
    if not (is_text(base) and is_text(ours) and is_text(theirs)):
        return None
    return _merge_lines(split(base), split(ours), split(theirs))


def _merge_lines(base: Lines, ours: Lines, theirs: Lines) -> bytes | None:
    left, right = edits(base, ours), edits(base, theirs)
    out: Lines = []
    done = 0
    while left or right:
        start = end = min(side[0].start for side in (left, right) if side)
        mine, yours = [], []
        while True:  # everything that overlaps or touches what is in the region already
            if left and left[0].start <= end:
                mine.append(left.pop(0))
                end = max(end, mine[-1].end)
            elif right and right[0].start <= end:
                yours.append(right.pop(0))
                end = max(end, yours[-1].end)
            else:
                break
        texts = [_replaced(found, new, start, end) for found, new in ((mine, ours), (yours, theirs)) if found]
        if len(texts) == 2 and texts[0] != texts[1]:
            return None
        out += base[done:start]
        out += texts[0]
        done = end
    return b"".join(out + base[done:])


def _replaced(found: list[Edit], new: Lines, start: int, end: int) -> Lines:
    """What a side has in place of lines `start` to `end` of the base."""
    first, last = found[0], found[-1]
    return new[first.new_start - (first.start - start) : last.new_end + (end - last.end)]
