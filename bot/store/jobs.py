"""The queue's table: todo → running → done | dead, with leases, heartbeats, retries and an event for each change.

A job is claimed by whoever writes its lease first. A lease that runs out (its worker died) puts the job back.
Retryable failures come back later, others are dead at once, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from bot.store.db import immediate
from core.contract import ProgressEvent
from core.protocol import Protocol

#: Attempts before a retryable failure is dead.
MAX_ATTEMPTS = 3
#: Deferrals before a Hub that does not answer (or a full disk) makes a job dead: with the delays below, a day.
MAX_DEFERRALS = 32
#: Seconds before the second attempt; doubled for each further one, up to :data:`MAX_BACKOFF`.
BACKOFF = 5.0
MAX_BACKOFF = 3600.0
#: Errors of a file that lay in one repo and may be had from another one.
_ELSEWHERE = ("HubError", "HubNotFoundError", "HubAuthError")
#: Of variants that are not in a repo any more.
_GONE = "SELECT id FROM variants WHERE state != 'current'"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be queued; ``key`` makes queueing it twice one job."""

    key: str
    kind: str
    variant_id: int
    reference_id: int | None
    protocol: Protocol
    depends_on_key: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A stored job."""

    id: int
    key: str
    kind: str
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


class Jobs:
    """Tables jobs and job_events."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, jobs: list[NewJob], *, now: float) -> int:
        """Queue jobs that are not there yet; a dependency must come before what depends on it. Returns how many.

        A job whose file has left the repo it was found in is moved to where it lies now.
        """
        added = 0
        with immediate(self._db):
            for job in jobs:
                parent = self._by_key(job.depends_on_key) if job.depends_on_key else None
                cursor = self._db.conn.execute(
                    "INSERT INTO jobs (key, kind, variant_id, reference_id, protocol, priority, depends_on, "
                    "created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                    (
                        job.key,
                        job.kind,
                        job.variant_id,
                        job.reference_id,
                        job.protocol.model_dump_json(),
                        job.priority,
                        parent["id"] if parent else None,
                        now,
                        now,
                    ),
                )
                if cursor.rowcount:
                    added += 1
                    self._event(int(cursor.lastrowid or 0), "todo", None, now)
                else:
                    self._move(job, now)
        return added

    def _move(self, job: NewJob, now: float) -> None:
        """Point a job that was not run at this variant, if the one it points at is gone (the same file elsewhere)."""
        self._db.conn.execute(
            "UPDATE jobs SET variant_id = ?, reference_id = ?, updated_at = ?, "
            "attempts = CASE state WHEN 'dead' THEN 0 ELSE attempts END, state = 'todo' "
            f"WHERE key = ? AND (variant_id IN ({_GONE}) OR reference_id IN ({_GONE})) "
            f"AND (state = 'todo' OR (state = 'dead' AND error_type IN ({','.join('?' * len(_ELSEWHERE))})))",
            (job.variant_id, job.reference_id, now, job.key, *_ELSEWHERE),
        )

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

    def claim(self, worker: str, *, now: float, lease: float) -> Job | None:
        """Take the next job that may start, by priority and age, or None; dead dependencies are passed on first."""
        with immediate(self._db):
            self._recover(now)
            self._bury_dependents(now)
            for row in self._db.query(
                "SELECT j.* FROM jobs j LEFT JOIN jobs d ON d.id = j.depends_on WHERE j.state = 'todo' "
                "AND j.not_before <= ? AND (d.id IS NULL OR d.state = 'done') "
                "ORDER BY j.priority DESC, j.id LIMIT 1",
                (now,),
            ):
                self._db.conn.execute(
                    "UPDATE jobs SET state = 'running', lease_owner = ?, lease_until = ?, attempts = attempts + 1, "
                    "updated_at = ?, progress = NULL WHERE id = ?",
                    (worker, now + lease, now, row["id"]),
                )
                self._event(row["id"], "running", worker, now)
                return _job({**row, "state": "running", "attempts": row["attempts"] + 1})
        return None

    def heartbeat(
        self, job_id: int, worker: str, *, now: float, lease: float, progress: ProgressEvent | None = None
    ) -> bool:
        """Prolong the lease and note the progress; False if the job is no longer this worker's."""
        with immediate(self._db):
            cursor = self._db.conn.execute(
                "UPDATE jobs SET lease_until = ?, updated_at = ?, progress = COALESCE(?, progress) "
                "WHERE id = ? AND lease_owner = ? AND state = 'running'",
                (now + lease, now, progress.model_dump_json() if progress else None, job_id, worker),
            )
            return cursor.rowcount > 0

    def finish(self, job_id: int, worker: str, *, now: float) -> bool:
        """Mark done; False (and nothing changes) if the job is no longer this worker's."""
        return self._leave(job_id, worker, "done", None, now)

    def release(self, job_id: int, worker: str, *, reason: str, now: float) -> bool:
        """Put an interrupted job back as if it had not been started."""
        with immediate(self._db):
            if not self._leave(job_id, worker, "todo", reason, now):
                return False
            self._db.conn.execute(
                "UPDATE jobs SET attempts = MAX(attempts - 1, 0), not_before = ? WHERE id = ?", (now, job_id)
            )
            return True

    def fail(
        self,
        job_id: int,
        worker: str,
        *,
        error_type: str,
        reason: str,
        retryable: bool,
        now: float,
        deferred: bool = False,
    ) -> str | None:
        """Record a failure: back to todo with a delay while attempts are left and it may help, else dead.

        A ``deferred`` job could not even start (no Hub, no disk space): that is no attempt, and may take a day.
        Returns the new state, or None if the job is no longer this worker's.
        """
        with immediate(self._db):
            row = next(iter(self._db.query("SELECT attempts, deferrals FROM jobs WHERE id = ?", (job_id,))), None)
            if row is None:
                return None
            tries, limit = (row["deferrals"] + 1, MAX_DEFERRALS) if deferred else (row["attempts"], MAX_ATTEMPTS)
            again = retryable and tries < limit
            state = "todo" if again else "dead"
            if not self._leave(job_id, worker, state, reason, now):
                return None
            delay = min(BACKOFF * 2 ** (tries - 1), MAX_BACKOFF) if again else 0.0
            self._db.conn.execute(
                "UPDATE jobs SET error_type = ?, error = ?, not_before = ?, attempts = attempts - ?, "
                "deferrals = deferrals + ? WHERE id = ?",
                (error_type, reason, now + delay, int(deferred), int(deferred), job_id),
            )
            return state

    def retry(self, job_id: int, *, now: float) -> bool:
        """Give a dead job fresh attempts, with the dead one that it waits for and those that waited for it.

        False if it is not dead.
        """
        with immediate(self._db):
            if not any(True for _ in self._db.query("SELECT 1 FROM jobs WHERE id = ? AND state = 'dead'", (job_id,))):
                return False
            found = self._db.query(
                "SELECT id FROM jobs WHERE state = 'dead' AND (id = ? "
                "OR id = (SELECT depends_on FROM jobs WHERE id = ?) OR (depends_on = ? AND error_type = 'Dependency'))",
                (job_id, job_id, job_id),
            )
            for row in list(found):
                self._again(row["id"], "asked to try again", now)
            return True

    def _again(self, job_id: int, reason: str, now: float) -> None:
        self._db.conn.execute(
            "UPDATE jobs SET state = 'todo', attempts = 0, deferrals = 0, not_before = 0, error = NULL, "
            "error_type = NULL, updated_at = ? WHERE id = ?",
            (now, job_id),
        )
        self._event(job_id, "todo", reason, now)

    def redo(self, key: str, *, reason: str, now: float) -> None:
        """Queue a finished job once more: what it made is lost."""
        with immediate(self._db):
            row = self._by_key(key)
            if row and row["state"] in ("done", "dead"):
                self._again(row["id"], reason, now)

    def remeasure(self, repo_id: str, *, protocols: Collection[str], now: float) -> int:
        """Queue the ended quality and speed jobs of a repo's current files once more; returns how many.

        Args:
            protocols: fingerprints of the protocols that are meant.
        """
        with immediate(self._db):
            rows = self._db.query(
                "SELECT id, protocol FROM jobs WHERE kind IN ('quality', 'speed') AND state IN ('done', 'dead') "
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
                self._again(job_id, "the repo's owner asked for it", now)
        return len(found)

    def job(self, job_id: int) -> Job | None:
        """One job, or None."""
        for row in self._db.query("SELECT * FROM jobs WHERE id = ?", (job_id,)):
            return _job(row)
        return None

    def by_keys(self, keys: list[str]) -> dict[str, Job]:
        """The jobs with these keys, by key."""
        found = (self._by_key(key) for key in keys)
        return {row["key"]: _job(row) for row in found if row}

    def all(self, *, states: tuple[str, ...] = (), limit: int = 1000) -> list[Job]:
        """Jobs in these states (all by default): running first, then the queue in its order, then the newest."""
        where = f"WHERE state IN ({','.join('?' * len(states))})" if states else ""
        return [_job(row) for row in self._db.query(
            f"SELECT * FROM jobs {where} ORDER BY CASE state WHEN 'running' THEN 0 WHEN 'todo' THEN 1 ELSE 2 END, "
            "priority DESC, CASE WHEN state IN ('done', 'dead') THEN -updated_at ELSE id END LIMIT ?",
            [*states, limit],
        )]  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        rows = self._db.query("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state ORDER BY state")
        return {row["state"]: row["n"] for row in rows}

    def next_start(self) -> float | None:
        """When the next job may be claimed, or a running one's lease ends (seconds since the epoch).

        None when there is neither. What waits for a running job counts with that job's lease.
        """
        row = next(
            self._db.query(
                "SELECT MIN(at) AS at FROM (SELECT j.not_before AS at FROM jobs j LEFT JOIN jobs d "
                "ON d.id = j.depends_on WHERE j.state = 'todo' AND (d.id IS NULL OR d.state IN ('done', 'dead')) "
                "UNION ALL SELECT lease_until FROM jobs WHERE state = 'running')"
            )
        )
        return row["at"]

    def open_files(self) -> set[int]:
        """Row ids of the variants that unfinished jobs still need."""
        rows = self._db.query("SELECT DISTINCT variant_id FROM jobs WHERE state IN ('todo', 'running')")
        return {row["variant_id"] for row in rows}

    def events(self, job_id: int) -> list[dict[str, Any]]:
        """A job's history: at, state, reason."""
        return list(self._db.query("SELECT at, state, reason FROM job_events WHERE job_id = ? ORDER BY id", (job_id,)))

    def _by_key(self, key: str) -> dict[str, Any] | None:
        return next(iter(self._db.query("SELECT * FROM jobs WHERE key = ?", (key,))), None)

    def _leave(self, job_id: int, worker: str, state: str, reason: str | None, now: float) -> bool:
        with immediate(self._db):
            cursor = self._db.conn.execute(
                "UPDATE jobs SET state = ?, lease_owner = NULL, lease_until = NULL, progress = NULL, updated_at = ? "
                "WHERE id = ? AND lease_owner = ? AND state = 'running'",
                (state, now, job_id, worker),
            )
            if cursor.rowcount:
                self._event(job_id, state, reason, now)
            return cursor.rowcount > 0

    def _recover(self, now: float) -> None:
        """Jobs whose lease ran out: back to the queue, or dead when that was their last attempt."""
        for row in list(
            self._db.query(
                "SELECT id, attempts, lease_owner FROM jobs WHERE state = 'running' AND lease_until < ?",
                (now,),
            )
        ):
            state = "todo" if row["attempts"] < MAX_ATTEMPTS else "dead"
            # The reason may stand on a card; the worker's name (a host's) is only for the history.
            reason = f"The measuring machine was lost at attempt {row['attempts']} of {MAX_ATTEMPTS}."
            self._db.conn.execute(
                "UPDATE jobs SET state = ?, lease_owner = NULL, lease_until = NULL, progress = NULL, "
                "error_type = 'LostWorker', error = ?, updated_at = ? WHERE id = ?",
                (state, reason, now, row["id"]),
            )
            self._event(row["id"], state, f"its worker {row['lease_owner']} was lost", now)

    def _bury_dependents(self, now: float) -> None:
        for row in list(
            self._db.query(
                "SELECT j.id, d.error FROM jobs j JOIN jobs d ON d.id = j.depends_on "
                "WHERE j.state = 'todo' AND d.state = 'dead'"
            )
        ):
            reason = f"Its baseline could not be recorded: {row['error']}"
            self._db.conn.execute(
                "UPDATE jobs SET state = 'dead', error_type = 'Dependency', error = ?, updated_at = ? WHERE id = ?",
                (reason, now, row["id"]),
            )
            self._event(row["id"], "dead", reason, now)

    def _event(self, job_id: int, state: str, reason: str | None, now: float) -> None:
        self._db.conn.execute(
            "INSERT INTO job_events (job_id, at, state, reason) VALUES (?, ?, ?, ?)",
            (job_id, now, state, reason),
        )


def _job(row: dict[str, Any]) -> Job:
    return Job(
        id=row["id"],
        key=row["key"],
        kind=row["kind"],
        variant_id=row["variant_id"],
        reference_id=row["reference_id"],
        protocol=Protocol.model_validate(json.loads(row["protocol"])),
        state=row["state"],
        attempts=row["attempts"],
        not_before=row["not_before"],
        error_type=row["error_type"],
        error=row["error"],
        progress=ProgressEvent.model_validate_json(row["progress"]) if row["progress"] else None,
        updated_at=row["updated_at"],
    )
