"""How far each follow's list was read, which repos wait to be looked into, which headers wait to be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from bot.store.db import immediate
from bot.store.repos import RepoState, Variant, _variant
from core.audit import Inspection
from core.patience import LONGEST_S, wait


@dataclass(frozen=True, slots=True)
class Known:
    """What a listing's entry is compared with."""

    sha: str | None
    due_sha: str | None
    last_modified: str | None
    state: RepoState
    source: str
    follow: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """A repo that waits to be looked into; ``source``: followed, or only requested."""

    id: str
    due_sha: str | None
    source: str


class Watching:
    """Columns of follows, repos and variants that say what is still to be read from the Hub."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def note_poll(self, name: str, *, cursor: str | None, swept: bool, error: str | None, now: float) -> None:
        """Remember how a poll of a follow ended: with an error, or having read its list down to ``cursor``."""
        with immediate(self._db):
            if error is not None:
                self._db.conn.execute("UPDATE follows SET error = ?, tried_at = ? WHERE name = ?", (error, now, name))
                return
            self._db.conn.execute(
                "UPDATE follows SET error = NULL, polled_at = ?, tried_at = ?, cursor = COALESCE(?, cursor), "
                "swept_at = CASE WHEN ? THEN ? ELSE swept_at END WHERE name = ?",
                (now, now, cursor, swept, now, name),
            )

    def turns(self) -> list[str]:
        """The follows in the order in which they are polled: those first that were not tried for the longest time."""
        rows = self._db.query("SELECT name FROM follows ORDER BY tried_at IS NOT NULL, tried_at, name COLLATE NOCASE")
        return [row["name"] for row in rows]

    def known(self, repo_id: str) -> Known | None:
        """What is known of a repo without reading all of it, or None."""
        for row in self._db.query(
            "SELECT sha, due_sha, last_modified, state, source, follow FROM repos WHERE id = ?", (repo_id,)
        ):
            return Known(**row)
        return None

    def mark_due(
        self,
        repo_id: str,
        *,
        sha: str | None,
        now: float,
        follow: str | None,
        last_modified: str | None = None,
    ) -> None:
        """Have a repo looked into; ``follow``: the follow by which it is watched, None: it was requested."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT INTO repos (id, source, follow, due_sha, due_at, last_modified) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET due_sha = excluded.due_sha, due_at = excluded.due_at, error = NULL, "
                "last_modified = COALESCE(excluded.last_modified, last_modified), "
                "follow = COALESCE(excluded.follow, follow), "
                "source = CASE WHEN excluded.source = 'follow' THEN 'follow' ELSE source END",
                (repo_id, "follow" if follow else "request", follow, sha, now, last_modified),
            )

    def due(self, *, now: float, limit: int) -> list[Due]:
        """Repos to look into now, the last changed first: a new upload before the backlog of a first sync."""
        rows = self._db.query(
            "SELECT id, due_sha, source FROM repos WHERE due_at IS NOT NULL AND due_at <= ? "
            "ORDER BY last_modified DESC, id LIMIT ?",
            (now, limit),
        )
        return [Due(**row) for row in rows]

    def put_off(self, repo_id: str, *, error: str, now: float, first: float) -> None:
        """Look into a repo later, ever later, since something was in the way; ``first``: seconds, the first time."""
        with immediate(self._db):
            [row] = self._db.query("SELECT tries FROM repos WHERE id = ?", (repo_id,))
            until = now + wait(row["tries"], first=first)
            self._db.conn.execute(
                "UPDATE repos SET due_at = ?, error = ?, tries = tries + 1 WHERE id = ?", (until, error, repo_id)
            )

    def forget_due(self, repo_id: str) -> None:
        """A repo that nobody watches any more needs no look."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET due_at = NULL, due_sha = NULL WHERE id = ?", (repo_id,))

    def set_state(self, repo_id: str, state: RepoState, *, note: str | None, now: float) -> None:
        """A repo whose files can't be read any more: what was measured stays; when it comes back it is looked into."""
        with immediate(self._db):
            self._db.conn.execute(
                "UPDATE repos SET state = ?, note = ?, sha = NULL, due_sha = NULL, due_at = NULL, error = NULL, "
                "seen_at = ? WHERE id = ?",
                (state, note, now, repo_id),
            )
            self._db.conn.execute(
                "UPDATE variants SET state = 'removed', audit_at = NULL WHERE repo_id = ? AND state = 'current'",
                (repo_id,),
            )
            # The dataset tells that its files are gone.
            self._db.conn.execute("INSERT OR REPLACE INTO keyed (name, value) VALUES ('export', 'due')")

    def set_gated(self, repo_id: str, *, note: str, until: float) -> None:
        """A repo whose files are not for our token: its headers are tried again later."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET state = 'gated', note = ? WHERE id = ?", (note, repo_id))
            self._db.conn.execute(
                "UPDATE variants SET audit_at = ? WHERE repo_id = ? AND audit_at IS NOT NULL", (until, repo_id)
            )

    def set_live(self, repo_id: str) -> None:
        """A repo can be read again."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET state = 'live', note = NULL WHERE id = ?", (repo_id,))

    def rewatch(self, repo_id: str, follow: str | None) -> None:
        """A repo that left the collection by which it was watched: by another follow now, or by none."""
        with immediate(self._db):
            self._db.conn.execute(
                "UPDATE repos SET follow = ?, source = ? WHERE id = ?",
                (follow, "follow" if follow else "request", repo_id),
            )

    def rename(self, old: str, new: str, *, now: float) -> None:
        """A repo has another name now: its pulls and its own follow go with it, its files are found under that."""
        with immediate(self._db):
            self.set_state(old, "moved", note=f"It is called {new} now.", now=now)
            for table in ("pulls", "publishing", "answers", "follows"):
                column = "name" if table == "follows" else "repo_id"
                self._db.conn.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {column} = ?", (new, old))
                self._db.conn.execute(f"DELETE FROM {table} WHERE {column} = ?", (old,))
            self._db.conn.execute(
                "UPDATE repos SET stopped = COALESCE(stopped, (SELECT stopped FROM repos WHERE id = ?)) WHERE id = ?",
                (old, new),
            )

    def ids_of(self, owner: str) -> set[str]:
        """The live repos of an owner that were looked into or wait for it, for comparison with its whole list."""
        rows = self._db.query(
            "SELECT id FROM repos WHERE id LIKE ? ESCAPE '!' AND state IN ('live', 'gated') AND source = 'follow'",
            (owner.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "/%",),
        )
        return {row["id"] for row in rows}

    def ids_by_follow(self, name: str) -> set[str]:
        """The live repos that are watched by this follow."""
        rows = self._db.query("SELECT id FROM repos WHERE follow = ? AND state IN ('live', 'gated')", (name,))
        return {row["id"] for row in rows}

    def waiting(self) -> tuple[int, int]:
        """(repos that wait to be looked into, variants whose header waits to be read)."""
        [row] = self._db.query(
            "SELECT (SELECT COUNT(*) FROM repos WHERE due_at IS NOT NULL) AS repos, "
            "(SELECT COUNT(*) FROM variants WHERE audit_at IS NOT NULL AND state = 'current') AS headers"
        )
        return row["repos"], row["headers"]

    def to_audit(self, *, now: float, limit: int) -> list[Variant]:
        """Variants whose header is to be read now, those of the last changed repos first."""
        rows = self._db.query(
            "SELECT variants.* FROM variants JOIN repos ON repos.id = variants.repo_id WHERE audit_at IS NOT NULL "
            "AND audit_at <= ? AND variants.state = 'current' ORDER BY repos.last_modified DESC, variants.id LIMIT ?",
            (now, limit),
        )
        return [_variant(row) for row in rows]

    def save_audit(self, variant_id: int, inspection: Inspection | None, note: str | None, *, now: float) -> None:
        """What a variant's header said, or why it can't be read: that is looked at once more a day later."""
        with immediate(self._db):
            [row] = self._db.query("SELECT note FROM variants WHERE id = ?", (variant_id,))
            again = now + LONGEST_S if inspection is None and note is not None and row["note"] is None else None
            self._db.conn.execute(
                "UPDATE variants SET inspection = ?, note = ?, audit_at = ?, tries = 0 WHERE id = ?",
                (inspection.model_dump_json() if inspection else None, note, again, variant_id),
            )

    def no_model(self, variant_id: int) -> None:
        """The header says that it is no model: the file is no variant, and not asked again."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE variants SET state = 'no model', audit_at = NULL WHERE id = ?", (variant_id,))

    def put_off_audit(self, variant_id: int, *, now: float, first: float) -> None:
        """Read a header later, ever later; ``first``: seconds, the first time."""
        with immediate(self._db):
            [row] = self._db.query("SELECT tries FROM variants WHERE id = ?", (variant_id,))
            self._db.conn.execute(
                "UPDATE variants SET audit_at = ?, tries = tries + 1 WHERE id = ?",
                (now + wait(row["tries"], first=first), variant_id),
            )

    def audit_again(self, version: int, *, now: float) -> int:
        """Have headers read again that an older version of the audit read; returns how many."""
        with immediate(self._db):
            return self._db.conn.execute(
                "UPDATE variants SET audit_at = ? WHERE state = 'current' AND audit_at IS NULL "
                "AND inspection IS NOT NULL AND COALESCE(json_extract(inspection, '$.audit_version'), 1) < ?",
                (now, version),
            ).rowcount

    def inspection_of(self, key: str, label: str, version: int) -> Inspection | None:
        """What the header of a file with this identity and label said elsewhere to this version, or None."""
        for row in self._db.query(
            "SELECT * FROM variants WHERE key = ? AND label = ? AND inspection IS NOT NULL AND note IS NULL "
            "AND json_extract(inspection, '$.audit_version') = ? LIMIT 1",
            (key, label, version),
        ):
            return _variant(row).inspection
        return None

    def want_plan(self, repo_ids: Iterable[str]) -> None:
        """Have the jobs of these repos planned anew."""
        with immediate(self._db):
            self._db.conn.executemany("UPDATE repos SET to_plan = 1 WHERE id = ?", [(one,) for one in repo_ids])

    def want_plan_of_base(self, base_model: str) -> None:
        """Have the jobs of all repos of a base model planned anew: it may have got a reference."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET to_plan = 1 WHERE base_model = ? COLLATE NOCASE", (base_model,))

    def want_plan_of_all(self) -> None:
        """Have everything planned anew: the protocol in force or the trusted owners are others."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET to_plan = 1")

    def want_plan_of_sharers(self) -> None:
        """Have repos planned anew that hold a file whose job stands for another repo's, which lost it."""
        with immediate(self._db):
            self._db.conn.execute(
                "UPDATE repos SET to_plan = 1 WHERE id IN (SELECT here.repo_id FROM jobs "
                "JOIN variants AS gone ON gone.id IN (jobs.variant_id, jobs.reference_id) AND gone.state <> 'current' "
                "JOIN variants AS here ON here.key = gone.key AND here.state = 'current' "
                "WHERE jobs.state IN ('todo', 'leased', 'running'))"
            )

    def to_plan(self) -> list[str]:
        """The repos whose jobs are to be planned."""
        return [row["id"] for row in self._db.query("SELECT id FROM repos WHERE to_plan ORDER BY id")]

    def planned(self, repo_id: str) -> None:
        """A repo's jobs are planned."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE repos SET to_plan = 0 WHERE id = ?", (repo_id,))
