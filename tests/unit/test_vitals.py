"""Whether the service is ready: a pure decision over what its parts noted."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bot.health import Health
from bot.settings import load_settings
from bot.store import Store
from bot.vitals import Seen, Vitals, free_bytes, limit_s, unready

FINE = Seen(started_at=0.0, alive_at=0.0)
GIB = 1 << 30


def reasons(seen: Seen = FINE, **given: object) -> list[str]:
    usual: dict[str, object] = {
        "silent_s": 1.0, "limit_s": 600.0, "database": None,
        "free": {"data": GIB}, "room": {"data": GIB, "database": 1},
    }  # fmt: skip
    return unready(seen, **{**usual, **given})  # type: ignore[arg-type]


def test_each_reason_is_a_sentence() -> None:
    assert reasons() == []
    assert reasons(Seen(0.0, 0.0, draining=True), silent_s=1e9) == ["The service is ending."]
    assert "Restart" in reasons(Seen(0.0, 0.0, worker_died=True))[0]
    assert reasons(database="The database is locked.") == ["The database is locked."]
    assert reasons(free={"data": 5_000_000})[0].startswith("The disk of the data has 5 MB free and needs 1074 MB.")
    failing = Seen(0.0, 0.0, error="The Hub does not know this token.")
    assert reasons(failing) == [], "a cycle that failed is tried again"
    [said] = reasons(failing, silent_s=700.0)
    assert "for 700 s" in said and "does not know this token" in said
    assert len(reasons(failing, silent_s=700.0, database="x", free={"data": 1, "database": 0})) == 4


@pytest.mark.parametrize(("interval", "limit"), [(1.0, 600.0), (900.0, 2700.0), (3600.0, 10800.0)])
def test_how_long_it_may_be_silent(interval: float, limit: float) -> None:
    assert limit_s(interval) == limit


def test_cycles_that_fail_are_no_sign_of_life_and_jobs_are() -> None:
    clock = [100.0]
    vitals = Vitals(started_at=5.0, clock=lambda: clock[0])
    clock[0] += 50
    vitals.cycle_failed("no", seconds=2.0)
    assert vitals.silent_s == 50 and vitals.seen.error == "no"
    vitals.alive()
    assert vitals.silent_s == 0
    clock[0] += 5
    vitals.cycle_ended(seconds=1.0, errors=2)
    vitals.count("jobs_done")
    seen = vitals.seen
    assert (seen.cycles, seen.failures, seen.errors, seen.jobs_done, seen.error) == (2, 1, 3, 1, None)
    vitals.count("backups")
    assert vitals.seen.backups == 1 and vitals.silent_s == 0


def test_the_checks_see_the_machine(tmp_path: Path) -> None:
    settings = load_settings(db=tmp_path / "q.db", webhook_secret="long random text")
    health = Health(settings, Vitals(started_at=0.0))
    assert health.reasons() == ["The database is not there."]
    with Store(settings.db):
        assert health.reasons() == []
        with closing(sqlite3.connect(settings.db, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert "locked" in health.reasons()[0]
    full = Health(settings, Vitals(started_at=0.0), free=lambda path: 1_000_000)
    assert [reason.split(" has ")[0] for reason in full.reasons()] == [
        "The disk of the data",
        "The disk of the database",
    ]
    health.vitals.cycle_failed(f"long random text at {tmp_path}/x", seconds=1.0)
    health.vitals.note(alive_at=health.vitals.seen.alive_at - 1e6)
    [why] = health.reasons()
    assert "long random text" not in why and str(tmp_path) not in why


def test_the_room_of_a_folder_that_is_not_made_yet(tmp_path: Path) -> None:
    found = free_bytes(tmp_path / "a" / "b")
    assert found is not None and abs(found - shutil.disk_usage(tmp_path).free) < GIB
