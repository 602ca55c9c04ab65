"""What a monitor asks of all tables: counts by index, and what happened since the last time it asked."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from bot.store.changes import TAKEN, UNDONE, marks
from core.errors import StorageError

#: Upper ends of the classes that durations are counted in, in seconds.
BOUNDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 48 * 3600.0)
#: What runs below the database.
SQLITE_VERSION = sqlite3.sqlite_version
#: Seconds for which a probe waits for a writer.
_PROBE_S = 2.0


@dataclass
class Durations:
    """How long things took: how many were in each class of :data:`BOUNDS` (the last: longer), and in all."""

    classes: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, which: int, number: int, seconds: float) -> None:
        """Count ``number`` of a class that took so many seconds together."""
        self.classes[which] += number
        self.seconds += seconds


@dataclass
class Tally:
    """What happened to jobs since the database began, as far as its history tells.

    ``events``: by (kind, state); ``undone``: by (kind, state, error type); ``waits``: from being put into the queue
    to being taken out, ``runs``: from being handed to a runner to the result; both by kind.
    """

    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    undone: Counter[tuple[str, ...]] = field(default_factory=Counter)
    waits: dict[str, Durations] = field(default_factory=dict)
    runs: dict[str, Durations] = field(default_factory=dict)


class History:
    """Adds up the jobs' history, each event once: the first reading takes all of it, later ones what is new."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._seen = 0

    def read(self, db: Database) -> Tally:
        """Take in what is new. Not to be called from two threads at once."""
        newest = db.conn.execute("SELECT COALESCE(MAX(id), 0) FROM job_events").fetchone()[0]
        # After a backup was put back there are fewer.
        self._seen = min(self._seen, newest)
        which = " + ".join(f"(took > {bound})" for bound in BOUNDS)
        rows = db.conn.execute(
            f"SELECT kind, state, before, error_type, {which}, COUNT(*), SUM(took) FROM ("
            "SELECT j.kind AS kind, e.state AS state, p.state AS before, MAX(e.at - p.at, 0.0) AS took, "
            f"CASE WHEN e.state IN ({marks(UNDONE)}) THEN j.error_type END AS error_type "
            "FROM job_events e JOIN jobs j ON j.id = e.job_id LEFT JOIN job_events p ON p.id = (SELECT MAX(b.id) "
            "FROM job_events b WHERE b.job_id = e.job_id AND b.id < e.id) WHERE e.id > ? AND e.id <= ?) "
            "GROUP BY 1, 2, 3, 4, 5",
            (*UNDONE, self._seen, newest),
        ).fetchall()
        for kind, state, before, error_type, took_class, number, took in rows:
            self.tally.events[kind, state] += number
            if state in UNDONE:
                self.tally.undone[kind, state, error_type or "none"] += number
            if before == "todo" and state in TAKEN:
                self.tally.waits.setdefault(kind, Durations()).add(took_class, number, took)
            elif before == "running" and state == "done":
                self.tally.runs.setdefault(kind, Durations()).add(took_class, number, took)
        self._seen = newest
        return self.tally


@dataclass(frozen=True, slots=True)
class Counts:
    """How many there are now. ``running``: jobs by (runner, kind); times are seconds since the epoch."""

    jobs: dict[tuple[str, ...], int]
    running: dict[tuple[str, ...], int]
    oldest_waiting: float | None
    last_poll: float | None
    follows: int
    repos: dict[str, int]
    repos_due: int
    pulls: dict[str, int]
    requests_waiting: int


def counts(db: Database) -> Counts:
    """Count; a tenth of a second with 100,000 jobs."""

    def by(sql: str, *args: object) -> dict[Any, int]:
        return {row[0] if len(row) == 2 else tuple(row[:-1]): row[-1] for row in db.conn.execute(sql, args)}

    def one(sql: str) -> Any:
        return db.conn.execute(sql).fetchone()[0]

    return Counts(
        # From end to end: by jobs_by_state, every row would be looked up by itself, three times as slow.
        jobs=by("SELECT state, kind, COUNT(*) FROM jobs NOT INDEXED GROUP BY state, kind"),
        running=by(
            "SELECT COALESCE(runner, 'unknown'), kind, COUNT(*) FROM jobs "
            f"WHERE state IN ({marks(TAKEN)}) GROUP BY 1, 2",
            *TAKEN,
        ),
        oldest_waiting=one("SELECT MIN(updated_at) FROM jobs WHERE state = 'todo'"),
        last_poll=one("SELECT MAX(polled_at) FROM follows"),
        follows=one("SELECT COUNT(*) FROM follows"),
        repos=by("SELECT state, COUNT(*) FROM repos GROUP BY state"),
        repos_due=one("SELECT COUNT(*) FROM repos WHERE due_at IS NOT NULL"),
        pulls=by("SELECT status, COUNT(*) FROM pulls GROUP BY status"),
        requests_waiting=one("SELECT COUNT(*) FROM requests WHERE state = 'open'"),
    )


def variants(db: Database) -> dict[str, int]:
    """How many variants are in each state. Reads the whole table: not for every time somebody asks."""
    return {row[0]: row[1] for row in db.conn.execute("SELECT state, COUNT(*) FROM variants GROUP BY state")}


@contextmanager
def snapshot(db: Database) -> Iterator[Database]:
    """One state of the database for several questions; errors are ours.

    Raises:
        StorageError: it can't be read.
    """
    try:
        db.conn.execute("BEGIN")
        try:
            yield db
        finally:
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        raise StorageError(f"The database can't be read ({error}).") from error


def probe(path: Path) -> None:
    """See that the database can be read and written now; changes nothing and makes none.

    Raises:
        StorageError: it is not there, damaged, read-only, or somebody holds it for longer than two seconds.
    """
    if not path.is_file():
        raise StorageError("The database is not there.")
    try:
        connection = sqlite3.connect(path, timeout=_PROBE_S, isolation_level=None)
        try:
            connection.execute("SELECT COUNT(*) FROM keyed").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StorageError(f"The database can't be used ({error}).") from error
