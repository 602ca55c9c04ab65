"""One service for one database: the lock holds while its holder lives, and not a moment longer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bot.lock import AlreadyServedError, InstanceLock, held, holder_of, lock_path
from core.errors import StorageError

HOLD = """
import sys, time
from pathlib import Path
from bot.lock import InstanceLock
lock = InstanceLock(Path(sys.argv[1]), now=1_800_000_000.0)
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_second_one_is_refused_with_who_holds_it(tmp_path: Path) -> None:
    db = tmp_path / "deep" / "q.db"
    with InstanceLock(db, now=1_800_000_000.0):
        assert held(db)
        with pytest.raises(AlreadyServedError, match=rf"process {os.getpid()} on .*, since 2027-01-15T08:00:00Z"):
            InstanceLock(db, now=2.0)
        (tmp_path / "link.db").symlink_to(db)
        with pytest.raises(AlreadyServedError):
            InstanceLock(tmp_path / "link.db", now=2.0)
        with InstanceLock(tmp_path / "other.db", now=2.0):
            pass
    assert not held(db) and holder_of(db) is None
    with InstanceLock(db, now=3.0):
        pass


def test_a_killed_holder_is_no_obstacle_and_its_children_do_not_hold_it(tmp_path: Path) -> None:
    db = tmp_path / "q.db"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(db)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(AlreadyServedError, match=f"process {process.pid} "):
            InstanceLock(db, now=1.0)
        process.kill()
        process.wait()
        os.kill(child, 0)
        assert holder_of(db) is not None and not held(db), "what it wrote stays, and says nothing"
        with InstanceLock(db, now=1.0):
            holder = holder_of(db)
            assert holder is not None and holder.pid == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"pid": "x", "host": 1, "since": 1}', '{"pid": 1e999}'])
def test_whatever_stands_in_the_file_is_no_obstacle(tmp_path: Path, text: str) -> None:
    db = tmp_path / "q.db"
    lock_path(db).write_text(text)
    assert holder_of(db) is None and not held(db)
    with InstanceLock(db, now=1.0):
        assert json.loads(lock_path(db).read_text())["pid"] == os.getpid()


def test_a_date_that_none_is_breaks_no_sentence(tmp_path: Path) -> None:
    db = tmp_path / "q.db"
    with InstanceLock(db, now=1e300), pytest.raises(AlreadyServedError, match="Stop it first"):
        InstanceLock(db, now=1.0)


def test_a_removed_file_does_not_let_a_second_one_in_beside_a_new_holder(tmp_path: Path) -> None:
    db = tmp_path / "q.db"
    with InstanceLock(db, now=1.0):
        lock_path(db).unlink()
        with InstanceLock(db, now=2.0), pytest.raises(AlreadyServedError):
            InstanceLock(db, now=3.0)


def test_a_place_that_can_not_hold_it_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="lock"):
        InstanceLock(tmp_path / "file" / "q.db", now=1.0)
    assert not held(tmp_path / "file" / "q.db")
