"""The one door to SQLite: connection, pragmas, migrations, transactions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from bot.store.turnstile import PATIENCE_S, Turnstile
from core.errors import StorageError

migrations = Migrations("quantcard")


class Database(sqlite_utils.Database):
    """A connection whose writers wait in a line."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection)
        self.turnstile = Turnstile(path)

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self.turnstile.close()


def open_database(path: Path) -> Database:
    """Open (making it if need be) and migrate the database: WAL, foreign keys, 30 s of patience with other writers.

    Raises:
        StorageError: it can't be opened, is not a database, or was made by a newer quantcard.
    """
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA busy_timeout={int(1000 * PATIENCE_S)}")
        db = Database(connection, path)
        # Most openings find all done, and must not wait for a writer to see that.
        if not _up_to_date(db, path):
            with immediate(db):
                if not _up_to_date(db, path):
                    migrations.apply(db)
    except sqlite3.DatabaseError as error:
        _close(connection)
        raise StorageError(
            f"The database {path} can't be used ({error}). Check the path, or restore a copy."
        ) from error
    except OSError as error:
        _close(connection)
        raise StorageError(f"The database {path} can't be opened ({error.strerror}). Check the path.") from error
    except StorageError:
        _close(connection)
        raise
    return db


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not wait for others here (two first openings at once), so we do."""
    for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, None):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if pause is None or "locked" not in str(error):
                raise
            time.sleep(pause)


def _up_to_date(db: Database, path: Path) -> bool:
    """Whether every migration was applied; an unknown one is a newer quantcard's."""
    known = {migration.name for migration in migrations._migrations}
    applied = {migration.name for migration in migrations.applied(db)}
    if unknown := applied - known:
        raise StorageError(f"{path} was made by a newer quantcard ({', '.join(sorted(unknown))}). Update quantcard.")
    return applied == known


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()


@contextmanager
def immediate(db: Database) -> Iterator[Database]:
    """A write transaction that takes the lock at once, so that what it reads can't change before it writes."""
    if db.conn.in_transaction:
        yield db
        return
    with db.turnstile.turn() as patience:
        yield from _immediate(db, patience)


def _immediate(db: Database, patience: float) -> Iterator[Database]:
    try:
        if patience < PATIENCE_S - 1:
            db.conn.execute(f"PRAGMA busy_timeout={int(1000 * patience)}")
        db.conn.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        raise StorageError(f"The database is busy or can't be written ({error}).") from error
    finally:
        if patience < PATIENCE_S - 1:
            db.conn.execute(f"PRAGMA busy_timeout={int(1000 * PATIENCE_S)}")
    try:
        yield db
        db.conn.execute("COMMIT")
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        _roll_back(db)
        raise
    except sqlite3.DatabaseError as error:
        _roll_back(db)
        raise StorageError(f"The database could not be written ({error}). Is the disk full?") from error
    except BaseException:
        _roll_back(db)
        raise


@contextmanager
def brisk(db: Database) -> Iterator[Database]:
    """A write transaction that is not waited for to reach the disk, for what a power failure may undo: leases.

    The order of transactions is kept, and the next one by :func:`immediate` takes those before it to the disk.
    """
    if db.conn.in_transaction:
        yield db
        return
    db.conn.execute("PRAGMA synchronous=NORMAL")
    try:
        with immediate(db):
            yield db
    finally:
        db.conn.execute("PRAGMA synchronous=FULL")


def _roll_back(db: Database) -> None:
    # A full disk may already have ended the transaction.
    if db.conn.in_transaction:
        db.conn.execute("ROLLBACK")


