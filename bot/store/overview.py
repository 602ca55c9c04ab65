"""What the dashboard and the webhooks ask of all tables at once: counts and short lists, never whole tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from bot.store.changes import marks

Row = dict[str, Any]

#: Repos whose names are the operator's to see, not the public's: it was ours to see only, or is not any more.
HIDDEN = ("private", "gone")


@dataclass(frozen=True, slots=True)
class Watched:
    """The follow that covers a repo; whether the repo is in the store, and at which commit it was looked into.

    ``due_sha`` and ``due_at``: the commit that it waits to be looked into at, and from when on.
    """

    follow: str
    known: bool
    sha: str | None
    due_sha: str | None
    due_at: float | None


class Overview:
    """Reading queries over all tables. Lists are bounded by ``limit``; each comes with a count of its own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def watched(self, repo_id: str) -> Watched | None:
        """The follow that covers a repo (its own, its owner's, or a collection's that it is in), or None."""
        [row] = self._rows(
            "SELECT COALESCE((SELECT name FROM follows WHERE name COLLATE NOCASE IN (?, ?) "
            "ORDER BY LENGTH(name) DESC LIMIT 1), (SELECT name FROM follows WHERE name = r.follow)) AS follow, "
            "r.id, r.sha, r.due_sha, r.due_at FROM (SELECT 1) LEFT JOIN repos r ON r.id = ?",
            repo_id, repo_id.split("/")[0], repo_id,
        )  # fmt: skip
        if row["follow"] is None:
            return None
        return Watched(row["follow"], row["id"] is not None, row["sha"], row["due_sha"], row["due_at"])

    def hidden(self) -> set[str]:
        """The repos whose names are not for the public."""
        return {row["id"] for row in self._rows(f"SELECT id FROM repos WHERE state IN {HIDDEN}")}

    def follows(self, *, limit: int) -> tuple[list[Row], int]:
        """Follows, those with an error first: name, consented, polled_at, swept_at, error, repos, state (a repo's)."""
        rows = self._rows(
            "SELECT f.name, f.consented, f.polled_at, f.swept_at, f.error, COALESCE(n.repos, 0) AS repos, r.state "
            "FROM follows f LEFT JOIN (SELECT follow, COUNT(*) AS repos FROM repos WHERE state IN ('live', 'gated') "
            "GROUP BY follow) n ON n.follow = f.name LEFT JOIN repos r ON r.id = f.name "
            "ORDER BY f.error IS NULL, f.name COLLATE NOCASE LIMIT ?",
            limit,
        )
        return rows, self._number("SELECT COUNT(*) FROM follows")

    def last_poll(self) -> float | None:
        """When a follow was last polled without an error."""
        return self._value("SELECT MAX(polled_at) FROM follows")

    def repos(self) -> dict[str, int]:
        """How many repos are in each state."""
        return self._counts("SELECT state, COUNT(*) AS n FROM repos GROUP BY state ORDER BY n DESC, state")

    def oldest_due(self, *, now: float) -> float | None:
        """Since when the first of the repos that are to be looked into now waits; those put off do not count."""
        return self._value("SELECT MIN(due_at) FROM repos WHERE due_at <= ?", now)

    def repo_errors(self, *, limit: int) -> tuple[list[Row], int]:
        """Repos whose last look failed: repo_id, error, until (when it is tried again)."""
        where = "FROM repos WHERE due_at IS NOT NULL AND error IS NOT NULL"
        rows = self._rows(f"SELECT id AS repo_id, error, due_at AS until {where} ORDER BY due_at LIMIT ?", limit)
        return rows, self._number(f"SELECT COUNT(*) {where}")

    def jobs(self, *states: str, limit: int) -> tuple[list[Row], int]:
        """Jobs in these states, the last changed first: id, kind, repo_id, variant, progress, error…, updated_at."""
        where = f"WHERE state IN ({marks(states)})"
        rows = self._rows(
            "SELECT j.id, j.kind, v.repo_id, v.name AS variant, j.progress, j.error_type, j.error, j.updated_at "
            f"FROM (SELECT * FROM jobs {where} ORDER BY updated_at DESC LIMIT ?) j JOIN variants v "
            "ON v.id = j.variant_id ORDER BY j.updated_at DESC",
            *states, limit,
        )  # fmt: skip
        found = [{**row, "progress": _share(row["progress"])} for row in rows]
        return found, self._number(f"SELECT COUNT(*) FROM jobs {where}", *states)

    def oldest_job(self) -> float | None:
        """When the first of the waiting jobs was queued."""
        return self._value("SELECT MIN(created_at) FROM jobs WHERE state = 'todo'")

    def pulls(self) -> dict[str, int]:
        """How many of our pulls are in each status."""
        return self._counts("SELECT status, COUNT(*) AS n FROM pulls GROUP BY status ORDER BY status")

    def open_pulls(self, *, limit: int) -> list[Row]:
        """Open pulls, the oldest first: repo_id, num, status, key, url, created_at, reason (the last decision's)."""
        return self._rows(
            "SELECT u.repo_id, u.num, u.status, u.key, u.url, u.created_at, p.reason FROM pulls u "
            "LEFT JOIN publishing p ON p.repo_id = u.repo_id WHERE u.status IN ('open', 'draft') "
            "ORDER BY u.created_at, u.repo_id LIMIT ?",
            limit,
        )

    def decisions(self) -> dict[str, int]:
        """How many cards had each decision."""
        return self._counts("SELECT action, COUNT(*) AS n FROM publishing GROUP BY action ORDER BY action")

    def reasons(self, *, but: Sequence[str], limit: int) -> tuple[list[Row], int]:
        """Why cards were decided as they were, by how many: action, reason, repos, repo_id (one of them), next_at."""
        where = f"FROM publishing WHERE reason != '' AND action NOT IN ({','.join('?' * len(but))})"
        rows = self._rows(
            "SELECT action, reason, COUNT(*) AS repos, MIN(repo_id) AS repo_id, MIN(next_at) AS next_at "
            f"{where} GROUP BY action, reason ORDER BY repos DESC, action, reason LIMIT ?",
            *but, limit,
        )  # fmt: skip
        return rows, self._number(f"SELECT COUNT(*) FROM (SELECT 1 {where} GROUP BY action, reason)", *but)

    def refusals(self, *, limit: int) -> tuple[list[Row], int]:
        """Who said no: repo_id and how (``stopped`` by word, ``disabled`` in its file, or a ``closed`` pull's num)."""
        told = (
            "SELECT id AS repo_id, 'stopped' AS how, stopped AS by, NULL AS num FROM repos WHERE stopped IS NOT NULL "
            "UNION ALL SELECT id, 'disabled', NULL, NULL FROM repos WHERE stopped IS NULL "
            "AND json_extract(config, '$.enabled') = 0 AND json_extract(config, '$.problem') IS NULL "
            "UNION ALL SELECT repo_id, 'closed', NULL, num FROM pulls u WHERE status = 'closed' AND NOT EXISTS "
            "(SELECT 1 FROM pulls v WHERE v.repo_id = u.repo_id AND v.num > u.num)"
        )
        rows = self._rows(f"SELECT * FROM ({told}) ORDER BY repo_id, how LIMIT ?", limit)
        return rows, self._number(f"SELECT COUNT(*) FROM ({told})")

    def config_problems(self, *, limit: int) -> tuple[list[Row], int]:
        """Repos whose ``.quantcard.yml`` can't be followed: repo_id, problem."""
        where = "FROM repos WHERE json_extract(config, '$.problem') IS NOT NULL"
        rows = self._rows(
            f"SELECT id AS repo_id, json_extract(config, '$.problem') AS problem {where} ORDER BY id LIMIT ?", limit
        )
        return rows, self._number(f"SELECT COUNT(*) {where}")

    def disputes(self, *, limit: int) -> tuple[list[Row], int]:
        """Open disputes, the newest first: id, repo_id, num, author, text, at."""
        where = "FROM answers WHERE word = 'dispute' AND state = 'open'"
        rows = self._rows(f"SELECT id, repo_id, num, author, text, at {where} ORDER BY id DESC LIMIT ?", limit)
        return rows, self._number(f"SELECT COUNT(*) {where}")

    def requests(self) -> int:
        """How many requests wait for a look."""
        return self._number("SELECT COUNT(*) FROM requests WHERE state = 'open'")

    def failures_of(self, repo_id: str) -> list[Row]:
        """A repo's dead jobs, the last first: as :meth:`jobs`."""
        return [
            {**row, "progress": None}
            for row in self._rows(
                "SELECT j.id, j.kind, v.repo_id, v.name AS variant, j.error_type, j.error, j.updated_at "
                "FROM variants v JOIN jobs j ON j.variant_id = v.id "
                "WHERE v.repo_id = ? AND j.state IN ('failed', 'dead') ORDER BY j.updated_at DESC LIMIT 50",
                repo_id,
            )
        ]

    def _rows(self, sql: str, *values: object) -> list[Row]:
        return list(self._db.query(sql, values))

    def _counts(self, sql: str) -> dict[str, int]:
        return {str(name): int(n) for name, n in self._db.conn.execute(sql)}

    def _number(self, sql: str, *values: object) -> int:
        return int(self._value(sql, *values) or 0)

    def _value(self, sql: str, *values: object) -> float | None:
        found = self._db.conn.execute(sql, values).fetchone()
        return found[0] if found else None


def _share(progress: str | None) -> float | None:
    """How much of a job is done, 0 to 1, or None where it is not told."""
    told = json.loads(progress) if progress else {}
    done, total = told.get("done"), told.get("total")
    return min(1.0, max(0.0, done / total)) if isinstance(done, int | float) and total else None
