"""Trees against trees: what changed, what a merge gives, and the text of a diff. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from . import merge as lines
from .gitobj import Entry, Tree, blob_oid, pointer

_MAX_TEXT = 512 * 1024
_MAX_LINES = 8000
_NO_NEWLINE = "\\ No newline at end of file\n"


def changed(old: Tree, new: Tree) -> dict[str, tuple[Entry | None, Entry | None]]:
    """The paths that differ, each with its old and new entry."""
    paths = sorted(old.keys() | new.keys())
    return {path: (old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)}


@dataclass(frozen=True)
class Merge:
    """The merged tree, and the files that both sides changed differently (then there is nothing to merge).

    `texts` are the files that exist in no side as they are in the tree: they have to be kept first.
    """

    tree: dict[str, Entry]
    conflicts: tuple[str, ...]
    texts: dict[str, bytes] = field(default_factory=dict)


def path_clashes(tree: Tree) -> set[str]:
    """Files that lie where another file needs a folder."""
    clashes: set[str] = set()
    for path in tree:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in tree:
                clashes.add(parent)
            parent = parent.rpartition("/")[0]
    return clashes


Read = Callable[[Entry], bytes]


def merge(base: Tree, ours: Tree, theirs: Tree, read: Read | None = None) -> Merge:
    """Put what `theirs` changed since `base` onto `ours`.

    A file that both changed is merged by lines where it is text, stands in all three and `read` is given;
    else, or where the lines are in each other's way, it is a conflict.
    """
    merged, texts = dict(ours), {}
    conflicts: set[str] = set()
    ours_changed = changed(base, ours)
    for path, (_, entry) in changed(base, theirs).items():
        if path in ours_changed and ours_changed[path][1] != entry:
            text = _merged_text((base.get(path), ours.get(path), entry), read)
            if text is None:
                conflicts.add(path)
            else:
                texts[path] = text
                merged[path] = Entry(blob_oid(text), len(text))
        elif entry is None:
            merged.pop(path, None)
        else:
            merged[path] = entry
    conflicts |= path_clashes(merged)
    return Merge(tree=merged, conflicts=tuple(sorted(conflicts)), texts=texts)


def _merged_text(sides: tuple[Entry | None, Entry | None, Entry | None], read: Read | None) -> bytes | None:
    found = [entry for entry in sides if entry is not None and not entry.lfs and entry.size <= lines.MAX_BYTES]
    if read is None or len(found) < 3:
        return None
    return lines.merge(*(read(entry) for entry in found))


def _text(entry: Entry | None, read: Read) -> str | None:
    """The text that git would diff (for LFS: the pointer); None if it is binary or too long."""
    if entry is None:
        return ""
    if entry.lfs:
        return pointer(entry.lfs, entry.size).decode()
    if entry.size > _MAX_TEXT:
        return None
    data = read(entry)
    if b"\0" in data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.count("\n") <= _MAX_LINES else None


def _hunks(old: str, new: str, names: tuple[str, str]) -> str:
    old_lines, new_lines = _split(old), _split(new)
    out: list[str] = []
    for line in difflib.unified_diff(old_lines, new_lines, *names):
        out.append(line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}")
    return "".join(out)


def _split(text: str) -> list[str]:
    *lines, tail = text.split("\n")  # not splitlines: only this one ends a line in git
    return [line + "\n" for line in lines] + ([tail] if tail else [])


def unified(old: Tree, new: Tree, read: Read) -> str:
    """A git-style diff of two trees."""
    out: list[str] = []
    for path, (before, after) in changed(old, new).items():
        out.append(f"diff --git a/{path} b/{path}\n")
        if before is None:
            out.append("new file mode 100644\n")
        if after is None:
            out.append("deleted file mode 100644\n")
        zero = "0" * 40
        out.append(f"index {before.oid if before else zero}..{after.oid if after else zero}\n")
        names = (f"a/{path}" if before else "/dev/null", f"b/{path}" if after else "/dev/null")
        texts = (_text(before, read), _text(after, read))
        if texts[0] is None or texts[1] is None:
            out.append(f"Binary files {names[0]} and {names[1]} differ\n")
        else:
            out.append(_hunks(texts[0], texts[1], names))
    return "".join(out)