@migrations()
def m001_first_tables(db: Database) -> None:
    """Follows, repos, variants, jobs and their events, baselines, measurements, pulls, requests, keyed values."""
    statements = """
    CREATE TABLE follows (
      name TEXT PRIMARY KEY, consented INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
    );
    CREATE TABLE repos (
      id TEXT PRIMARY KEY, sha TEXT, last_modified TEXT, source TEXT NOT NULL DEFAULT 'follow',
      note TEXT, base_model TEXT, config TEXT NOT NULL DEFAULT '{}', seen_at REAL
    );
    CREATE TABLE variants (
      id INTEGER PRIMARY KEY, repo_id TEXT NOT NULL REFERENCES repos(id) ON DELETE CASCADE, name TEXT NOT NULL,
      key TEXT NOT NULL, label TEXT NOT NULL, files TEXT NOT NULL, size_bytes INTEGER NOT NULL,
      revision TEXT NOT NULL, inspection TEXT, note TEXT, state TEXT NOT NULL DEFAULT 'current',
      first_seen REAL NOT NULL, UNIQUE (repo_id, name, key)
    );
    CREATE TABLE jobs (
      id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, variant_id INTEGER NOT NULL
        REFERENCES variants(id) ON DELETE CASCADE, reference_id INTEGER REFERENCES variants(id),
      protocol TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'todo', priority INTEGER NOT NULL DEFAULT 0,
      attempts INTEGER NOT NULL DEFAULT 0, depends_on INTEGER REFERENCES jobs(id), not_before REAL NOT NULL DEFAULT 0,
      lease_owner TEXT, lease_until REAL, progress TEXT, error_type TEXT, error TEXT,
      created_at REAL NOT NULL, updated_at REAL NOT NULL
    );
    CREATE INDEX jobs_by_state ON jobs(state, not_before);
    CREATE INDEX jobs_by_variant ON jobs(variant_id);
    CREATE TABLE job_events (
      id INTEGER PRIMARY KEY, job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, at REAL NOT NULL,
      state TEXT NOT NULL, reason TEXT
    );
    CREATE TABLE baselines (
      reference_key TEXT NOT NULL, protocol_fingerprint TEXT NOT NULL, path TEXT NOT NULL, result TEXT NOT NULL,
      created_at REAL NOT NULL, PRIMARY KEY (reference_key, protocol_fingerprint)
    );
    CREATE TABLE measurements (
      id INTEGER PRIMARY KEY, variant_key TEXT NOT NULL, protocol_fingerprint TEXT NOT NULL, kind TEXT NOT NULL,
      reference_key TEXT, environment_fingerprint TEXT NOT NULL, result TEXT NOT NULL, job_id INTEGER,
      created_at REAL NOT NULL
    );
    CREATE INDEX measurements_by_variant ON measurements(variant_key, protocol_fingerprint, kind);
    CREATE TABLE pulls (
      repo_id TEXT NOT NULL, num INTEGER NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, url TEXT,
      created_at REAL NOT NULL, updated_at REAL NOT NULL, PRIMARY KEY (repo_id, num)
    );
    CREATE TABLE requests (
      id INTEGER PRIMARY KEY, repo_id TEXT NOT NULL, person TEXT, state TEXT NOT NULL, note TEXT,
      created_at REAL NOT NULL
    );
    CREATE TABLE keyed (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """
    for statement in statements.split(";"):
        if statement.strip():
            db.conn.execute(statement)


@migrations()
def m002_deferrals(db: Database) -> None:
    """How often a job could not start for want of the Hub or of disk space; such tries are no attempts."""
    db.conn.execute("ALTER TABLE jobs ADD COLUMN deferrals INTEGER NOT NULL DEFAULT 0")


