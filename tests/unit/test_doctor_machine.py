"""What the doctor says of the machine: packages, disk, memory, files, port, leftovers, database, sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bot.doctor.database import judge_backups, judge_database
from bot.doctor.finding import clean, some, worst
from bot.doctor.machine import (
    judge_disk,
    judge_leftovers,
    judge_memory,
    judge_open_files,
    judge_packages,
    judge_port,
)
from bot.doctor.probes import FolderFacts, Leftover, MemoryFacts, PackageFacts, PortFacts
from bot.doctor.sandbox import SandboxFacts, judge_sandbox
from bot.store.health import DatabaseFacts

GB = 1_000_000_000
DATA = FolderFacts(Path("/data"), free=500 * GB, total=1000 * GB, free_files=10**7, kind="ext4")
TEMP = FolderFacts(Path("/tmp"), free=50 * GB, total=100 * GB)
DB = Path("/data/quantcard.db")
WHOLE = DatabaseFacts(exists=True, size=10**6, journal_mode="wal", checked=True, thorough=True, n_jobs=1234)


def test_the_worst_state_decides() -> None:
    assert worst([]) == worst(["ok", "ok"]) == "ok"
    assert worst(["ok", "warn"]) == "warn"
    assert worst(["warn", "unknown"]) == "unknown"
    assert worst(["unknown", "bad", "ok"]) == "bad"


def test_what_others_say_is_one_bounded_line() -> None:
    assert clean("a\nb\t\x1b[31mc\u202e") == "a b [31mc"
    assert len(clean("x" * 10_000)) == 600
    assert some(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"
    assert some([]) == ""


@pytest.mark.parametrize(
    ("facts", "state", "says"),
    [
        (PackageFacts("3.11.7", True, 81), "ok", "81 packages"),
        (PackageFacts("3.10.1", False, 81), "bad", "too old"),
        (PackageFacts("3.11.7", True, 81, (("numpy", "", "==2.4"),)), "bad", "numpy ==2.4"),
        (PackageFacts("3.11.7", True, 81, (("numpy", "2.3", "==2.4"),)), "warn", "numpy 2.3 (==2.4)"),
    ],
)
def test_packages(facts: PackageFacts, state: str, says: str) -> None:
    (found,) = judge_packages(facts)
    assert found.state == state and says in found.found


@pytest.mark.parametrize(
    ("data", "temp", "state", "says"),
    [
        (DATA, TEMP, "ok", "500 GB of 1.0 TB"),
        (replace(DATA, free=GB // 2), TEMP, "bad", "Only 500 MB"),
        (replace(DATA, free=9 * GB), TEMP, "warn", "9.0 GB"),
        (replace(DATA, free_files=17), TEMP, "bad", "17 more files"),
        (replace(DATA, error="Read-only file system"), TEMP, "bad", "Read-only file system"),
        (replace(DATA, kind="nfs4"), TEMP, "warn", "network file system (nfs4)"),
        (DATA, replace(TEMP, error="No space left on device"), "bad", "temporary folder"),
        (DATA, replace(TEMP, free=1000), "warn", "temporary folder"),
    ],
)
def test_disk(data: FolderFacts, temp: FolderFacts, state: str, says: str) -> None:
    found = judge_disk(data, temp)
    assert worst(one.state for one in found) == state
    assert any(says in one.found for one in found)
    assert all(one.fix for one in found if one.state != "ok")


def test_a_budget_that_the_disk_does_not_hold() -> None:
    (found,) = judge_disk(DATA, TEMP, budget=800 * GB, used=200 * GB)
    assert found.state == "warn" and "800 GB" in found.found
    (found,) = judge_disk(DATA, TEMP, budget=600 * GB, used=200 * GB)
    assert found.state == "ok" and "600 GB" in found.found


@pytest.mark.parametrize(
    ("facts", "state", "says"),
    [
        (MemoryFacts(64 * GB, 50 * GB), "ok", "50.0 GB of 64.0 GB"),
        (MemoryFacts(64 * GB, GB // 2), "bad", "500 MB"),
        (MemoryFacts(64 * GB, 50 * GB, limit=2 * GB), "warn", "the container's limit; the machine has 64.0 GB"),
        (MemoryFacts(64 * GB, 50 * GB, limit=GB // 2), "bad", "500 MB"),
        (MemoryFacts(8 * GB, 5 * GB, swap=8 * GB), "ok", "gets slow instead of dying"),
    ],
)
def test_memory(facts: MemoryFacts, state: str, says: str) -> None:
    (found,) = judge_memory(facts)
    assert found.state == state and says in found.found


def test_open_files() -> None:
    assert judge_open_files(1024, 1024)[0].state == "ok"
    (found,) = judge_open_files(256, 65536)
    assert found.state == "warn" and "ulimit -n 4096" in found.fix
    assert "as root" in judge_open_files(256, 512)[0].fix


@pytest.mark.parametrize(
    ("facts", "state", "says"),
    [
        (PortFacts("127.0.0.1", 7860, free=True), "ok", "is free"),
        (PortFacts("127.0.0.1", 0, free=True), "ok", "Any free port"),
        (PortFacts("127.0.0.1", 7860, free=False, ours=True), "ok", "is listening"),
        (PortFacts("127.0.0.1", 7860, free=False, error="Address already in use"), "bad", "already in use"),
        (PortFacts("0.0.0.0", 80, free=False, error="Permission denied"), "bad", "Permission denied"),
        (PortFacts("nowhere", 7860, free=False, error="Name or service not known"), "bad", "not known"),
    ],
)
def test_the_port(facts: PortFacts, state: str, says: str) -> None:
    (found,) = judge_port(facts)
    assert found.state == state and says in found.found and bool(found.fix) == (state != "ok")


def test_leftovers_are_told_of_with_the_command_that_removes_them() -> None:
    (found,) = judge_leftovers([], [], [], overdue=0, late=None, lease_s=120)
    assert found.state == "ok"
    folder = Leftover(Path("/tmp/quantcard-job-a b"), 5 * GB, 3 * 86400)
    part = Leftover(Path("/data/models/x.gguf.part"), GB, 8 * 86400)
    found = judge_leftovers([folder], [part], [123, 456], overdue=2, late=7200, lease_s=120)  # type: ignore[assignment]
    states, texts = zip(*((one.state, f"{one.found} {one.fix}") for one in found), strict=True)  # type: ignore[attr-defined]
    assert set(states) == {"warn"} and len(states) == 4
    assert "5.0 GB" in texts[0] and "3 days" in texts[0] and "rm -rf '/tmp/quantcard-job-a b'" in texts[0]
    assert "rm -f /data/models/x.gguf.part" in texts[1]
    assert "kill 123 456" in texts[2]
    assert "2 jobs" in texts[3] and "2 hours" in texts[3]


def test_a_lease_that_has_just_run_out_is_no_leftover() -> None:
    assert judge_leftovers([], [], [], overdue=1, late=60, lease_s=120)[0].state == "ok"


@pytest.mark.parametrize(
    ("facts", "state", "says"),
    [
        (DatabaseFacts(exists=False), "ok", "no database"),
        (WHOLE, "ok", "1,234 jobs"),
        (replace(WHOLE, error="file is not a database"), "bad", "not a database"),
        (replace(WHOLE, problems=("row 3 missing from index jobs_by_state",)), "bad", "jobs_by_state"),
        (replace(WHOLE, foreign=3), "bad", "3 rows"),
        (replace(WHOLE, newer=("m999_later",)), "bad", "Update" ),
        (replace(WHOLE, missing=("m004_the_queue",)), "warn", "m004_the_queue"),
        (replace(WHOLE, locked="database is locked"), "warn", "locked"),
        (replace(WHOLE, read_only="attempt to write a readonly database"), "bad", "readonly"),
        (replace(WHOLE, journal_mode="delete"), "warn", "not WAL"),
        (replace(WHOLE, wal=400 << 20), "warn", "write-ahead log has grown to 419 MB"),
        (replace(WHOLE, checked=False, took=20.0), "unknown", "in 20 s"),
    ],
)  # fmt: skip
def test_the_database(facts: DatabaseFacts, state: str, says: str) -> None:
    found = judge_database(DB, facts)
    assert [one.state for one in found] == [state]
    assert says in found[0].found + found[0].fix
    assert bool(found[0].fix) == (state != "ok")


def test_a_database_on_a_network_file_system_is_bad() -> None:
    (found,) = judge_database(DB, WHOLE, kind="nfs4", network=True)
    assert found.state == "bad" and "nfs4" in found.found


def test_backups_that_are_not_made() -> None:
    assert judge_backups(Path("/b"), None, interval_s=86400)[0].state == "warn"
    (found,) = judge_backups(Path("/b"), 3 * 86400, interval_s=86400)
    assert found.state == "warn" and "72 hours old" in found.found
    assert judge_backups(Path("/b"), 86400, interval_s=86400)[0].state == "ok"


@pytest.mark.parametrize(
    ("facts", "state", "fix"),
    [
        (SandboxFacts("bubblewrap", bwrap="/usr/bin/bwrap"), "ok", ""),
        (SandboxFacts("uid"), "warn", "apt-get install bubblewrap"),
        (SandboxFacts("none"), "bad", "apt-get install bubblewrap"),
        (SandboxFacts("none", bwrap="bwrap", userns_clone=0), "bad", "kernel.unprivileged_userns_clone=1"),
        (SandboxFacts("none", bwrap="bwrap", max_user_namespaces=0), "bad", "user.max_user_namespaces="),
        (SandboxFacts("uid", bwrap="bwrap", apparmor_restricts=1), "warn", "apparmor_restrict_unprivileged_userns=0"),
        (SandboxFacts("none", bwrap="bwrap", userns_clone=1, max_user_namespaces=9), "bad", "--security-opt"),
    ],
)
def test_the_sandbox(facts: SandboxFacts, state: str, fix: str) -> None:
    (found,) = judge_sandbox(facts)
    assert found.state == state and fix in found.fix


def test_no_sandbox_on_purpose_is_a_warning_with_the_reason() -> None:
    (found,) = judge_sandbox(SandboxFacts("none", why="bubblewrap: not installed"), accepted=True)
    assert found.state == "warn" and "not installed" in found.found
