"""What the API says about a repo, a file and a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from . import card, gguf_facts
from .auth import user_id
from .gitobj import Commit, Entry, Tree, tree_oids
from .names import MAIN, RepoType
from .repos import Repo
from .store import RepoStore

_MAX_CARD = 4 * 1024 * 1024


def card_text(store: RepoStore, tree: Tree) -> str:
    """The README of a tree, `""` without one."""
    entry = tree.get("README.md")
    if entry is None or entry.size > _MAX_CARD:
        return ""
    return store.read(entry).decode("utf-8", "replace")


@lru_cache(maxsize=16_384)
def _facts(folder: Path, tree_oid: str, repo_type: RepoType) -> card.CardFacts:
    store = RepoStore(folder)
    tree = store.tree_of(tree_oid)
    return card.facts(card_text(store, tree), tuple(tree), repo_type)


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
        store = repo.store
        self.repo = repo
        self.meta = repo.meta()
        self._main = store.commit(store.resolve(MAIN))
        self.commit = self._main if revision is None else store.commit(store.resolve(revision))
        self.tree = store.tree_of(self.commit.tree)
        self.facts = _facts(repo.path, self.commit.tree, repo.repo_type)

    @property
    def last_modified(self) -> str:
        """The date of the last commit to main."""
        return self._main.date

    def field(self, name: str) -> Any:
        """One property by its API name; None for what this hub has nothing to say about."""
        ask = _FIELDS.get(name)
        return ask(self) if ask else None

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


_FIELDS: Final[Mapping[str, Callable[[RepoInfo], Any]]] = {
    "author": lambda info: info.repo.owner,
    "baseModels": lambda info: list(info.facts.base_models),
    "cardData": lambda info: info.facts.data or None,
    "createdAt": lambda info: info.meta["createdAt"],
    "disabled": lambda info: bool(info.meta.get("disabled")),
    "downloads": lambda info: info.repo.downloads(info.meta),
    "downloadsAllTime": lambda info: info.repo.downloads(info.meta),
    "gated": lambda info: info.meta.get("gated", False),
    "gguf": lambda info: gguf_facts.of_repo(info.repo.store, info.tree),
    "lastModified": lambda info: info.last_modified,
    "library_name": lambda info: info.facts.library,
    "likes": lambda info: info.meta.get("likes", 0),
    "model-index": lambda info: info.facts.data.get("model-index"),
    "pipeline_tag": lambda info: info.facts.pipeline,
    "private": lambda info: bool(info.meta.get("private")),
    "sdk": lambda info: info.meta.get("sdk") or info.facts.data.get("sdk"),
    "sha": lambda info: info.commit.oid,
    "siblings": lambda info: [sibling(path, entry, blobs=False) for path, entry in sorted(info.tree.items())],
    "tags": lambda info: info.tags(),
    "trendingScore": lambda info: 0,
    "usedStorage": lambda info: sum(entry.size for entry in info.tree.values()),
}

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
