"""Copies of a database that is written to meanwhile: whole and consistent, or not there; and put back."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from bot_helpers import until

from bot.cli import run_app
from bot.lock import InstanceLock
from bot.store import Store
from bot.store.backup import back_up_into, backups_in, check_backup, make_backup, newest_backup, restore_backup
from core.errors import StorageError

NOW = 1_800_000_000.0
DAY = 86400.0

#: Writes pairs that belong together, as fast as it can, and a lot beside them.
WRITER = """
import sys
from pathlib import Path
from bot.store import Store
from bot.store.db import immediate
with Store(Path(sys.argv[1])) as store:
    for n in range(10**9):
        with immediate(store.db):
            store.results.put("left", str(n))
            store.results.put(f"pad{n % 500}", "x" * 3000)
            store.results.put("right", str(n))
"""


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "q.db"
    with Store(path) as store:
        store.repos.follow("owner", consented=True, now=NOW)
        for n in range(300):
            store.results.put(f"pad{n}", "y" * 3000)
    return path


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE)
    try:
        yield running
    finally:
        running.kill()
        running.communicate(timeout=20)


def names(path: Path) -> list[str]:
    with Store(path) as store:
        return [follow.name for follow in store.repos.follows()]


def hidden(folder: Path) -> list[str]:
    """What an attempt left behind."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def value(path: Path, name: str) -> str | None:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as copy:
        row = copy.execute("SELECT value FROM keyed WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None


def test_a_copy_made_while_another_process_writes_is_whole(tmp_path: Path, db: Path) -> None:
    seen = []
    with process(WRITER, str(db)):
        until(lambda: value(db, "right"))
        for n in range(8):
            to = tmp_path / "copies" / f"{n}.db"
            make_backup(db, to)
            check_backup(to)
            left, right = value(to, "left"), value(to, "right")
            assert left == right is not None
            seen.append(int(left or 0))
            assert not to.with_name(f"{to.name}-wal").exists(), "one file alone"
    assert seen == sorted(set(seen)), "the writer went on"
    assert hidden(tmp_path / "copies") == []
    assert names(tmp_path / "copies" / "0.db") == ["owner"]


def test_a_writer_does_not_wait_for_a_copy(tmp_path: Path, db: Path) -> None:
    """A transaction that is open does not hold the copy up, and is not in it."""
    with Store(db) as store:
        store.db.conn.execute("BEGIN IMMEDIATE")
        store.db.conn.execute("INSERT INTO keyed VALUES ('open', '1')")
        make_backup(db, tmp_path / "copy.db")
        store.db.conn.execute("COMMIT")
    assert value(tmp_path / "copy.db", "open") is None and value(db, "open") == "1"


def test_what_is_there_is_not_overwritten_unless_asked(tmp_path: Path, db: Path) -> None:
    to = tmp_path / "copy.db"
    to.write_text("mine")
    with pytest.raises(StorageError, match="--force"):
        make_backup(db, to)
    assert to.read_text() == "mine"
    make_backup(db, to, force=True)
    check_backup(to)
    for path in (db, db.with_name("q.db-wal"), tmp_path):
        with pytest.raises(StorageError):
            make_backup(db, path, force=True)
    (tmp_path / "link.db").symlink_to(db)
    with pytest.raises(StorageError, match="itself"):
        make_backup(db, tmp_path / "link.db", force=True)
    with pytest.raises(StorageError, match="no database"):
        make_backup(tmp_path / "none.db", tmp_path / "x.db")
    assert not (tmp_path / "none.db").exists() and hidden(tmp_path) == []


def test_a_folder_keeps_the_newest(tmp_path: Path, db: Path) -> None:
    folder = tmp_path / "copies"
    (folder / "q-20200101T000000Z.db").parent.mkdir()
    for other in ("else-20200101T000000Z.db", "q-20200101.db", "note.txt"):
        (folder / other).write_text("not a copy of this database")
    made = [back_up_into(folder, db, now=NOW + n * DAY, keep=3) for n in range(5)]
    assert [one.path for one in backups_in(folder, "q")] == made[2:]
    assert newest_backup(folder, "q") == NOW + 4 * DAY
    # The clock was set back: what was just made is not what goes.
    early = back_up_into(folder, db, now=NOW - DAY, keep=2)
    assert [one.path for one in backups_in(folder, "q")] == [early, made[4]]
    assert all((folder / other).exists() for other in ("else-20200101T000000Z.db", "q-20200101.db", "note.txt"))
    with pytest.raises(StorageError, match="there already"):
        back_up_into(folder, db, now=NOW - DAY, keep=2)


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, db: Path) -> None:
    """By a limit on the size of files, which SQLite meets as it meets a full disk."""
    code = (
        "import sys; from pathlib import Path; from bot.store.backup import make_backup, restore_backup\n"
        "make_backup(Path(sys.argv[1]), Path(sys.argv[2])) if sys.argv[3] == 'make' else "
        "restore_backup(Path(sys.argv[2]), Path(sys.argv[1]), now=1.0)"
    )

    def limited(doing: str) -> str:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        ended = subprocess.run(
            [sys.executable, "-c", code, str(db), str(tmp_path / "out" / "copy.db"), doing],
            preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        return ended.stderr

    assert "StorageError" in limited("make") and "Free some space" in limited("make")
    assert list((tmp_path / "out").iterdir()) == []
    make_backup(db, tmp_path / "out" / "copy.db")
    with Store(db) as store:
        store.results.put("later", "1")
    assert "StorageError" in limited("restore")
    assert value(db, "later") == "1" and names(db) == ["owner"], "as it was"
    with closing(sqlite3.connect(db)) as found:
        assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_killed_attempt_leaves_nothing_for_long(tmp_path: Path, db: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bot.store.backup import make_backup\n"
        "while True: make_backup(Path(sys.argv[1]), Path(sys.argv[2]), force=True)"
    )
    to = tmp_path / "out" / "copy.db"
    for n in range(6):
        with process(code, str(db), str(to)) as running:
            until(lambda: to.exists() and hidden(to.parent))
            time.sleep(0.004 * n)
            running.send_signal(signal.SIGKILL)
        check_backup(to)
    make_backup(db, to, force=True)
    assert [path.name for path in to.parent.iterdir()] == ["copy.db"]


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[5000:9000] = b"\xa5" * 4000
    path.write_bytes(raw)


def test_a_restored_database_is_what_it_was_and_the_other_is_kept(tmp_path: Path, db: Path) -> None:
    copy = tmp_path / "copy.db"
    make_backup(db, copy)
    with Store(db) as store:
        store.repos.follow("newer", consented=False, now=NOW)
    with Store(db) as open_one:
        assert len(open_one.repos.follows()) == 2
        kept = restore_backup(copy, db, now=NOW)
        # Who has it open sees it whole at once.
        assert [follow.name for follow in open_one.repos.follows()] == ["owner"]
        open_one.repos.follow("afterwards", consented=False, now=NOW)
    assert kept is not None and kept.name == "q.db.replaced-20270115T080000Z"
    assert names(kept) == ["newer", "owner"] and names(db) == ["afterwards", "owner"] and names(copy) == ["owner"]
    again = restore_backup(copy, db, now=NOW)
    assert again is not None and again.name == "q.db.replaced-20270115T080000Z-2"
    with Store(db) as store:
        assert store.db.conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


@pytest.mark.parametrize("how", ["damaged", "no database", "empty", "gone"])
def test_a_database_that_is_lost_is_restored(tmp_path: Path, db: Path, how: str) -> None:
    copy = tmp_path / "copy.db"
    make_backup(db, copy)
    # What a killed process leaves beside it must not be played into the copy.
    with Store(db) as store:
        store.repos.follow("in the log", consented=False, now=NOW)
        log = db.with_name("q.db-wal").read_bytes()
    if how == "damaged":
        damage(db)
    else:
        db.write_bytes({"no database": b"text" * 4000, "empty": b""}.get(how, b""))
    if how == "gone":
        db.unlink()
    db.with_name("q.db-wal").write_bytes(log)
    kept = restore_backup(copy, db, now=NOW)
    assert names(db) == ["owner"]
    assert (kept is None) == (how == "gone") and (kept is None or kept.exists())
    assert hidden(tmp_path) == []


def test_what_can_not_take_its_place_changes_nothing(tmp_path: Path, db: Path) -> None:
    bad = tmp_path / "bad.db"
    before = db.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(StorageError, match=match):
            restore_backup(bad, db, now=NOW)
        assert db.read_bytes() == before and list(tmp_path.glob("*replaced*")) == [] and names(db) == ["owner"]

    refused("no file")
    make_backup(db, bad)
    damage(bad)
    refused("damaged|malformed")
    bad.write_bytes(before[:5000])
    refused("bad.db")
    bad.write_text("a text, and long enough to be taken for more than that" * 50)
    refused("not a database")
    bad.unlink()
    with closing(sqlite3.connect(bad)) as other:
        other.execute("CREATE TABLE t (x)")
    refused("no database of quantcard")
    bad.unlink()
    make_backup(db, bad)
    with closing(sqlite3.connect(bad)) as newer:
        newer.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('quantcard', 'm9', '')")
        newer.commit()
    refused("newer quantcard")
    bad = db
    refused("itself")


def test_somebody_elses_database_is_not_overwritten(tmp_path: Path, db: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as found:
        found.execute("CREATE TABLE precious (x)")
    with pytest.raises(StorageError, match="not overwritten"):
        restore_backup(db, other, now=NOW)


def test_a_restore_that_is_killed_leaves_the_one_or_the_other(tmp_path: Path, db: Path) -> None:
    copy = tmp_path / "copy.db"
    make_backup(db, copy)
    with Store(db) as store:
        store.repos.follow("newer", consented=False, now=NOW)
    code = (
        "import sys; from pathlib import Path; from bot.store.backup import restore_backup\n"
        "while True: restore_backup(Path(sys.argv[1]), Path(sys.argv[2]), now=1.0)"
    )
    for n in range(8):
        with process(code, str(copy), str(db)) as running:
            until(lambda: list(tmp_path.glob("*replaced*")))
            time.sleep(0.01 * n)
            running.send_signal(signal.SIGKILL)
        assert names(db) in (["newer", "owner"], ["owner"])
        for kept in tmp_path.glob("q.db.replaced*"):
            check_backup(kept)
            with suppress(OSError):
                kept.unlink()
    back_up_into(tmp_path, db, now=NOW)
    assert hidden(tmp_path) == []


def test_the_commands(tmp_path: Path, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert run_app(["backup", *arguments, "--db", str(db)]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        return said.out.strip(), " ".join(said.err.split())

    folder = tmp_path / "copies"
    folder.mkdir()
    assert "Name a path" in told("create", code=2)[1]
    one = told("create", str(tmp_path / "one.db"))[0]
    assert one == str(tmp_path / "one.db") and "--force" in told("create", one, code=6)[1]
    assert "is for a folder" in told("create", str(tmp_path / "two.db"), "--keep", "2", code=2)[1]
    named = told("create", str(folder), "--keep", "2")[0]
    assert Path(named).parent == folder and told("create", f"{tmp_path}/new/")[0].startswith(f"{tmp_path}/new/q-20")
    (folder / "q-20200101T000000Z.db").write_text("damaged")
    listed = json.loads(told("list", str(folder), "--json")[0])
    assert [item["path"] for item in listed] == [str(folder / "q-20200101T000000Z.db"), named]
    assert "not a database" in listed[0]["problem"] and listed[1]["problem"] is None
    assert named in told("list", str(folder))[0].replace("\n", "")
    with InstanceLock(db, now=time.time()):
        assert f"process {os.getpid()}" in told("restore", named, code=2)[1]
        told("create", str(tmp_path / "beside-a-service.db"))
    kept = told("restore", named)[0]
    assert Path(kept).name.startswith("q.db.replaced-") and names(Path(kept)) == ["owner"]
    assert "not a database" in told("restore", str(folder / "q-20200101T000000Z.db"), code=6)[1]
