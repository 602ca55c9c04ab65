"""The database: made, opened again, refused where it is not ours to use."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlite_utils

from bot.store import Store
from bot.store.db import immediate, migrations
from core.errors import StorageError
from core.protocol import WIKITEXT2_TEST, Protocol


def test_a_fresh_and_a_reopened_database_have_every_migration(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "q.db"
    for _ in range(2):
        with Store(path) as store:
            assert len(migrations.applied(store.db)) == len(migrations._migrations)
            assert store.db.conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as store:
        store.db["_sqlite_migrations"].insert({"migration_set": "quantcard", "name": "m999_future", "applied_at": ""})
    with pytest.raises(StorageError, match="newer quantcard"):
        Store(tmp_path / "q.db")


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text, and long enough to be one" * 50)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("text.db", "folder.db", "file/q.db"):
        with pytest.raises(StorageError):
            Store(tmp_path / name)


def test_a_writer_does_not_keep_others_from_opening(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as writer, immediate(writer.db), Store(tmp_path / "q.db") as reader:
        assert reader.jobs.counts() == {}


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as store:
        with pytest.raises(sqlite3.IntegrityError), immediate(store.db):
            store.repos.follow("a", consented=False, now=1.0)
            store.db.conn.execute("INSERT INTO follows (name, created_at) VALUES ('a', 1)")
        assert store.repos.follows() == []
        store.db.conn.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageError, match="disk full"):
            for n in range(2000):
                store.results.put(f"k{n}", "x" * 4000)
        store.db.conn.execute("PRAGMA max_page_count = 1000000")
        store.results.put("after", "fine")
        assert store.results.get("after") == "fine"


def test_a_lease_is_held_by_one(tmp_path: Path) -> None:
    with Store(tmp_path / "q.db") as store:
        take, drop = store.results.take_lease, store.results.drop_lease
        assert take("p", "a", now=0.0, lease=10.0) and take("p", "a", now=5.0, lease=10.0)
        assert not take("p", "b", now=14.0, lease=10.0)
        drop("p", "b")
        assert not take("p", "b", now=14.0, lease=10.0)
        assert take("p", "b", now=16.0, lease=10.0)
        drop("p", "b")
        assert take("p", "a", now=16.0, lease=10.0)


def test_processes_open_a_fresh_database_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from bot.store import Store; Store(Path(sys.argv[1])).close()"
    together = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "q.db")]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in together] == [0] * 4


def test_a_touch_while_a_card_is_decided_about_is_not_lost(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as store:
        store.publishing.touch("o/r", now=1.0)
        assert store.publishing.due(now=1.0) == ["o/r"]
        decided = {"key": "k", "sha": None, "action": "nothing", "reason": "", "num": None, "next_at": None}
        touched = store.publishing.touches("o/r")
        store.publishing.note("o/r", **decided, now=2.0, touched=touched)
        assert store.publishing.due(now=9.0) == []
        touched = store.publishing.touches("o/r")
        store.publishing.touch("o/r", now=3.0)
        store.publishing.note("o/r", **decided, now=4.0, touched=touched)
        assert store.publishing.due(now=4.0) == ["o/r"]


def test_a_mark_while_a_repo_is_looked_into_is_not_lost(tmp_path: Path) -> None:
    saved = {"last_modified": None, "source": "follow", "note": None, "base_model": None, "config": {}}
    with Store(tmp_path / "a.db") as store:
        store.watching.mark_due("o/r", sha="a", now=1.0, follow="o")
        store.repos.save_repo("o/r", sha="a", now=1.0, **saved)
        assert store.watching.due(now=9.0, limit=9) == []
        store.watching.mark_due("o/r", sha="b", now=3.0, follow="o")
        store.repos.save_repo("o/r", sha="a", now=2.0, **saved)
        assert [due.due_sha for due in store.watching.due(now=9.0, limit=9)] == ["b"]


def test_a_pull_that_ends_wakes_the_owners_waiting_repos(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as store:
        for repo, action in (("o/a", "wait"), ("o/b", "nothing"), ("other/c", "wait"), ("o/d", "wait")):
            store.publishing.note(
                repo, key="k", sha=None, action=action, reason="", num=None, now=1.0, next_at=None, touched=0
            )
        store.results.save_pull("o/d", 1, key="k", status="open", url=None, now=2.0)
        assert store.publishing.due(now=9.0) == []
        store.results.save_pull("o/d", 1, key="k", status="merged", url=None, now=3.0)
        assert store.publishing.due(now=9.0) == ["o/a"]


def test_jobs_of_an_earlier_quantcard_go_on(tmp_path: Path) -> None:
    """Waiting, put off, running and dead ones, with a baseline that others wait for."""
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path, isolation_level=None)
    migrations.apply(sqlite_utils.Database(connection), stop_before="m004_the_queue")
    connection.execute("INSERT INTO repos (id) VALUES ('up/r')")
    connection.execute(
        "INSERT INTO variants (id, repo_id, name, key, label, files, size_bytes, revision, first_seen) "
        "VALUES (1, 'up/r', 'm', 'k', 'Q4_0', '[]', 7, '1', 0)"
    )
    protocol = Protocol(corpus=WIKITEXT2_TEST).model_dump_json()
    for number, (state, priority, parent, later) in enumerate(
        [("todo", 2, None, 0), ("todo", 1, 1, 0), ("todo", 0, None, 50), ("running", 0, None, 0), ("dead", 0, None, 0)]
    ):
        connection.execute(
            "INSERT INTO jobs (key, kind, variant_id, protocol, state, priority, depends_on, not_before, lease_owner, "
            "lease_until, created_at, updated_at) VALUES (?, 'speed', 1, ?, ?, ?, ?, ?, 'gone', 90, 10, 10)",
            (f"k{number}", protocol, state, priority, parent, later),
        )
    connection.close()
    with Store(path) as store:
        assert store.jobs.counts() == {"dead": 1, "running": 1, "todo": 3}
        assert {(job.owner, job.size_bytes) for job in store.jobs.all()} == {("up", 7)}
        taken = []
        while job := store.leases.claim("w", now=100.0, lease=1000):
            taken.append(job.key)
        # k1 waits for k0; k3's worker is gone.
        assert sorted(taken) == ["k0", "k2", "k3"] and taken[0] == "k0"
        first = store.jobs.by_keys(["k0"])["k0"]
        assert store.leases.finish(first.id, "w", now=101.0)
        last = store.leases.claim("w", now=102.0, lease=1000)
        assert last and last.key == "k1"
        assert store.jobs.retry(5, now=103.0)
        assert store.publishing.due(now=200.0) == ["up/r"]
