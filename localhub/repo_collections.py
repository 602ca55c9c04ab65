"""Collections: `collections.json`, lists of repos that somebody put together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .auth import Identity, user_id
from .disk import Locks, now, random_id, read_json_cached, write_json
from .errors import BadRequest, Conflict, Forbidden, NotFound, RepoMoved, RepoNotFound
from .names import MAIN, REPO_TYPES, RepoType, check_owner, check_repo_id
from .repos import Repo, Repos

Collection = dict[str, Any]
Item = dict[str, Any]

_SLUG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_ID: Final = re.compile(r"(?:.*-)?([0-9a-f]{24})")
_MAX_ITEMS: Final = 10_000
_MAX_TITLE: Final = 60
_MAX_DESCRIPTION: Final = 150
_MAX_NOTE: Final = 500
_SHOWN_IN_LISTS: Final = 4


def check_slug(slug: object) -> str:
    """`owner/slug`."""
    owner, _, name = str(slug).partition("/")
    if not isinstance(slug, str) or not _SLUG.fullmatch(name):
        raise BadRequest(f"Invalid collection slug: {str(slug)[:200]!r}. It must be 'owner/slug'.")
    check_owner(owner)
    return slug


def make_slug(owner: str, title: str) -> str:
    """`owner/title-24hex`, as the Hub makes them."""
    words = "-".join(re.findall(r"[a-z0-9]+", title.lower()))[:100]
    return f"{owner}/{words}-{random_id()}" if words else f"{owner}/{random_id()}"


def _text(value: object, name: str, limit: int, *, empty: bool = True) -> str:
    if not isinstance(value, str) or len(value) > limit or not (empty or value.strip()):
        raise BadRequest(f"The {name} of a collection must be text of at most {limit} characters")
    return value


def new_item(repo_type: str, repo_id: str, note: str | None = None) -> Item:
    """An item as it is kept."""
    if repo_type not in REPO_TYPES:
        raise BadRequest(f"A collection of this hub holds models, datasets and spaces, no {str(repo_type)[:40]!r}")
    item = {"_id": random_id(), "type": repo_type, "id": check_repo_id(repo_id)}
    return {**item, "note": _text(note, "note", _MAX_NOTE)} if note else item


class Collections:
    """Make, read, change and delete collections."""

    def __init__(self, root: Path, locks: Locks) -> None:
        self._path = root / "collections.json"
        self._locks = locks
        self._repos = Repos(root, locks)

    def _load(self) -> dict[str, Collection]:
        return dict(read_json_cached(self._path) or {})

    def _find(self, who: Identity, slug: str) -> Collection:
        """By its slug, or, since a new title changes that, by the id at its end."""
        found = self._load()
        kept = found.get(slug)
        match = _ID.fullmatch(slug)
        if kept is None and match is not None:
            owner = slug.partition("/")[0]
            kept = next((row for row in found.values() if row["slug"].endswith(match.group(1))), None)
            kept = kept if kept and kept["owner"] == owner else None
        if kept is None or (kept["private"] and not who.is_member(kept["owner"])):
            raise NotFound("Collection not found")
        return dict(kept)

    def put(
        self,
        slug: str,
        *,
        title: str,
        items: Iterable[Item] = (),
        description: str | None = None,
        private: bool = False,
    ) -> Collection:
        """Make it, or replace what it holds."""
        check_slug(slug)
        kept: Collection = {
            "slug": slug,
            "owner": slug.partition("/")[0],
            "title": _text(title, "title", _MAX_TITLE, empty=False),
            "description": _text(description or "", "description", _MAX_DESCRIPTION),
            "private": private,
            "theme": "orange",
            "upvotes": 0,
            "position": 0,
            "lastUpdated": now(),
            "items": list(items),
        }
        with self._locks.hold("collections"):
            write_json(self._path, {**self._load(), slug: kept})
        return kept

    def create(self, who: Identity, data: dict[str, Any]) -> Collection:
        """A new one in the caller's namespace or in one of their organisations."""
        owner = check_owner(data.get("namespace") or who.require_write("collection.write"))
        _check_admin(who, owner)
        title = _text(data.get("title"), "title", _MAX_TITLE, empty=False)
        with self._locks.hold("collections"):
            for kept in self._load().values():
                if (kept["owner"], kept["title"]) == (owner, title):
                    raise Conflict("You have a collection of this title already", slug=kept["slug"])
            made = self.put(
                make_slug(owner, title),
                title=title,
                description=data.get("description"),
                private=bool(data.get("private")),
            )
        return self.json(made, who)

    def update(self, who: Identity, slug: str, data: dict[str, Any]) -> Collection:
        """Change what is given."""
        changes: dict[str, Any] = {}
        if "title" in data:
            changes["title"] = _text(data["title"], "title", _MAX_TITLE, empty=False)
        if "description" in data:
            changes["description"] = _text(data["description"], "description", _MAX_DESCRIPTION)
        if "private" in data:
            changes["private"] = bool(data["private"])
        if "theme" in data:
            changes["theme"] = _text(data["theme"], "theme", 20)
        if type(data.get("position")) is int:
            changes["position"] = data["position"]
        with self._locks.hold("collections"):
            return self.json(self._save(self._owned(who, slug), changes), who)

    def delete(self, who: Identity, slug: str) -> None:
        """Remove it."""
        with self._locks.hold("collections"):
            gone = self._owned(who, slug)["slug"]
            write_json(self._path, {key: row for key, row in self._load().items() if key != gone})

    def _owned(self, who: Identity, slug: str) -> Collection:
        kept = self._find(who, slug)
        _check_admin(who, kept["owner"])
        return kept

    def _save(self, kept: Collection, changes: dict[str, Any]) -> Collection:
        kept = {**kept, **changes, "lastUpdated": now()}
        write_json(self._path, {**self._load(), kept["slug"]: kept})
        return kept

    # items

    def add_item(self, who: Identity, slug: str, data: dict[str, Any]) -> Collection:
        """Add a repo at the end."""
        given = data.get("item")
        row = given if isinstance(given, dict) else {}
        item = new_item(str(row.get("type")), str(row.get("id")).removeprefix("datasets/"), data.get("note"))
        with self._locks.hold("collections"):
            kept = self._owned(who, slug)
            if self._repo(item, who) is None:
                raise RepoNotFound()
            if any((old["type"], old["id"]) == (item["type"], item["id"]) for old in kept["items"]):
                raise Conflict("This item is in the collection already")
            if len(kept["items"]) >= _MAX_ITEMS:
                raise BadRequest(f"A collection holds at most {_MAX_ITEMS} items")
            return self.json(self._save(kept, {"items": [*kept["items"], item]}), who)

    def update_item(self, who: Identity, slug: str, item_id: str, data: dict[str, Any]) -> None:
        """Change its note, or move it."""
        with self._locks.hold("collections"):
            kept = self._owned(who, slug)
            item = _item(kept, item_id)
            if "note" in data:
                item = {**item, "note": _text(data["note"], "note", _MAX_NOTE)}
            others = [old for old in kept["items"] if old["_id"] != item_id]
            at = data.get("position")
            at = at if type(at) is int else kept["items"].index(_item(kept, item_id))
            others.insert(max(0, at), item)
            self._save(kept, {"items": others})

    def delete_item(self, who: Identity, slug: str, item_id: str) -> None:
        """Take it out."""
        with self._locks.hold("collections"):
            kept = self._owned(who, slug)
            _item(kept, item_id)
            self._save(kept, {"items": [old for old in kept["items"] if old["_id"] != item_id]})

    # as the API gives it

    def get(self, who: Identity, slug: str) -> Collection:
        """One, with all that the caller may see of it; 404 for a private one of somebody else."""
        return self.json(self._find(who, slug), who)

    def find(self, who: Identity, *, owners: list[str], items: list[str], limit: int) -> list[Collection]:
        """The newest first, with their first four items; `items` are written `models/owner/name`."""
        found = [row for row in self._load().values() if not row["private"] or who.is_member(row["owner"])]
        if owners:
            found = [row for row in found if row["owner"] in owners]
        for wanted in items:
            found = [row for row in found if wanted in {f"{item['type']}s/{item['id']}" for item in row["items"]}]
        found.sort(key=lambda row: str(row["lastUpdated"]), reverse=True)
        # the client counts positions of a list itself
        return [
            {key: value for key, value in self.json(row, who, most=_SHOWN_IN_LISTS).items() if key != "position"}
            for row in found[:limit]
        ]

    def json(self, kept: Collection, who: Identity, *, most: int = _MAX_ITEMS) -> Collection:
        """A collection in the API's shape. What is gone or private to the caller is left out."""
        rows: list[dict[str, Any]] = []
        for position, item in enumerate(kept["items"]):
            repo = self._repo(item, who) if len(rows) < most else None
            if repo is not None:
                rows.append(_item_json(repo, item, position))
        owner = {"_id": user_id(kept["owner"]), "name": kept["owner"], "fullname": kept["owner"], "avatarUrl": ""}
        return {**kept, "owner": owner, "items": rows, "gating": False, "isUpvotedByUser": False}

    def _repo(self, item: Item, who: Identity) -> Repo | None:
        """The repo of an item, by its new name if it was renamed."""
        kind: RepoType = item["type"]
        try:
            repo = self._repos.get(kind, item["id"])
        except RepoMoved as moved:
            try:
                repo = self._repos.get(kind, moved.new_id)
            except (RepoMoved, NotFound):
                return None
        except NotFound:
            return None
        return None if repo.meta().get("private") and not who.is_member(repo.owner) else repo


def _check_admin(who: Identity, owner: str) -> None:
    who.require_write("collection.write")
    if not who.is_member(owner):
        raise Forbidden(f"Forbidden: you don't have the rights to change collections of {owner}")


def _item(kept: Collection, item_id: str) -> Item:
    for item in kept["items"]:
        if item["_id"] == item_id:
            return dict(item)
    raise NotFound("Item not found")


def _item_json(repo: Repo, item: Item, position: int) -> dict[str, Any]:
    meta = repo.meta()
    out: dict[str, Any] = {
        "_id": item["_id"],
        "position": position,
        "type": item["type"],
        "id": repo.repo_id,
        "author": repo.owner,
        "repoType": item["type"],
        "private": bool(meta.get("private")),
        "gated": meta.get("gated", False),
        "likes": meta.get("likes", 0),
        "downloads": repo.downloads(meta),
        "lastModified": repo.store.commit(repo.store.resolve(MAIN)).date,
    }
    if item.get("note"):
        out["note"] = {"text": item["note"], "html": ""}
    return out
