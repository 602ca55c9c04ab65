"""Copies of the database, made and put back while it is used: whole, checked, atomic.

A copy is made by SQLite's own online backup in one step: in WAL mode that is one snapshot, for which no writer waits.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from bot.store.db import migrations
from core.canonical import storage_error
from core.errors import StorageError

#: Seconds for which a writer that holds the database is waited for.
_PATIENCE_S = 60.0
#: Files that SQLite keeps beside a database.
_BESIDE = ("-wal", "-shm", "-journal")
_STAMP = "%Y%m%dT%H%M%SZ"
#: How the name of a folder begins in which a copy is made.
_PART = ".quantcard-copy-"


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy in a folder. ``made_at``: seconds since the epoch, by its name; ``problem``: why it can't be used."""

    path: Path
    size_bytes: int
    made_at: float
    problem: str | None


def make_backup(db: Path, to: Path, *, force: bool = False) -> int:
    """Copy the database to a file, which appears whole and checked, or not at all; returns its size in bytes.

    Args:
        force: take the place of a file that is there already.

    Raises:
        StorageError: there is no such database, the file is there, the disk is full, or the copy is damaged.
    """
    if not db.is_file():
        raise StorageError(f"There is no database {db}. Check --db.")
    if to.resolve() in (db.resolve(), *_beside(db.resolve())):
        raise StorageError(f"{to} is the database itself. Name another file.")
    _refuse_taken(to, force=force)
    with _errors(f"{db} could not be copied to {to}"), _whole(to, like=db, room=_size(db.resolve())) as part:
        with closing(_open(db, "rw")) as source, closing(sqlite3.connect(part)) as target:
            _check_ours(source, db)
            _copy(source, target)
            # One file alone, readable from a disk that can't be written too.
            target.execute("PRAGMA journal_mode=DELETE")
            _check_whole(target, db)
        _refuse_taken(to, force=force)
        return part.stat().st_size


def back_up_into(folder: Path, db: Path, *, now: float, keep: int | None = None) -> Path:
    """Copy the database into a folder under its name and the time; returns the copy.

    Args:
        now: seconds since the epoch.
        keep: copies of this database that may be there afterwards; the oldest others are removed. None: all.

    Raises:
        StorageError: as for :func:`make_backup`.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime(_STAMP)
    path = folder / f"{db.stem}-{stamp}.db"
    make_backup(db, path)
    if keep is not None:
        others = [one for one in reversed(_named(folder, db.stem)) if one != path]
        for old in others[max(keep - 1, 0) :]:
            with suppress(OSError):
                old.unlink()
    return path


def backups_in(folder: Path, stem: str) -> list[Backup]:
    """The copies of a database in a folder, the oldest first; each is opened, but not read through.

    Args:
        stem: the database's name without its ending.
    """
    found = []
    for path in _named(folder, stem):
        problem = None
        try:
            with _errors(f"{path} can't be read"), closing(_open(path, "ro")) as copy:
                _check_ours(copy, path)
        except StorageError as error:
            problem = str(error)
        with suppress(OSError):
            found.append(Backup(path, path.stat().st_size, _made_at(path), problem))
    return found


def newest_backup(folder: Path, stem: str) -> float | None:
    """When the newest copy in a folder was made, by its name: seconds since the epoch; None where there is none."""
    return max(map(_made_at, _named(folder, stem)), default=None)


def check_backup(path: Path) -> None:
    """See that a file can take the database's place.

    Raises:
        StorageError: it is not there, no database of ours, a newer quantcard's, or damaged.
    """
    if not path.is_file():
        raise StorageError(f"There is no file {path}. 'quantcard backup list FOLDER' shows what there is.")
    with _errors(f"{path} can't be read"), closing(_open(path, "ro")) as copy:
        _check_ours(copy, path)
        _check_whole(copy, path)


def restore_backup(source: Path, db: Path, *, now: float) -> Path | None:
    """Put a copy in the database's place; returns where what was there is kept, None where there was nothing.

    A database that is whole is overwritten in one transaction, so that a kill or a full disk leaves it as it was,
    and a process that has it open sees either all of the one or all of the other. A damaged one is moved aside.

    Args:
        now: seconds since the epoch, for the kept one's name.

    Raises:
        StorageError: the copy can't be used (nothing was changed), the disk is full, or somebody keeps writing.
    """
    check_backup(source)
    db = db.resolve()
    if source.resolve() == db:
        raise StorageError(f"{source} is the database itself. Name a copy.")
    stamp = datetime.fromtimestamp(now, UTC).strftime(_STAMP)
    kept = _free(db.with_name(f"{db.name}.replaced-{stamp}"))
    if db.exists() and _usable(db):
        make_backup(db, kept)
        with (
            _errors(f"{db} could not be restored; it is as it was"),
            closing(_open(source, "ro")) as copy,
            closing(_open(db, "rw")) as target,
        ):
            target.execute("PRAGMA synchronous=FULL")
            _copy(copy, target)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return kept
    with (
        _errors(f"{db} could not be restored"),
        _whole(db, like=db, room=_size(source), first=lambda: _set_aside(db, kept)) as part,
        closing(_open(source, "ro")) as copy,
        closing(sqlite3.connect(part)) as target,
    ):
        _copy(copy, target)
        target.execute("PRAGMA journal_mode=DELETE")
    return kept if kept.exists() else None


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Copy all pages in one step, and again while somebody holds the target."""
    until = time.monotonic() + _PATIENCE_S

    def patience(status: int, remaining: int, total: int) -> None:
        if remaining and time.monotonic() > until:
            raise StorageError("Somebody keeps writing to the database. Stop 'quantcard run' and try again.")

    source.backup(target, pages=-1, progress=patience, sleep=0.05)


