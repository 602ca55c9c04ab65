"""Changes of a job's state, each with an event row, and what follows for the jobs that wait for it."""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database

#: States in which nothing more happens to a job by itself.
ENDED = ("done", "failed", "cancelled", "dead")
#: Those of them without a result: by its own fault, taken back, tries used up.
UNDONE = ("failed", "cancelled", "dead")
#: A worker has it: it fetches what is needed, or measures.
TAKEN = ("leased", "running")
#: Why a job that waits can't be claimed: its baseline is not done; it is put off.
BY_BASELINE, BY_DELAY = 1, 2


def marks(values: tuple[Any, ...]) -> str:
    """Question marks for that many values."""
    return ",".join("?" * len(values))


def note_event(db: Database, job_id: int, state: str, reason: str | None, *, now: float) -> None:
    """Add to a job's history."""
    db.conn.execute(
        "INSERT INTO job_events (job_id, at, state, reason) VALUES (?, ?, ?, ?)", (job_id, now, state, reason)
    )


def end(
    db: Database,
    job_id: int,
    state: str,
    *,
    reason: str | None,
    error_type: str | None = None,
    now: float,
    seconds: float | None = None,
) -> None:
    """End a job, inside a transaction; those that wait for it go on, or end with it.

    Args:
        seconds: how long measuring took.
    """
    db.conn.execute(
        "UPDATE jobs SET state = ?, error_type = ?, error = ?, lease_owner = NULL, lease_until = NULL, "
        "progress = NULL, stage = NULL, cancel = NULL, blocked = 0, updated_at = ?, "
        "seconds = COALESCE(?, seconds) WHERE id = ?",
        (state, error_type, reason if state != "done" else None, now, seconds, job_id),
    )
    note_event(db, job_id, state, reason, now=now)
    if state == "done":
        db.conn.execute(
            "UPDATE jobs SET blocked = 0 WHERE depends_on = ? AND state = 'todo' AND blocked = ?", (job_id, BY_BASELINE)
        )
        return
    said = "was cancelled" if state == "cancelled" else f"could not be recorded: {reason}"
    for row in list(db.query("SELECT id FROM jobs WHERE depends_on = ? AND state = 'todo'", (job_id,))):
        end(db, row["id"], "dead", reason=f"Its baseline {said}", error_type="Dependency", now=now)


def put_back(db: Database, job_id: int, *, reason: str, now: float, delay: float = 0.0) -> None:
    """Put a job that a worker had back into the queue, inside a transaction."""
    db.conn.execute(
        "UPDATE jobs SET state = 'todo', lease_owner = NULL, lease_until = NULL, progress = NULL, stage = NULL, "
        "not_before = ?, updated_at = ?, blocked = CASE WHEN EXISTS "
        "(SELECT 1 FROM jobs d WHERE d.id = jobs.depends_on AND d.state <> 'done') THEN ? ELSE ? END WHERE id = ?",
        (now + delay, now, BY_BASELINE, BY_DELAY if delay > 0 else 0, job_id),
    )
    note_event(db, job_id, "todo", reason, now=now)


def again(db: Database, job_id: int, *, reason: str, now: float) -> None:
    """Queue a job that ended as if it had never run, inside a transaction; what waits for it waits again."""
    db.conn.execute(
        "UPDATE jobs SET state = 'todo', attempts = 0, deferrals = 0, lost = 0, run = run + 1, not_before = 0, "
        "error = NULL, error_type = NULL, cancel = NULL, avoid = NULL, updated_at = ?, blocked = CASE WHEN EXISTS "
        "(SELECT 1 FROM jobs d WHERE d.id = jobs.depends_on AND d.state <> 'done') THEN ? ELSE 0 END WHERE id = ?",
        (now, BY_BASELINE, job_id),
    )
    db.conn.execute("UPDATE jobs SET blocked = ? WHERE depends_on = ? AND state = 'todo'", (BY_BASELINE, job_id))
    note_event(db, job_id, "todo", reason, now=now)
