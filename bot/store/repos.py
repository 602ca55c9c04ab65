"""Follows, repos and variants: what we watch and what we found there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sqlite_utils import Database

from bot.store.db import immediate
from core.audit import Inspection
from core.gguf_files import RepoFile, VariantFiles, label_of

#: How a followed collection is named: ``collections/OWNER/TITLE-ID``, as its address ends.
COLLECTION = "collections/"

#: What a repo is: ``moved`` to another name, ``gone`` (deleted, or private now), ``gated`` (its files are not for our
#: token), ``disabled`` by the Hub, ``private`` (ours to see, nobody else's to read about), or ``live``.
RepoState = Literal["live", "gone", "moved", "private", "gated", "disabled"]


@dataclass(frozen=True, slots=True)
class Follow:
    """An owner (``bartowski``), a single repo (``bartowski/X-GGUF``) or a collection (``collections/…``) watched.

    ``cursor`` is the ``lastModified`` up to which its list was read; ``polled_at``, ``swept_at`` (its whole list) are
    seconds since the epoch; ``error`` is why the last poll of it failed.
    """

    name: str
    consented: bool
    cursor: str | None = None
    polled_at: float | None = None
    swept_at: float | None = None
    error: str | None = None

    @property
    def kind(self) -> Literal["owner", "repo", "collection"]:
        """What is followed."""
        if self.name.startswith(COLLECTION):
            return "collection"
        return "repo" if "/" in self.name else "owner"

    @property
    def is_repo(self) -> bool:
        """Whether a single repo is followed."""
        return self.kind == "repo"

    @property
    def owner(self) -> str:
        """The user or organisation; of a collection its own, whoever owns the repos in it."""
        return self.name.removeprefix(COLLECTION).split("/")[0]


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo as last looked into. ``source``: followed, or only requested (then no pull is opened)."""

    id: str
    sha: str | None
    source: str
    note: str | None
    base_model: str | None
    config: dict[str, Any]
    state: RepoState = "live"
    #: the follow by which it is watched; None: it was only requested, or its follow is gone
    follow: str | None = None
    #: the commit that it waits to be looked into at, since when, and why the last look failed
    due_sha: str | None = None
    due_at: float | None = None
    error: str | None = None
    #: by whose word nothing is published there any more
    stopped: str | None = None
    #: as the Hub says it: ``2026-11-21T12:00:00.000Z``
    last_modified: str | None = None

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
        """Watch an owner, a repo or a collection; following again changes only the consent.

        What was known of it is decided anew, and its whole list is read again.
        """
        with immediate(self._db):
            updated = self._db.conn.execute(
                "UPDATE follows SET consented = ?, cursor = NULL, swept_at = NULL WHERE name = ? COLLATE NOCASE",
                (int(consented), name),
            ).rowcount
            if not updated:
                self._db.conn.execute(
                    "INSERT INTO follows (name, consented, created_at) VALUES (?, ?, ?)", (name, int(consented), now)
                )
            self._touch(name, now)

    def unfollow(self, name: str) -> bool:
        """Stop watching; what was measured stays. False if it was not followed."""
        with immediate(self._db):
            gone = self._db.conn.execute("DELETE FROM follows WHERE name = ? COLLATE NOCASE", (name,)).rowcount > 0
            self._touch(name, None)
            return gone

    def _touch(self, name: str, now: float | None) -> None:
        """Have the repos that a follow covers decided about anew; ``now`` is None: at once."""
        covered = name.replace("!", "!!").replace("%", "!%").replace("_", "!_")
        self._db.conn.execute(
            "UPDATE publishing SET touched = touched + 1, next_at = ? WHERE repo_id = ? COLLATE NOCASE "
            "OR repo_id LIKE ? ESCAPE '!' OR repo_id IN (SELECT id FROM repos WHERE follow = ?)",
            (now or 0.0, name, f"{covered}/%", name),
        )

    def follows(self) -> list[Follow]:
        """All follows by name."""
        rows = self._db.query(
            "SELECT name, consented, cursor, polled_at, swept_at, error FROM follows ORDER BY name COLLATE NOCASE"
        )
        return [Follow(**{**row, "consented": bool(row["consented"])}) for row in rows]

    def follow_of(self, repo_id: str) -> Follow | None:
        """The follow that covers a repo: its own before its owner's before a collection's that it is in."""
        # The Hub takes a name in either case.
        by_name = {follow.name.lower(): follow for follow in self.follows()}
        found = by_name.get(repo_id.lower()) or by_name.get(repo_id.lower().split("/")[0])
        if found is None and (repo := self.repo(repo_id)) and repo.follow:
            found = by_name.get(repo.follow.lower())
        return found

    def repo(self, repo_id: str) -> Repo | None:
        """A repo looked into before, or None."""
        for row in self._db.query("SELECT * FROM repos WHERE id = ?", (repo_id,)):
            return _repo(row)
        return None

    def named(self, repo_id: str) -> Repo | None:
        """A repo looked into before by its name in either case, or None."""
        for row in self._db.query("SELECT * FROM repos WHERE id = ? COLLATE NOCASE LIMIT 1", (repo_id,)):
            return _repo(row)
        return None

    def ids(self) -> list[str]:
        """The ids of all repos, in order."""
        return [row["id"] for row in self._db.query("SELECT id FROM repos ORDER BY id")]

    def ids_of_base(self, base_model: str) -> list[str]:
        """The ids of the repos that name a base model."""
        rows = self._db.query("SELECT id FROM repos WHERE base_model = ? COLLATE NOCASE ORDER BY id", (base_model,))
        return [row["id"] for row in rows]

    def repos(self) -> list[Repo]:
        """All repos looked into, by id."""
        return [_repo(row) for row in self._db.query("SELECT * FROM repos ORDER BY id")]

    def any(self) -> bool:
        """Whether any repo is known."""
        return any(True for _ in self._db.query("SELECT 1 FROM repos LIMIT 1"))

    def measured(self) -> list[str]:
        """The repos with a file that was measured or could not be, by id."""
        rows = self._db.query(
            "SELECT DISTINCT repo_id FROM variants WHERE key IN (SELECT variant_key FROM measurements) "
            "OR id IN (SELECT variant_id FROM jobs WHERE state IN ('failed', 'cancelled', 'dead')) ORDER BY repo_id"
        )
        return [row["repo_id"] for row in rows]

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
                "state = 'live', error = NULL, tries = 0, to_plan = 1, "
                # What was marked while it was looked into is looked into again.
                "due_at = CASE WHEN excluded.sha IS NULL OR due_at > excluded.seen_at THEN due_at END, "
                "due_sha = CASE WHEN excluded.sha IS NULL OR due_at > excluded.seen_at THEN due_sha END, "
                "source = CASE WHEN repos.source = 'follow' THEN 'follow' ELSE excluded.source END",
                (repo_id, sha, last_modified, source, note, base_model, json.dumps(config), now),
            )

    def set_stopped(self, repo_id: str, by: str | None) -> None:
        """By whose word nothing is published in a repo any more; None: by nobody's."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET stopped = ? WHERE id = ?", (by, repo_id))

    def set_base_model(self, repo_id: str, base_model: str) -> None:
        """What the headers of a repo's files name, where its card names nothing."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET base_model = ? WHERE id = ?", (base_model, repo_id))

    def save_variants(
        self,
        repo_id: str,
        found: Iterable[tuple[VariantFiles, Inspection | None, str | None]],
        *,
        revision: str,
        now: float,
    ) -> None:
        """Make ``found`` (files, inspection, note) the repo's current variants; the others become stale or removed.

        One with neither inspection nor note waits for its header to be read. One whose header said before that it
        is no model stays none.
        """
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
                    "state, first_seen, audit_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'current', ?, ?) "
                    "ON CONFLICT (repo_id, name, key) DO UPDATE SET "
                    "state = CASE WHEN state = 'no model' THEN state ELSE 'current' END, "
                    "revision = excluded.revision, files = excluded.files, inspection = excluded.inspection, "
                    "note = excluded.note, "
                    "audit_at = CASE WHEN state = 'no model' THEN NULL ELSE excluded.audit_at END",
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
                        now if inspection is None and note is None else None,
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
    return Repo(
        row["id"], row["sha"], row["source"], row["note"], row["base_model"], json.loads(row["config"]),
        state=row["state"], follow=row["follow"], due_sha=row["due_sha"], due_at=row["due_at"], error=row["error"],
        stopped=row["stopped"], last_modified=row["last_modified"],
    )  # fmt: skip


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