@migrations()
def m003_the_bot(db: Database) -> None:
    """What watching ten thousand repos, references, pulls with manners and pull mode remember."""
    statements = """
    ALTER TABLE follows ADD COLUMN cursor TEXT;
    ALTER TABLE follows ADD COLUMN polled_at REAL;
    ALTER TABLE follows ADD COLUMN swept_at REAL;
    ALTER TABLE follows ADD COLUMN error TEXT;
    ALTER TABLE follows ADD COLUMN tried_at REAL;
    ALTER TABLE repos ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE variants ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE repos ADD COLUMN state TEXT NOT NULL DEFAULT 'live';
    ALTER TABLE repos ADD COLUMN follow TEXT;
    ALTER TABLE repos ADD COLUMN due_sha TEXT;
    ALTER TABLE repos ADD COLUMN due_at REAL;
    ALTER TABLE repos ADD COLUMN error TEXT;
    ALTER TABLE repos ADD COLUMN stopped TEXT;
    ALTER TABLE pulls ADD COLUMN author TEXT;
    ALTER TABLE repos ADD COLUMN to_plan INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE variants ADD COLUMN audit_at REAL;
    CREATE INDEX variants_by_key ON variants(key);
    CREATE INDEX variants_to_audit ON variants(audit_at) WHERE audit_at IS NOT NULL;
    CREATE INDEX repos_to_plan ON repos(to_plan) WHERE to_plan;
    CREATE INDEX repos_by_base ON repos(base_model COLLATE NOCASE);
    CREATE INDEX repos_due ON repos(due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX follows_by_name ON follows(name COLLATE NOCASE);
    CREATE TABLE publishing (
      repo_id TEXT PRIMARY KEY, key TEXT NOT NULL, sha TEXT, action TEXT NOT NULL, reason TEXT NOT NULL,
      num INTEGER, at REAL NOT NULL, next_at REAL, touched INTEGER NOT NULL DEFAULT 0
    );
    INSERT INTO publishing (repo_id, key, action, reason, at, next_at) SELECT id, '', 'new', '', 0, 0 FROM repos;
    CREATE TABLE answers (
      id INTEGER PRIMARY KEY, comment_id TEXT NOT NULL, place INTEGER NOT NULL, repo_id TEXT NOT NULL,
      num INTEGER NOT NULL, author TEXT NOT NULL, word TEXT NOT NULL, text TEXT NOT NULL, answer TEXT NOT NULL,
      state TEXT NOT NULL, note TEXT, said_at REAL, told_at REAL, asked_at REAL NOT NULL, at REAL NOT NULL,
      UNIQUE (comment_id, place)
    );
    CREATE INDEX answers_by_repo ON answers(repo_id, num);
    CREATE INDEX repos_by_name ON repos(id COLLATE NOCASE);
    CREATE INDEX variants_wide ON variants(repo_id) WHERE state = 'current' AND note IS NULL
      AND json_extract(inspection, '$.bpw') >= 8;
    CREATE TABLE proofs (
      reference_key TEXT NOT NULL, base_model TEXT NOT NULL COLLATE NOCASE, base_sha TEXT, verdict TEXT NOT NULL,
      detail TEXT NOT NULL, salt TEXT NOT NULL, at REAL NOT NULL, seen TEXT NOT NULL DEFAULT '',
      owner TEXT NOT NULL DEFAULT '' COLLATE NOCASE, differed_at REAL, next_at REAL NOT NULL DEFAULT 0,
      tries INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (reference_key, base_model)
    );
    CREATE INDEX proofs_by_base ON proofs(base_model, verdict);
    CREATE INDEX proofs_due ON proofs(next_at);
    CREATE TABLE templates (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL);
    CREATE TABLE bases (
      id TEXT PRIMARY KEY COLLATE NOCASE, sha TEXT, template_sha256 TEXT, others TEXT NOT NULL DEFAULT '[]',
      complete INTEGER NOT NULL DEFAULT 1, note TEXT, at REAL NOT NULL
    );
    CREATE TABLE published_files (
      dataset TEXT NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, source TEXT NOT NULL DEFAULT '',
      PRIMARY KEY (dataset, path)
    )
    """
    for statement in statements.split(";"):
        if statement.strip():
            db.conn.execute(statement)
    # Whatever ends a job or brings a figure, the cards that tell of it are decided anew.
    touch = (
        "INSERT INTO publishing (repo_id, key, action, reason, at, next_at) "
        "SELECT DISTINCT repo_id, '', 'new', '', 0, {} FROM variants WHERE {} ON CONFLICT (repo_id) DO UPDATE SET "
        "touched = touched + 1, next_at = MIN(COALESCE(next_at, excluded.next_at), excluded.next_at);"
    )
    db.conn.execute(
        "CREATE TRIGGER job_ended AFTER UPDATE OF state ON jobs WHEN NEW.state IN ('done', 'dead') BEGIN "
        + touch.format("NEW.updated_at", "id = NEW.variant_id")
        + " END"
    )
    # One pull that ended may be what the owner's others wait for.
    db.conn.execute(
        "CREATE TRIGGER pull_ended AFTER UPDATE OF status ON pulls WHEN NEW.status <> OLD.status BEGIN "
        "UPDATE publishing SET touched = touched + 1, next_at = MIN(COALESCE(next_at, NEW.updated_at), NEW.updated_at) "
        "WHERE action = 'wait' AND repo_id <> NEW.repo_id "
        "AND substr(repo_id, 1, instr(repo_id, '/')) = substr(NEW.repo_id, 1, instr(NEW.repo_id, '/')); END"
    )
    db.conn.execute(
        "CREATE TRIGGER measured AFTER INSERT ON measurements BEGIN "
        + touch.format("NEW.created_at", "key = NEW.variant_key")
        + " END"
    )


