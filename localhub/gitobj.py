"""Git's own object ids: blobs, LFS pointers, trees and commits hash here as they do in git. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a tree. `oid` is its git blob id (in LFS: of the pointer), `lfs` its sha256 if in LFS."""

    oid: str
    size: int
    lfs: str | None = None

    @property
    def pointer_size(self) -> int:
        """Bytes of the LFS pointer file that git itself would hold."""
        return len(pointer(self.lfs or "", self.size))


Tree = Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit; `title` is the first line of what git calls the message, `message` the rest."""

    oid: str
    tree: str
    parents: tuple[str, ...]
    author: str
    title: str
    message: str
    date: str


def _hash(kind: bytes, data: bytes) -> str:
    return hashlib.sha1(kind + b" %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def blob_oid(data: bytes) -> str:
    """The id that `git hash-object` prints."""
    return _hash(b"blob", data)


def pointer(sha256: str, size: int) -> bytes:
    """The LFS pointer file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_entry(sha256: str, size: int) -> Entry:
    """The tree entry of an LFS object."""
    return Entry(oid=blob_oid(pointer(sha256, size)), size=size, lfs=sha256)


def _depth(folder: str) -> int:
    return folder.count("/") + 1 if folder else 0


def tree_oids(tree: Tree) -> dict[str, str]:
    """The git tree id of every folder; the root is under `""`."""
    children: dict[str, dict[str, tuple[bytes, str]]] = {"": {}}
    for path, entry in tree.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name] = (b"100644", entry.oid)
    for folder in list(children):  # folders that hold nothing but folders
        while folder:
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, {})
    oids: dict[str, str] = {}
    for folder in sorted(children, key=_depth, reverse=True):
        items = children[folder]
        # git sorts folders as if their names ended in a slash
        rows = [(name.encode(), mode, bytes.fromhex(oid)) for name, (mode, oid) in items.items()]
        rows.sort(key=lambda row: row[0] + (b"/" if row[1] == b"40000" else b""))
        body = b"".join(mode + b" " + name + b"\0" + oid for name, mode, oid in rows)
        oids[folder] = _hash(b"tree", body)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = (b"40000", oids[folder])
    return oids


def commit_oid(tree: str, parents: tuple[str, ...], author: str, title: str, message: str, date: str) -> str:
    """The git commit id; the second is all of the time that git keeps."""
    stamp = int(datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp())
    who = f"{author} <{author}@users.noreply.localhub> {stamp} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {who}", f"committer {who}"]
    text = "\n".join(lines) + "\n\n" + title + (f"\n\n{message}" if message else "") + "\n"
    return _hash(b"commit", text.encode("utf-8", "surrogatepass"))
