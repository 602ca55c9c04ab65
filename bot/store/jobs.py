"""The queue's table: todo → leased → running → done | failed | cancelled | dead, an event row for each change.

``failed`` is a job's own fault (a broken file), ``dead`` one whose tries are used up or whose baseline never came.
Who has which job is :mod:`bot.store.leases`'; where a job stands in the queue is :mod:`bot.store.standing`'s.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlite_utils import Database

from bot.store.changes import BY_BASELINE, ENDED, TAKEN, UNDONE, again, end, marks, note_event
from bot.store.db import immediate
from core.contract import ProgressEvent
from core.need import Need
from core.protocol import Protocol
from core.sizes import Kind
from core.turns import URGENCIES, Urgency, turn

#: Errors of a file that lay in one repo and may be had from another one.
_ELSEWHERE = ("HubError", "HubNotFoundError", "HubAuthError", "HubGatedError")
#: Of variants that are not in a repo any more.
_GONE = "SELECT id FROM variants WHERE state != 'current'"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be queued; ``key`` makes queueing it twice one job."""

    key: str
    kind: Kind
    variant_id: int
    reference_id: int | None
    protocol: Protocol
    depends_on_key: str | None = None
    urgency: Urgency = "back-fill"
    owner: str = ""
    size_bytes: int = 0
    need: Need | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A stored job.

    ``run`` counts the runs that ended badly, so that (key, run) names one run; ``turn`` is its place on the queue's
    clock (:mod:`core.turns`); ``blocked`` says that its baseline is waited for (1) or that it is put off (2);
    ``seconds`` is how long measuring took.
    """

    id: int
    key: str
    kind: Kind
    variant_id: int
    reference_id: int | None
    protocol: Protocol
    state: str
    attempts: int
    not_before: float
    error_type: str | None
    error: str | None
    progress: ProgressEvent | None
    updated_at: float
    run: int = 0
    lost: int = 0
    urgency: Urgency = "back-fill"
    owner: str = ""
    turn: float = 0.0
    blocked: int = 0
    size_bytes: int = 0
    need: Need | None = None
    runner: str | None = None
    stage: str | None = None
    began_at: float | None = None
    seconds: float | None = None
    cancel: str | None = None
    #: the runner that is not to measure it: another one's word is wanted
    avoid: str | None = None
    created_at: float = 0.0

    @property
    def run_id(self) -> str:
        """The idempotency key of its present run: [a-z0-9-], 48 characters at most."""
        return f"{self.key[:40]}-{self.run}"


class Jobs:
    """Tables jobs and job_events."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, jobs: list[NewJob], *, now: float) -> int:
        """Queue jobs that are not there yet; a dependency must come before what depends on it. Returns how many.

        All jobs of one variant get the same turn, so that its file is fetched once. A job that waits already and is
        asked for more urgently moves up, and takes what it waits for along. A job whose file has left the repo it was
        found in is moved to where it lies now.
        """
        added = 0
        turns: dict[int, float] = {}
        with immediate(self._db):
            for job in jobs:
                urgency = URGENCIES.index(job.urgency)
                if job.variant_id not in turns:
                    turns[job.variant_id] = self._turn(job.owner, urgency, job.size_bytes, now)
                parent = self._by_key(job.depends_on_key) if job.depends_on_key else None
                waits = parent is not None and parent["state"] != "done"
                cursor = self._db.conn.execute(
                    "INSERT INTO jobs (key, kind, variant_id, reference_id, protocol, urgency, owner, turn, "
                    "size_bytes, need, need_memory, depends_on, blocked, created_at, updated_at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                    (
                        job.key,
                        job.kind,
                        job.variant_id,
                        job.reference_id,
                        job.protocol.model_dump_json(),
                        urgency,
                        job.owner,
                        turns[job.variant_id],
                        job.size_bytes,
                        json.dumps(asdict(job.need)) if job.need else None,
                        job.need.memory if job.need else None,
                        parent["id"] if parent else None,
                        BY_BASELINE if waits else 0,
                        now,
                        now,
                    ),
                )
                if cursor.rowcount:
                    added += 1
                    new = int(cursor.lastrowid or 0)
                    note_event(self._db, new, "todo", f"queued: {job.urgency}", now=now)
                    if parent and parent["state"] in UNDONE:
                        reason = f"Its baseline could not be recorded: {parent['error']}"
                        end(self._db, new, "dead", reason=reason, error_type="Dependency", now=now)
                else:
                    self._move(job, now)
                    self._hurry("key", job.key, urgency, turns[job.variant_id])
                if parent and waits:
                    self._hurry("key", job.depends_on_key, urgency, turns[job.variant_id])
        return added

    def _turn(self, owner: str, urgency: int, size_bytes: int, now: float) -> float:
        last = self._db.conn.execute(
            "SELECT MAX(turn) FROM jobs INDEXED BY jobs_by_owner WHERE owner = ? AND urgency = ? AND state = 'todo'",
            (owner, urgency),
        ).fetchone()[0]
        return turn(now=now, last=last, urgency=URGENCIES[urgency], size_bytes=size_bytes)

    def _hurry(self, column: str, value: object, urgency: int, at: float) -> None:
        """Let a waiting job's turn come as early as that of the job that wants it."""
        self._db.conn.execute(
            f"UPDATE jobs SET turn = ?, urgency = MAX(urgency, ?) WHERE {column} = ? AND state = 'todo' AND turn > ?",
            (at, urgency, value, at),
        )

    def _move(self, job: NewJob, now: float) -> None:
        """Point a job that was not run at this variant, if the one it points at is gone (the same file elsewhere)."""
        rows = self._db.query(
            f"SELECT id, state FROM jobs WHERE key = ? AND (variant_id IN ({_GONE}) OR reference_id IN ({_GONE})) "
            f"AND (state = 'todo' OR (state IN {UNDONE} AND error_type IN ({marks(_ELSEWHERE)})))",
            (job.key, *_ELSEWHERE),
        )
        for row in list(rows):
            self._db.conn.execute(
                "UPDATE jobs SET variant_id = ?, reference_id = ?, owner = ?, updated_at = ? WHERE id = ?",
                (job.variant_id, job.reference_id, job.owner, now, row["id"]),
            )
            if row["state"] != "todo":
                again(self._db, row["id"], reason="its file lies elsewhere too", now=now)

    def withdraw_outdated(self) -> int:
        """Take waiting jobs of files that were replaced or removed out of the queue; returns how many.

        They are queued again when the file comes back.
        """
        withdrawn = 0
        with immediate(self._db):
            # What depends on others first, then what nothing depends on any more.
            for _ in range(2):
                withdrawn += self._db.conn.execute(
                    f"DELETE FROM jobs WHERE state = 'todo' AND (variant_id IN ({_GONE}) OR reference_id IN ({_GONE})) "
                    "AND id NOT IN (SELECT depends_on FROM jobs WHERE depends_on IS NOT NULL)"
                ).rowcount
        return withdrawn

    def retry(self, job_id: int, *, now: float) -> bool:
        """Give a job that ended without a result fresh tries, with the baseline it waits for and what waited for it.

        False if it did not end so.
        """
        with immediate(self._db):
            row = next(self._db.query(f"SELECT * FROM jobs WHERE id = ? AND state IN {UNDONE}", (job_id,)), None)
            if row is None:
                return False
            found = self._db.query(
                f"SELECT id FROM jobs WHERE state IN {UNDONE} AND (id = ? OR id = ? "
                "OR (depends_on = ? AND error_type = 'Dependency')) ORDER BY id",
                (job_id, row["depends_on"], job_id),
            )
            for one in list(found):
                again(self._db, one["id"], reason="asked to try again", now=now)
            return True

    def cancel(self, job_id: int, *, reason: str, now: float) -> str | None:
        """Take a job back, and what waits for it: at once if it waits; else its worker gives it up within seconds.

        Returns its state ("cancelled", or the state in which its worker still has it); None if it ended already.
        """
        with immediate(self._db):
            row = next(self._db.query("SELECT state FROM jobs WHERE id = ?", (job_id,)), None)
            if row is None or row["state"] in ENDED:
                return None
            if row["state"] in TAKEN:
                self._db.conn.execute("UPDATE jobs SET cancel = ? WHERE id = ?", (reason, job_id))
                note_event(self._db, job_id, str(row["state"]), f"to be cancelled: {reason}", now=now)
                return str(row["state"])
            end(self._db, job_id, "cancelled", reason=reason, error_type="Cancelled", now=now)
            return "cancelled"

    def recheck(self, job_id: int, *, avoid: str, reason: str, now: float) -> None:
        """Queue a job that is done once more, for any runner but ``avoid``."""
        with immediate(self._db):
            again(self._db, job_id, reason=reason, now=now)
            self._db.conn.execute("UPDATE jobs SET avoid = ? WHERE id = ?", (avoid, job_id))

    def note(self, job_id: int, text: str, *, now: float) -> None:
        """Add a remark to a job's history."""
        with immediate(self._db):
            row = next(self._db.query("SELECT state FROM jobs WHERE id = ?", (job_id,)))
            note_event(self._db, job_id, str(row["state"]), text, now=now)

    def hurry(self, repo_id: str, *, now: float) -> int:
        """Let the waiting jobs of a repo's files come as soon as those that people ask for; returns how many.

        Jobs that others wait for come along.
        """
        with immediate(self._db):
            rows = list(
                self._db.query(
                    "SELECT id, depends_on, variant_id, owner, size_bytes FROM jobs WHERE state = 'todo' "
                    "AND variant_id IN (SELECT id FROM variants WHERE repo_id = ? AND state = 'current') "
                    "ORDER BY turn, id",
                    (repo_id,),
                )
            )
            turns: dict[int, float] = {}
            asked = URGENCIES.index("asked")
            for row in rows:
                at = turns.get(row["variant_id"])
                if at is None:
                    at = turns[row["variant_id"]] = self._turn(row["owner"], asked, row["size_bytes"], now)
                for job_id in (row["id"], row["depends_on"]):
                    self._hurry("id", job_id, asked, at)
        return len(rows)

    def redo(self, key: str, *, reason: str, now: float) -> None:
        """Queue a finished job once more: what it made is lost. Its waiting ones wait again."""
        with immediate(self._db):
            row = self._by_key(key)
            if row and row["state"] in ENDED:
                again(self._db, row["id"], reason=reason, now=now)

    def remeasure(self, repo_id: str, *, protocols: Collection[str], now: float) -> int:
        """Queue the ended quality and speed jobs of a repo's current files once more; returns how many.

        Args:
            protocols: fingerprints of the protocols that are meant.
        """
        with immediate(self._db):
            rows = self._db.query(
                f"SELECT id, protocol FROM jobs WHERE kind IN ('quality', 'speed') AND state IN {ENDED} "
                "AND variant_id IN (SELECT id FROM variants WHERE key IN "
                "(SELECT key FROM variants WHERE repo_id = ? AND state = 'current'))",
                (repo_id,),
            )
            found = [
                row["id"]
                for row in rows
                if Protocol.model_validate(json.loads(row["protocol"])).fingerprint in protocols
            ]
            for job_id in found:
                again(self._db, job_id, reason="the repo's owner asked for it", now=now)
        return len(found)

    def pause(self, reason: str) -> None:
        """Hand out no job any more; those under way go on."""
        self._db.conn.execute("INSERT OR REPLACE INTO keyed (name, value) VALUES ('queue:paused', ?)", (reason,))

    def resume(self) -> None:
        """Hand out jobs again."""
        self._db.conn.execute("DELETE FROM keyed WHERE name = 'queue:paused'")

    def paused(self) -> str | None:
        """Why no job is handed out; None: they are."""
        found = self._db.conn.execute("SELECT value FROM keyed WHERE name = 'queue:paused'").fetchone()
        return found[0] if found else None

    def job(self, job_id: int) -> Job | None:
        """One job, or None."""
        for row in self._db.query("SELECT * FROM jobs WHERE id = ?", (job_id,)):
            return job_of(row)
        return None

    def by_keys(self, keys: list[str]) -> dict[str, Job]:
        """The jobs with these keys, by key."""
        found = (self._by_key(key) for key in keys)
        return {row["key"]: job_of(row) for row in found if row}

    def all(self, *, states: tuple[str, ...] = (), limit: int = 1000) -> list[Job]:
        """Jobs in these states (all by default): those under way, then the queue in its order, then the newest."""
        found: list[Job] = []
        for group, order in ((TAKEN, "turn, id"), (("todo",), "turn, id"), (ENDED, "updated_at DESC")):
            wanted = tuple(state for state in group if not states or state in states)
            if wanted and len(found) < limit:
                rows = self._db.query(
                    f"SELECT * FROM jobs WHERE state IN ({marks(wanted)}) ORDER BY {order} LIMIT ?",
                    [*wanted, limit - len(found)],
                )
                found += [job_of(row) for row in rows]
        return found

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        rows = self._db.query("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state ORDER BY state")
        return {row["state"]: row["n"] for row in rows}

    def next_start(self) -> float | None:
        """When the next job may be claimed (0: now), or a running one's lease ends (seconds since the epoch).

        None when there is neither. What waits for a running job counts with that job's lease.
        """
        row = next(
            self._db.query(
                "SELECT MIN(at) AS at FROM (SELECT 0.0 AS at WHERE EXISTS "
                "(SELECT 1 FROM jobs INDEXED BY jobs_ready WHERE state = 'todo' AND blocked = 0) "
                "UNION ALL SELECT MIN(not_before) FROM jobs INDEXED BY jobs_delayed "
                "WHERE state = 'todo' AND blocked = 2 UNION ALL SELECT MIN(lease_until) "
                "FROM jobs INDEXED BY jobs_leased WHERE state IN ('leased', 'running'))"
            )
        )
        return row["at"]

    def events(self, job_id: int) -> list[dict[str, Any]]:
        """A job's history: at, state, reason."""
        return list(self._db.query("SELECT at, state, reason FROM job_events WHERE job_id = ? ORDER BY id", (job_id,)))

    def _by_key(self, key: str) -> dict[str, Any] | None:
        return next(iter(self._db.query("SELECT * FROM jobs WHERE key = ?", (key,))), None)


def job_of(row: dict[str, Any]) -> Job:
    """A row of the table as a value."""
    same = {name: row[name] for name in Job.__slots__ if name not in ("protocol", "progress", "need", "urgency")}
    return Job(
        **same,
        protocol=Protocol.model_validate(json.loads(row["protocol"])),
        progress=ProgressEvent.model_validate_json(row["progress"]) if row["progress"] else None,
        need=_need(row["need"]),
        urgency=URGENCIES[row["urgency"]],
    )


def _need(text: str | None) -> Need | None:
    """A stored need; None where it was written by another quantcard, of other parts."""
    try:
        return Need(**json.loads(text)) if text else None
    except TypeError:
        return None