@migrations()
def m004_the_queue(db: Database) -> None:
    """Turns, stages, runners, needs and measured durations of jobs; ``blocked``: 1 by its baseline, 2 by a delay."""
    statements = """
    ALTER TABLE jobs ADD COLUMN urgency INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN turn REAL NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN run INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN need TEXT;
    ALTER TABLE jobs ADD COLUMN need_memory INTEGER;
    ALTER TABLE jobs ADD COLUMN runner TEXT;
    ALTER TABLE jobs ADD COLUMN stage TEXT;
    ALTER TABLE jobs ADD COLUMN began_at REAL;
    ALTER TABLE jobs ADD COLUMN seconds REAL;
    ALTER TABLE jobs ADD COLUMN cancel TEXT;
    ALTER TABLE jobs ADD COLUMN avoid TEXT;
    UPDATE jobs SET turn = created_at - 86400.0 * priority, owner = COALESCE((SELECT
      substr(v.repo_id, 1, instr(v.repo_id, '/') - 1) FROM variants v WHERE v.id = jobs.variant_id), ''),
      size_bytes = COALESCE((SELECT v.size_bytes FROM variants v WHERE v.id = jobs.variant_id), 0),
      blocked = CASE WHEN state <> 'todo' THEN 0
        WHEN EXISTS (SELECT 1 FROM jobs d WHERE d.id = jobs.depends_on AND d.state <> 'done') THEN 1
        WHEN not_before > 0 THEN 2 ELSE 0 END;
    DROP INDEX jobs_by_state;
    CREATE INDEX jobs_by_state ON jobs(state, updated_at);
    CREATE INDEX jobs_ready ON jobs(turn, id) WHERE state = 'todo' AND blocked = 0;
    CREATE INDEX jobs_delayed ON jobs(not_before) WHERE state = 'todo' AND blocked = 2;
    CREATE INDEX jobs_leased ON jobs(lease_until) WHERE state IN ('leased', 'running');
    CREATE INDEX jobs_by_parent ON jobs(depends_on) WHERE depends_on IS NOT NULL;
    CREATE INDEX jobs_in_turn ON jobs(turn, id) WHERE state = 'todo';
    CREATE INDEX jobs_by_owner ON jobs(owner, urgency, turn) WHERE state = 'todo';
    CREATE INDEX jobs_measured ON jobs(kind, updated_at) WHERE seconds IS NOT NULL;
    CREATE INDEX job_events_by_job ON job_events(job_id);
    DROP TRIGGER job_ended
    """
    for statement in statements.split(";"):
        if statement.strip():
            db.conn.execute(statement)
    db.conn.execute(
        "CREATE TRIGGER job_ended AFTER UPDATE OF state ON jobs "
        "WHEN NEW.state IN ('done', 'failed', 'cancelled', 'dead') BEGIN "
        "INSERT INTO publishing (repo_id, key, action, reason, at, next_at) "
        "SELECT DISTINCT repo_id, '', 'new', '', 0, NEW.updated_at FROM variants WHERE id = NEW.variant_id "
        "ON CONFLICT (repo_id) DO UPDATE SET touched = touched + 1, "
        "next_at = MIN(COALESCE(next_at, excluded.next_at), excluded.next_at); END"
    )