def _usable(db: Path) -> bool:
    """Whether a database is there whole; False: it is damaged, or an empty file.

    Raises:
        StorageError: it is somebody else's, or can't be read now.
    """
    if not db.is_file():
        raise StorageError(f"{db} is no file. Check --db.")
    if db.stat().st_size == 0:
        return False
    try:
        with closing(_open(db, "rw")) as found:
            whole = found.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
            if whole and not _applied(found):
                raise StorageError(f"{db} is no database of quantcard's, so it is not overwritten. Check --db.")
            return whole
    except sqlite3.OperationalError as error:
        raise StorageError(f"{db} can't be read now ({error}). Stop what uses it and try again.") from error
    except sqlite3.DatabaseError:
        return False


def _set_aside(db: Path, kept: Path) -> None:
    """Move a damaged database and what SQLite keeps beside it; a log left alone would be played into the next."""
    for end in (*_BESIDE, ""):
        path = db.with_name(db.name + end)
        if path.exists():
            path.replace(kept.with_name(kept.name + end))


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    applied = _applied(connection)
    if not applied:
        raise StorageError(f"{path} is no database of quantcard's.")
    if unknown := applied - {migration.name for migration in migrations._migrations}:
        raise StorageError(f"{path} was made by a newer quantcard ({', '.join(sorted(unknown))}). Update quantcard.")


def _applied(connection: sqlite3.Connection) -> set[str]:
    """Names of the migrations that a database has; none where it is not ours."""
    table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    if connection.execute(table, (migrations.migrations_table,)).fetchone() is None:
        return set()
    rows = connection.execute(
        f"SELECT name FROM {migrations.migrations_table} WHERE migration_set = ?", (migrations.name,)
    )
    return {str(row[0]) for row in rows}


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    said = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if said != ["ok"]:
        raise StorageError(f"{path} is damaged ({'; '.join(map(str, said))[:300]}). Use another copy.")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=_PATIENCE_S, isolation_level=None)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """SQLite's and the disk's errors as a sentence."""
    try:
        yield
    except sqlite3.Error as error:
        full = "full" in str(error) or "disk I/O" in str(error)
        hint = "Free some space and run it again." if full else "Check the path, or use another copy."
        raise StorageError(f"{what} ({error}). {hint}") from error
    except OSError as error:
        raise StorageError(f"{what} ({error.strerror or error}). Check the folder and its space.") from error


@contextmanager
def _whole(path: Path, *, like: Path, room: int, first: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A file to be written that takes its place at the end, or leaves nothing, whatever stands beside it meanwhile.

    Args:
        like: whose owner and rights it gets, if that is there.
        room: bytes that the disk must have.
        first: called right before the file takes its place.
    """
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(folder)
    if (free := shutil.disk_usage(folder).free) < room:
        raise StorageError(
            f"The disk is full: {path} needs {room / 1e6:.0f} MB and {free / 1e6:.0f} MB are free. Free some space."
        )
    part = Path(tempfile.mkdtemp(prefix=_PART, suffix=".part", dir=folder))
    handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        made = part / "copy.db"
        yield made
        with suppress(OSError):
            shutil.copymode(like, made)
            os.chown(made, like.stat().st_uid, like.stat().st_gid)
        _sync(made)
        first()
        made.replace(path)
        _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(handle)


def _clear_abandoned(folder: Path) -> None:
    """Remove what killed processes left of their attempts: folders that nobody holds a lock on."""
    for left in folder.glob(f"{_PART}*.part"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        os.close(handle)


def _named(folder: Path, stem: str) -> list[Path]:
    """Our copies of a database in a folder, by their names, the oldest first."""
    pattern = re.compile(rf"{re.escape(stem)}-\d{{8}}T\d{{6}}Z\.db")
    try:
        found = [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file()]
    except OSError:
        return []
    return sorted((path for path in found if _made_at(path) >= 0), key=lambda path: path.name)


def _made_at(path: Path) -> float:
    """When a copy was made, by its name; -1 where that is no time."""
    try:
        return datetime.strptime(path.stem.rpartition("-")[2], _STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return -1.0


def _refuse_taken(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise StorageError(f"{path} is a folder. Name a file in it.")
    if path.exists() and not force:
        raise StorageError(f"{path} is there already. Name another file, or give --force.")


def _free(path: Path) -> Path:
    """The path, or the first one like it that nothing stands at."""
    found = path
    for n in itertools.count(2):
        if not found.exists():
            break
        found = path.with_name(f"{path.name}-{n}")
    return found


def _beside(db: Path) -> list[Path]:
    return [db.with_name(db.name + end) for end in _BESIDE]


def _size(db: Path) -> int:
    """Bytes of a database with what stands in its log."""
    return sum(path.stat().st_size for path in (db, *_beside(db)) if path.exists())
