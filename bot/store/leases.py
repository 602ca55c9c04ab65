"""Leases: which worker has which job, until when, and what becomes of a job whose worker is gone.

A job is claimed by whoever writes its lease first; only who holds the lease changes its state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlite_utils import Database

from bot.store.changes import BY_DELAY, TAKEN, end, note_event, put_back
from bot.store.db import brisk, immediate
from bot.store.jobs import Job, job_of
from core.contract import ProgressEvent
from core.retry import LIMITS, MAX_DELAY, RetryClass, verdict

#: Seconds by which a time that another worker wrote may lie ahead of ours; more, and the clock was set back.
_AHEAD = 300.0
_COUNTER: dict[RetryClass, str] = {"never": "attempts", "attempt": "attempts", "lost": "lost", "later": "deferrals"}
_MINE = "id = ? AND lease_owner = ? AND state IN ('leased', 'running')"


class Leases:
    """The jobs that workers have; the same table as :class:`bot.store.jobs.Jobs`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def claim(
        self,
        worker: str,
        *,
        now: float,
        lease: float,
        runner: str = "local",
        memory: int | None = None,
        alive: Callable[[str], bool | None] = lambda _: None,
    ) -> Job | None:
        """Take the job whose turn it is; None where none may start, or the queue is paused.

        Args:
            lease: seconds until the job is somebody else's, if nothing is heard of it.
            memory: the most bytes a job may need to fit the runner; None: any.
            alive: whether a worker of that name is known to live (True) or to have ended (False). One that lives
                and was not heard of in time is given another lease once: the clock may have been set forward, or the
                machine have slept.
        """
        with brisk(self._db):
            self._recover(now, lease, alive)
            if self._paused():
                return None
            fits = "" if memory is None else "AND COALESCE(need_memory, 0) <= ? "
            fits += "AND (avoid IS NULL OR avoid <> ?) "
            rows = self._db.query(
                "UPDATE jobs SET state = 'leased', lease_owner = ?, lease_until = ?, attempts = attempts + 1, "
                "updated_at = ?, began_at = ?, progress = NULL, stage = NULL, runner = ? WHERE id = (SELECT id FROM "
                f"jobs INDEXED BY jobs_ready WHERE state = 'todo' AND blocked = 0 {fits}"
                "ORDER BY turn, id LIMIT 1) RETURNING *",
                (worker, now + lease, now, now, runner, *([] if memory is None else [memory]), runner),
            )
            for row in list(rows):
                note_event(self._db, row["id"], "leased", worker, now=now)
                try:
                    return job_of(row)
                except ValueError:
                    reason = "Another quantcard queued it in a way that this one can't read."
                    end(self._db, row["id"], "failed", reason=reason, error_type="Unreadable", now=now)
        return None

    def began(self, job_id: int, worker: str, *, runner: str, now: float) -> bool:
        """A job's files are there and it is handed to a runner; False if it is no longer this worker's."""
        with brisk(self._db):
            cursor = self._db.conn.execute(
                f"UPDATE jobs SET state = 'running', began_at = ?, updated_at = ? WHERE {_MINE}",
                (now, now, job_id, worker),
            )
            if cursor.rowcount:
                note_event(self._db, job_id, "running", f"by {runner}", now=now)
            return cursor.rowcount > 0

    def heartbeat(
        self, job_id: int, worker: str, *, now: float, lease: float, progress: ProgressEvent | None = None
    ) -> bool:
        """Prolong the lease and note the progress; False if the job is no longer this worker's."""
        with brisk(self._db):
            cursor = self._db.conn.execute(
                "UPDATE jobs SET lease_until = ?, updated_at = ?, progress = COALESCE(?, progress), "
                f"stage = COALESCE(?, stage) WHERE {_MINE}",
                (
                    now + lease,
                    now,
                    progress.model_dump_json() if progress else None,
                    progress.stage if progress else None,
                    job_id,
                    worker,
                ),
            )
            return cursor.rowcount > 0

    def cancelled(self, job_id: int) -> str | None:
        """Why a job is to be given up, if somebody said so."""
        found = self._db.conn.execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return found[0] if found else None

    def finish(self, job_id: int, worker: str, *, now: float, seconds: float | None = None) -> bool:
        """Mark done; False (and nothing changes) if the job is no longer this worker's.

        Args:
            seconds: how long measuring took.
        """
        with immediate(self._db):
            if self._mine(job_id, worker) is None:
                return False
            end(self._db, job_id, "done", reason=None, now=now, seconds=seconds)
            return True

    def release(self, job_id: int, worker: str, *, reason: str, now: float) -> bool:
        """Put an interrupted job back as if it had not been started; one that was cancelled meanwhile ends."""
        with brisk(self._db):
            row = self._mine(job_id, worker)
            if row is None:
                return False
            self._db.conn.execute("UPDATE jobs SET attempts = MAX(attempts - 1, 0) WHERE id = ?", (job_id,))
            if row["cancel"]:
                self._end_cancelled(row, now)
            else:
                put_back(self._db, job_id, reason=reason, now=now)
            return True

    def fail(
        self, job_id: int, worker: str, *, error_type: str, reason: str, retry: RetryClass, now: float
    ) -> str | None:
        """Record a failure: back into the queue while it may help, else failed or dead.

        Returns the new state, or None if the job is no longer this worker's.
        """
        with immediate(self._db):
            row = self._mine(job_id, worker)
            if row is None:
                return None
            return self._failed(row, error_type=error_type, reason=reason, retry=retry, now=now)

    def release_gone(self, alive: Callable[[str], bool | None], *, now: float) -> int:
        """Put back the jobs of workers that are known to have ended, before their leases do; returns how many."""
        with immediate(self._db):
            # Queued while the clock was ahead: their turns would not come until it is there again.
            self._db.conn.execute(
                "UPDATE jobs SET turn = MIN(turn, ?), created_at = ? WHERE state = 'todo' AND created_at > ?",
                (now, now, now + _AHEAD),
            )
            taken = self._db.query(f"SELECT * FROM jobs WHERE state IN {TAKEN} ORDER BY id")
            gone = [row for row in list(taken) if alive(row["lease_owner"]) is False]
            for row in gone:
                self._lost(row, now)
        return len(gone)

    def refuse_larger(self, memory: int, *, now: float) -> int:
        """End waiting jobs that need more than ``memory`` bytes; returns how many."""
        with immediate(self._db):
            rows = self._db.query(
                "SELECT id, need_memory FROM jobs INDEXED BY jobs_ready "
                "WHERE state = 'todo' AND blocked = 0 AND need_memory > ?",
                (memory,),
            )
            found = list(rows)
            for row in found:
                reason = (
                    f"It needs {row['need_memory'] / 1e9:.1f} GB of memory; "
                    f"the largest machine here has {memory / 1e9:.1f} GB."
                )
                end(self._db, row["id"], "failed", reason=reason, error_type="TooLargeError", now=now)
        return len(found)

    def _mine(self, job_id: int, worker: str) -> dict[str, Any] | None:
        return next(iter(self._db.query(f"SELECT * FROM jobs WHERE {_MINE}", (job_id, worker))), None)

    def _paused(self) -> bool:
        found = self._db.conn.execute("SELECT value FROM keyed WHERE name = 'queue:paused'").fetchone()
        return bool(found and found[0])

    def _failed(self, row: dict[str, Any], *, error_type: str, reason: str, retry: RetryClass, now: float) -> str:
        """What becomes of a job after a failure. A run that is not the job's fault is no attempt."""
        counter = _COUNTER[retry]
        self._db.conn.execute(
            f"UPDATE jobs SET {counter} = {counter} + ?, attempts = MAX(attempts - ?, 0), run = run + 1 WHERE id = ?",
            (int(counter != "attempts"), int(counter != "attempts"), row["id"]),
        )
        if row["cancel"]:
            return self._end_cancelled(row, now)
        tries = row[counter] + int(counter != "attempts")
        found = verdict(retry, tries)
        if found.state == "todo":
            put_back(self._db, row["id"], reason=reason, now=now, delay=found.delay)
            self._db.conn.execute(
                "UPDATE jobs SET error_type = ?, error = ? WHERE id = ?", (error_type, reason, row["id"])
            )
        else:
            end(self._db, row["id"], found.state, reason=reason, error_type=error_type, now=now)
        return found.state

    def _end_cancelled(self, row: dict[str, Any], now: float) -> str:
        end(self._db, row["id"], "cancelled", reason=row["cancel"], error_type="Cancelled", now=now)
        return "cancelled"

    def _recover(self, now: float, lease: float, alive: Callable[[str], bool | None]) -> None:
        """Wake what was put off until now; take back the jobs of workers of whom nothing was heard."""
        for due in ("<= ?", "> ?"):
            # Further ahead than any delay: the clock was set back.
            self._db.conn.execute(
                "UPDATE jobs INDEXED BY jobs_delayed SET blocked = 0 "
                f"WHERE state = 'todo' AND blocked = {BY_DELAY} AND not_before {due}",
                (now if due == "<= ?" else now + MAX_DELAY + _AHEAD,),
            )
        for row in list(
            self._db.query(
                "SELECT * FROM jobs INDEXED BY jobs_leased WHERE state IN ('leased', 'running') AND lease_until < ?",
                (now,),
            )
        ):
            if row["lease_until"] - row["updated_at"] <= 2 * lease and alive(row["lease_owner"]):
                # The time since it was heard of stays noted, so that this is done once.
                until = max(now, row["updated_at"] + 2 * lease) + lease
                self._db.conn.execute("UPDATE jobs SET lease_until = ? WHERE id = ?", (until, row["id"]))
            else:
                self._lost(row, now)
        # The clock was set back: no lease may last until it is there again.
        self._db.conn.execute(
            "UPDATE jobs SET lease_until = ? + (lease_until - updated_at), updated_at = ? "
            "WHERE state IN ('leased', 'running') AND updated_at > ?",
            (now, now, now + _AHEAD),
        )

    def _lost(self, row: dict[str, Any], now: float) -> None:
        """A job's worker is gone: the same run may still be going on elsewhere, so that it is joined there."""
        tries = row["lost"] + 1
        # The reason may stand on a card; the worker's name (a host's) is only for the history.
        reason = f"The measuring machine was lost {tries} times; {LIMITS['lost']} are too many."
        note_event(self._db, row["id"], "lost", f"its worker {row['lease_owner']} was lost", now=now)
        self._db.conn.execute(
            "UPDATE jobs SET lost = ?, attempts = MAX(attempts - 1, 0) WHERE id = ?", (tries, row["id"])
        )
        if row["cancel"]:
            self._end_cancelled(row, now)
            return
        found = verdict("lost", tries)
        if found.state == "todo":
            put_back(self._db, row["id"], reason="its worker was lost", now=now, delay=found.delay)
        else:
            end(self._db, row["id"], "dead", reason=reason, error_type="LostWorker", now=now)
