"""What can be said of the database without opening it for use: it is neither made, migrated nor repaired here."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bot.store.db import migrations

#: Pages between looks at the clock, in SQLite's own steps.
_STEPS = 20_000
_MAX_LINES = 5


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What was found; sizes in bytes, times in seconds since the epoch.

    ``problems`` are the integrity check's lines, ``foreign`` the rows whose foreign key leads nowhere. ``checked`` says
    whether the check came to its end. ``error`` is SQLite's word where the file could not be read, ``locked`` where
    somebody else held it, ``read_only`` why it can't be written.
    """

    exists: bool
    size: int = 0
    wal: int = 0
    journal_mode: str = ""
    free_share: float = 0.0
    checked: bool = False
    thorough: bool = False
    problems: tuple[str, ...] = ()
    foreign: int = 0
    missing: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()
    error: str = ""
    locked: str = ""
    read_only: str = ""
    newest: float | None = None
    overdue: int = 0
    oldest_lease: float | None = None
    n_jobs: int = 0
    took: float = 0.0


def look(path: Path, *, now: float, limit_s: float = 20.0, thorough_bytes: int = 256 << 20) -> DatabaseFacts:
    """Read what there is to know of a database within about ``limit_s`` seconds.

    Args:
        now: to see which leases ran out long ago.
        thorough_bytes: up to this size every index is compared with its table too (``integrity_check``).
    """
    started = time.monotonic()
    try:
        if not path.exists():
            return DatabaseFacts(exists=False)
        size = path.stat().st_size
        wal = path.with_name(f"{path.name}-wal")
        wal_size = wal.stat().st_size if wal.exists() else 0
    except OSError as error:
        return DatabaseFacts(exists=True, error=error.strerror or str(error))
    found: dict[str, object] = {"exists": True, "size": size, "wal": wal_size}
    address = path.absolute().as_uri()
    try:
        # Only read first: the last writer to close a database puts its log into it, and a broken one is left as it is.
        with closing(sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=2.0)) as reader:
            _read(reader, found, now=now, deadline=started + limit_s, thorough=size <= thorough_bytes)
        if not found["problems"]:
            _write(address, found)
    except sqlite3.DatabaseError as error:
        found["locked" if "locked" in str(error) else "error"] = str(error)
    return DatabaseFacts(took=time.monotonic() - started, **found)  # type: ignore[arg-type]


def _read(
    connection: sqlite3.Connection, found: dict[str, object], *, now: float, deadline: float, thorough: bool
) -> None:
    found["journal_mode"] = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
    free = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    found["free_share"] = free / pages if pages else 0.0
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    found["problems"] = ()
    try:
        check = "integrity_check" if thorough else "quick_check"
        found["thorough"] = thorough
        lines = [str(row[0]) for row in connection.execute(f"PRAGMA {check}({_MAX_LINES})")]
        found["problems"] = tuple(line for line in lines if line != "ok")
        found["foreign"] = sum(1 for _ in connection.execute("PRAGMA foreign_key_check"))
        found["checked"] = True
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
    finally:
        connection.set_progress_handler(None, 0)
    _schema(connection, found)
    _jobs(connection, found, now=now)


def _schema(connection: sqlite3.Connection, found: dict[str, object]) -> None:
    """Which migrations are missing, and which are a newer quantcard's."""
    known = {one.name for one in migrations._migrations}
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone():
        found["missing"] = tuple(sorted(known))
        return
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (migrations.name,))
    applied = {str(row[0]) for row in rows}
    found["missing"], found["newer"] = tuple(sorted(known - applied)), tuple(sorted(applied - known))


def _jobs(connection: sqlite3.Connection, found: dict[str, object], *, now: float) -> None:
    """The newest time that was written, and jobs whose worker was not heard of for long."""
    columns = {str(row[1]) for row in connection.execute("PRAGMA table_info(jobs)")}
    if not {"updated_at", "lease_until"} <= columns:
        return
    found["n_jobs"] = int(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])
    found["newest"] = connection.execute("SELECT max(updated_at) FROM jobs").fetchone()[0]
    overdue, oldest = connection.execute(
        "SELECT count(*), min(lease_until) FROM jobs WHERE lease_until IS NOT NULL AND lease_until < ?", (now,)
    ).fetchone()
    found["overdue"], found["oldest_lease"] = int(overdue), oldest


def _write(address: str, found: dict[str, object]) -> None:
    """Whether it could be written now; nothing is."""
    try:
        with closing(sqlite3.connect(f"{address}?mode=rw", uri=True, timeout=2.0, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        found["locked" if "locked" in str(error) else "read_only"] = str(error)
