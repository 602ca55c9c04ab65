"""One repo on disk: objects by their hash, trees, commits and refs.

Everything but `refs.json` is immutable and named by its content, so a crash can leave unused files behind but
never a ref to something half-written: refs are moved last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import gitobj
from .disk import later_than, now, read_json_cached, write_atomic, write_json
from .errors import RevisionNotFound
from .gitobj import Commit, Entry, Tree
from .names import MAIN, is_oid

_MIN_SHORT_OID = 7


# Trees and commits never change under their name. The sizes let ten thousand repos be listed without reading again.


@lru_cache(maxsize=16_384)
def _load_tree(path: str) -> Tree:
    raw = json.loads(Path(path).read_bytes())
    return MappingProxyType({name: Entry(row["oid"], row["size"], row.get("lfs")) for name, row in raw.items()})


@lru_cache(maxsize=65_536)
def _load_commit(path: str) -> Commit:
    raw = json.loads(Path(path).read_bytes())
    return Commit(
        oid=raw["oid"],
        tree=raw["tree"],
        parents=tuple(raw["parents"]),
        author=raw["author"],
        title=raw["title"],
        message=raw["message"],
        date=raw["date"],
    )


def _ref_name(refs: Mapping[str, str], revision: str) -> str | None:
    for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
        if name in refs and name.startswith("refs/"):
            return name
    return None


class RepoStore:
    """Objects, trees, commits and refs of one repo. Whoever moves refs holds the repo's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # objects

    def blob_path(self, oid: str) -> Path:
        """Where a regular file's bytes lie."""
        return self.path / "blobs" / oid[:2] / oid

    def lfs_path(self, sha256: str) -> Path:
        """Where an LFS object lies."""
        return self.path / "lfs" / sha256[:2] / sha256

    def content_path(self, entry: Entry) -> Path:
        """Where the bytes of a tree entry lie."""
        return self.lfs_path(entry.lfs) if entry.lfs else self.blob_path(entry.oid)

    def lfs_size(self, sha256: str) -> int | None:
        """The size of an LFS object, or None where it is missing."""
        try:
            return self.lfs_path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def put_blob(self, data: bytes) -> Entry:
        """Keep a regular file."""
        oid = gitobj.blob_oid(data)
        path = self.blob_path(oid)
        if not path.exists():
            write_atomic(path, data)
        return Entry(oid=oid, size=len(data))

    def read(self, entry: Entry, *, limit: int | None = None) -> bytes:
        """The bytes of a tree entry, or its first `limit` bytes."""
        with self.content_path(entry).open("rb") as file:
            return file.read() if limit is None else file.read(limit)

    # trees and commits

    def put_tree(self, tree: Tree) -> str:
        """Keep a tree as a manifest of all its files, under git's own id of it."""
        oid = gitobj.tree_oids(tree)[""]
        path = self.path / "trees" / f"{oid}.json"
        if not path.exists():
            rows: dict[str, dict[str, Any]] = {}
            for name, entry in tree.items():
                rows[name] = {"oid": entry.oid, "size": entry.size}
                if entry.lfs:
                    rows[name]["lfs"] = entry.lfs
            write_json(path, rows)
        return oid

    def tree(self, commit_oid: str) -> Tree:
        """All files of a commit."""
        return self.tree_of(self.commit(commit_oid).tree)

    def tree_of(self, tree_oid: str) -> Tree:
        """All files of a tree by its own id."""
        return _load_tree(f"{self.path}/trees/{tree_oid}.json")

    def put_commit(
        self,
        tree: Tree,
        *,
        parents: tuple[str, ...],
        author: str,
        title: str,
        message: str,
        date: str | None = None,
    ) -> Commit:
        """Keep a commit; no ref points to it yet. It is younger than its parents, unless `date` says otherwise."""
        date = date or max([now(), *(later_than(self.commit(parent).date) for parent in parents)])
        tree_oid = self.put_tree(tree)
        oid = gitobj.commit_oid(tree_oid, parents, author, title, message, date)
        commit = Commit(oid, tree_oid, parents, author, title, message, date)
        path = self._commit_path(oid)
        if path.exists():
            return _load_commit(str(path))
        write_json(
            path,
            {
                "oid": oid,
                "tree": tree_oid,
                "parents": list(parents),
                "author": author,
                "title": title,
                "message": message,
                "date": date,
            },
        )
        return commit

    def _commit_path(self, oid: str) -> Path:
        return self.path / "commits" / f"{oid}.json"

    def commit(self, oid: str) -> Commit:
        """One commit by its full id."""
        try:
            return _load_commit(f"{self.path}/commits/{oid}.json")
        except FileNotFoundError:
            raise RevisionNotFound(oid) from None

    def has_commit(self, oid: str) -> bool:
        """Whether the repo holds this commit."""
        return is_oid(oid) and self._commit_path(oid).exists()

    def history(self, oid: str | None) -> Iterator[Commit]:
        """A commit and its first-parent ancestors, newest first."""
        while oid is not None:
            commit = self.commit(oid)
            yield commit
            oid = commit.parents[0] if commit.parents else None

    # refs

    def refs(self) -> dict[str, str]:
        """All refs: `refs/heads/…`, `refs/tags/…`, `refs/pr/N`."""
        return dict(read_json_cached(self.path / "refs.json") or {})

    def set_refs(self, changes: Mapping[str, str | None]) -> None:
        """Move, make or (None) delete refs, all at once."""
        refs = self.refs()
        for name, oid in changes.items():
            if oid is None:
                refs.pop(name, None)
            else:
                refs[name] = oid
        write_json(self.path / "refs.json", refs)

    def ref_name(self, revision: str) -> str | None:
        """The full name of the ref that a revision means, or None if it is no ref."""
        return _ref_name(self.refs(), revision)

    def resolve(self, revision: str | None) -> str:
        """The commit that a branch, tag, `refs/pr/N` or (shortened) commit id means."""
        revision = revision or MAIN
        refs = self.refs()
        name = _ref_name(refs, revision)
        if name is not None:
            return refs[name]
        if self.has_commit(revision):
            return revision
        if _MIN_SHORT_OID <= len(revision) < 40 and all(c in "0123456789abcdef" for c in revision):
            found = list((self.path / "commits").glob(f"{revision}*.json"))
            if len(found) == 1:
                return found[0].stem
        raise RevisionNotFound(revision)
