"""Follows, repos and variants: what we watch and what we found there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from bot.store.db import immediate
from core.audit import Inspection
from core.gguf_files import RepoFile, VariantFiles, label_of


@dataclass(frozen=True, slots=True)
class Follow:
    """An owner (``bartowski``) or a single repo (``bartowski/X-GGUF``) that is watched."""

    name: str
    consented: bool

    @property
    def is_repo(self) -> bool:
        """Whether a single repo is followed."""
        return "/" in self.name

    @property
    def owner(self) -> str:
        """The user or organisation."""
        return self.name.split("/")[0]


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo as last looked into. ``source``: followed, or only requested (then no pull is opened)."""

    id: str
    sha: str | None
    source: str
    note: str | None
    base_model: str | None
    config: dict[str, Any]

    @property
    def owner(self) -> str:
        """The user or organisation."""
        return self.id.split("/")[0]


@dataclass(frozen=True, slots=True)
class Variant:
    """A stored variant. ``state``: current, stale (replaced under its name) or removed."""

    id: int
    repo_id: str
    name: str
    key: str
    label: str
    files: tuple[RepoFile, ...]
    size_bytes: int
    revision: str
    inspection: Inspection | None
    note: str | None
    state: str


class Repos:
    """Tables follows, repos, variants."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def follow(self, name: str, *, consented: bool, now: float) -> None:
        """Watch an owner or a repo; following again changes only the consent."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO follows (name, consented, created_at) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET consented = excluded.consented",
                (name, int(consented), now),
            )

    def unfollow(self, name: str) -> bool:
        """Stop watching; what was measured stays. False if it was not followed."""
        with immediate(self._db):
            return self._db.conn.execute("DELETE FROM follows WHERE name = ?", (name,)).rowcount > 0

    def follows(self) -> list[Follow]:
        """All follows by name."""
        rows = self._db.query("SELECT name, consented FROM follows ORDER BY name")
        return [Follow(row["name"], bool(row["consented"])) for row in rows]

    def follow_of(self, repo_id: str) -> Follow | None:
        """The follow that covers a repo: its own before its owner's."""
        # The Hub takes a name in either case.
        by_name = {follow.name.lower(): follow for follow in self.follows()}
        return by_name.get(repo_id.lower()) or by_name.get(repo_id.lower().split("/")[0])

    def repo(self, repo_id: str) -> Repo | None:
        """A repo looked into before, or None."""
        for row in self._db.query("SELECT * FROM repos WHERE id = ?", (repo_id,)):
            return _repo(row)
        return None

    def repos(self) -> list[Repo]:
        """All repos looked into, by id."""
        return [_repo(row) for row in self._db.query("SELECT * FROM repos ORDER BY id")]

    def save_repo(
        self,
        repo_id: str,
        *,
        sha: str | None,
        last_modified: str | None,
        source: str,
        note: str | None,
        base_model: str | None,
        config: dict[str, Any],
        now: float,
    ) -> None:
        """Remember what a look into a repo found; a followed repo never becomes merely requested."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO repos (id, sha, last_modified, source, note, base_model, config, seen_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET sha = excluded.sha, "
                "last_modified = excluded.last_modified, note = excluded.note, base_model = excluded.base_model, "
                "config = excluded.config, seen_at = excluded.seen_at, "
                "source = CASE WHEN repos.source = 'follow' THEN 'follow' ELSE excluded.source END",
                (repo_id, sha, last_modified, source, note, base_model, json.dumps(config), now),
            )

    def save_variants(
        self,
        repo_id: str,
        found: Iterable[tuple[VariantFiles, Inspection | None, str | None]],
        *,
        revision: str,
        now: float,
    ) -> None:
        """Make ``found`` (files, inspection, note) the repo's current variants; the others become stale or removed."""
        found = list(found)
        names = {files.name for files, _, _ in found}
        with immediate(self._db):
            for row in list(
                self._db.query("SELECT id, name FROM variants WHERE repo_id = ? AND state = 'current'", (repo_id,))
            ):
                state = "stale" if row["name"] in names else "removed"
                self._db.conn.execute("UPDATE variants SET state = ? WHERE id = ?", (state, row["id"]))
            for files, inspection, note in found:
                self._db.conn.execute(
                    "INSERT INTO variants (repo_id, name, key, label, files, size_bytes, revision, inspection, note, "
                    "state, first_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'current', ?) "
                    "ON CONFLICT (repo_id, name, key) DO UPDATE SET state = 'current', revision = excluded.revision, "
                    "files = excluded.files, inspection = excluded.inspection, note = excluded.note",
                    (
                        repo_id,
                        files.name,
                        files.key,
                        label_of(files.name),
                        json.dumps([[f.path, f.size, f.sha256] for f in files.files]),
                        files.size_bytes,
                        revision,
                        inspection.model_dump_json() if inspection else None,
                        note,
                        now,
                    ),
                )

    def variants(self, repo_id: str | None = None, *, states: tuple[str, ...] = ("current",)) -> list[Variant]:
        """Variants in these states, of one repo or of all, by repo and name."""
        marks = ",".join("?" * len(states))
        where, args = f"state IN ({marks})", [*states]
        if repo_id is not None:
            where, args = where + " AND repo_id = ?", [*args, repo_id]
        return [_variant(row) for row in self._db.query(
            f"SELECT * FROM variants WHERE {where} ORDER BY repo_id, name, id", args
        )]  # fmt: skip

    def variant(self, variant_id: int) -> Variant:
        """One variant by its row id."""
        return _variant(next(self._db.query("SELECT * FROM variants WHERE id = ?", (variant_id,))))


def _repo(row: dict[str, Any]) -> Repo:
    return Repo(row["id"], row["sha"], row["source"], row["note"], row["base_model"], json.loads(row["config"]))


def _variant(row: dict[str, Any]) -> Variant:
    return Variant(
        id=row["id"],
        repo_id=row["repo_id"],
        name=row["name"],
        key=row["key"],
        label=row["label"],
        files=tuple(RepoFile(path, size, sha) for path, size, sha in json.loads(row["files"])),
        size_bytes=row["size_bytes"],
        revision=row["revision"],
        inspection=Inspection.model_validate_json(row["inspection"]) if row["inspection"] else None,
        note=row["note"],
        state=row["state"],
    )
