"""What the API says about a repo, a file and a commit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import card, gguf_facts
from .auth import user_id
from .gitobj import Commit, Entry, Tree, tree_oids
from .names import MAIN
from .repos import Repo
from .store import RepoStore

_MAX_CARD = 4 * 1024 * 1024


def card_text(store: RepoStore, tree: Tree) -> str:
    """The README of a tree, `""` without one."""
    entry = tree.get("README.md")
    if entry is None or entry.size > _MAX_CARD:
        return ""
    return store.read(entry).decode("utf-8", "replace")


def facts(repo: Repo, tree: Tree) -> card.CardFacts:
    """Tags, library, base models, ... of a tree."""
    return card.facts(card_text(repo.store, tree), tuple(tree), repo.repo_type)


def sibling(path: str, entry: Entry, *, blobs: bool) -> dict[str, Any]:
    """A file as `model_info` lists it."""
    out: dict[str, Any] = {"rfilename": path}
    if blobs:
        out.update(blobId=entry.oid, size=entry.size)
        if entry.lfs:
            out["lfs"] = {"sha256": entry.lfs, "size": entry.size, "pointerSize": entry.pointer_size}
    return out


class RepoInfo:
    """Everything the API can say about one revision; each property is worked out when it is asked for."""

    def __init__(self, repo: Repo, revision: str | None = None) -> None:
        self.repo = repo
        self.meta = repo.meta()
        self.commit = repo.store.commit(repo.store.resolve(revision))
        self._main = repo.store.commit(repo.store.resolve(MAIN))
        self.tree = repo.store.tree(self.commit.oid)
        self.facts = facts(repo, self.tree)

    @property
    def last_modified(self) -> str:
        """The date of the last commit to main."""
        return self._main.date

    def field(self, name: str) -> Any:
        """One property by its API name; None for what this hub has nothing to say about."""
        meta, found = self.meta, self.facts
        if name == "siblings":
            return [sibling(path, entry, blobs=False) for path, entry in sorted(self.tree.items())]
        if name == "gguf":
            return gguf_facts.of_repo(self.repo.store, self.tree)
        if name == "usedStorage":
            return sum(entry.size for entry in self.tree.values())
        if name == "config" and "config.json" not in self.tree:
            return None
        simple: dict[str, Any] = {
            "author": self.repo.owner,
            "baseModels": list(found.base_models),
            "cardData": found.data or None,
            "createdAt": meta["createdAt"],
            "disabled": bool(meta.get("disabled")),
            "downloads": self.repo.downloads(meta),
            "downloadsAllTime": self.repo.downloads(meta),
            "gated": meta.get("gated", False),
            "lastModified": self.last_modified,
            "library_name": found.library,
            "likes": meta.get("likes", 0),
            "model-index": found.data.get("model-index"),
            "pipeline_tag": found.pipeline,
            "private": bool(meta.get("private")),
            "sdk": meta.get("sdk") or found.data.get("sdk"),
            "sha": self.commit.oid,
            "tags": self.tags(),
            "trendingScore": 0,
        }
        return simple.get(name)

    def tags(self) -> list[str]:
        """The tags that the listing filters by."""
        return list(self.facts.tags)

    def json(self, fields: Iterable[str]) -> dict[str, Any]:
        """The chosen properties; like on the Hub, the id is always there and absent things are left out."""
        out: dict[str, Any] = {"_id": self.meta["id"], "id": self.repo.repo_id}
        if self.repo.repo_type == "model":
            out["modelId"] = self.repo.repo_id
        for name in fields:
            value = self.field(name)
            if value is not None:
                out[name] = value
        return out


LIST_FIELDS = (
    "likes",
    "private",
    "downloads",
    "tags",
    "pipeline_tag",
    "library_name",
    "createdAt",
    "lastModified",
    "sdk",
)
FULL_FIELDS = (*LIST_FIELDS, "author", "gated", "disabled", "sha", "siblings")
INFO_FIELDS = (*FULL_FIELDS, "cardData", "model-index", "usedStorage", "gguf", "trendingScore")
KNOWN_FIELDS = frozenset(
    (
        *INFO_FIELDS,
        *(
            "baseModels",
            "config",
            "downloadsAllTime",
            "childrenModelCount",
            "evalResults",
            "inference",
            "spaces",
        ),
        *(
            "inferenceProviderMapping",
            "mask_token",
            "resourceGroup",
            "safetensors",
            "securityRepoStatus",
            "models",
        ),
        *(
            "transformersInfo",
            "widgetData",
            "citation",
            "description",
            "mainSize",
            "paperswithcode_id",
            "datasets",
        ),
        *("runtime", "subdomain", "region"),
    )
)


def commit_json(commit: Commit) -> dict[str, Any]:
    """A commit of the commits list."""
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "date": commit.date,
        "authors": [{"_id": user_id(commit.author), "user": commit.author, "avatar": ""}],
    }


def file_row(path: str, entry: Entry) -> dict[str, Any]:
    """A file of a tree listing."""
    out: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
    if entry.lfs:
        out["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": entry.pointer_size}
    return out


def tree_rows(tree: Tree) -> dict[str, dict[str, Any]]:
    """Every file and folder of a tree by its path."""
    rows: dict[str, dict[str, Any]] = {
        folder: {"type": "directory", "path": folder, "oid": oid, "size": 0}
        for folder, oid in tree_oids(tree).items()
        if folder
    }
    rows.update((path, file_row(path, entry)) for path, entry in tree.items())
    return dict(sorted(rows.items()))


def add_last_commits(store: RepoStore, head: str, rows: list[dict[str, Any]]) -> None:
    """Put on each row the last commit that touched it, walking back from the head until all are found."""
    missing = {row["path"]: row for row in rows}
    for commit in store.history(head):
        if not missing:
            return
        parent = commit.parents[0] if commit.parents else None
        before = tree_rows(store.tree(parent)) if parent else {}
        for path in [path for path, row in missing.items() if before.get(path, {}).get("oid") != row["oid"]]:
            missing.pop(path)["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
