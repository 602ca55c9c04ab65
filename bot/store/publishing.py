"""What was decided about each repo's card, and when it is looked at again."""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from bot.store.db import immediate


@dataclass(frozen=True, slots=True)
class Published:
    """The last decision about a repo's card. ``next_at``: when it is decided again; None: when something happens."""

    repo_id: str
    key: str
    sha: str | None
    action: str
    reason: str
    num: int | None
    at: float
    next_at: float | None
    touched: int = 0


class Publishing:
    """Table publishing. What happens to a repo (a job ends, its commit changes, somebody speaks) touches it.

    Touches are counted, so that one that comes while a repo is decided about is not lost.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def touch(self, repo_id: str, *, now: float) -> None:
        """Have a repo's card decided anew at the next publishing."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO publishing (repo_id, key, action, reason, at, next_at) VALUES (?, '', 'new', '', 0, ?) "
                "ON CONFLICT (repo_id) DO UPDATE SET touched = touched + 1, "
                "next_at = MIN(COALESCE(next_at, excluded.next_at), excluded.next_at)",
                (repo_id, now),
            )

    def touch_all(self, *, now: float) -> None:
        """Have every card decided anew: the protocol in force is another one."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO publishing (repo_id, key, action, reason, at, next_at) "
                "SELECT id, '', 'new', '', 0, ? FROM repos WHERE true ON CONFLICT (repo_id) DO UPDATE SET "
                "touched = touched + 1, next_at = MIN(COALESCE(next_at, excluded.next_at), excluded.next_at)",
                (now,),
            )

    def due(self, *, now: float) -> list[str]:
        """The repos whose cards are to be decided now, the longest waiting first."""
        rows = self._db.query(
            "SELECT repo_id FROM publishing WHERE next_at IS NOT NULL AND next_at <= ? ORDER BY next_at, repo_id",
            (now,),
        )
        return [row["repo_id"] for row in rows]

    def note(
        self,
        repo_id: str,
        *,
        key: str,
        sha: str | None,
        action: str,
        reason: str,
        num: int | None,
        now: float,
        next_at: float | None,
        touched: int,
    ) -> None:
        """Remember a decision.

        Args:
            touched: the count of touches (:meth:`touches`) when the deciding began; of a repo that was touched since,
                it is decided again at once.
        """
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO publishing (repo_id, key, sha, action, reason, num, at, next_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (repo_id) DO UPDATE SET key = excluded.key, "
                "sha = excluded.sha, action = excluded.action, reason = excluded.reason, num = excluded.num, "
                "at = excluded.at, next_at = CASE WHEN touched > ? THEN excluded.at ELSE excluded.next_at END",
                (repo_id, key, sha, action, reason, num, now, next_at, touched),
            )

    def touches(self, repo_id: str) -> int:
        """How often a repo was touched so far."""
        for row in self._db.query("SELECT touched FROM publishing WHERE repo_id = ?", (repo_id,)):
            return int(row["touched"])
        return 0

    def get(self, repo_id: str) -> Published | None:
        """The last decision about a repo, or None."""
        for row in self._db.query("SELECT * FROM publishing WHERE repo_id = ?", (repo_id,)):
            return Published(**row)
        return None

    def all(self) -> list[Published]:
        """All decisions, by repo."""
        return [Published(**row) for row in self._db.query("SELECT * FROM publishing ORDER BY repo_id")]
