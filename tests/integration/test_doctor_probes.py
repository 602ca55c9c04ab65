"""The doctor's probes against what they are to find: real crashes, damaged databases, taken ports, leftovers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from bot_helpers import until

from bot.doctor import llama, probes
from bot.doctor.database import judge_database
from bot.doctor.finding import worst
from bot.doctor.llama import Cpu, judge_build, judge_decode, run_probe
from bot.store import Store
from bot.store.health import look
from core.canonical import write_atomic

ROOT = Path(__file__).resolve().parents[2]
#: A probe that tells what it tries and then ends as it is told to.
CHILD = """
import ctypes, json, os, signal, sys, time
print(json.dumps({"try": "F16"})); print(json.dumps({"done": "F16", "kld": 0.0}))
print("noise that is no JSON"); print("[1]"); print(json.dumps({"try": "Q4_K_M"})); sys.stdout.flush()
print("last words", file=sys.stderr); sys.stderr.flush()
"""


def child(ends: str, *, limit_s: float = 20.0) -> llama.Ended:
    return run_probe([sys.executable, "-c", CHILD + ends], limit_s=limit_s)


# llama.cpp


def test_llama_cpp_tells_what_it_is_and_decodes_here() -> None:
    asked = llama.probe_build()
    build = llama.build_of(asked)
    assert build is not None and build.bindings == "0.3.36" and build.features
    assert any(device["type"] == "CPU" for device in build.devices)
    (found,) = judge_build(asked, llama.read_cpu())
    assert found.state in ("ok", "warn"), found
    (decoded,) = judge_decode(llama.probe_decode(gpu_layers=0), build, llama.read_cpu())
    assert decoded.state == "ok", decoded


def test_a_real_segmentation_fault_is_told_as_such() -> None:
    ended = child("ctypes.string_at(0)")
    assert ended.code == -signal.SIGSEGV and ended.signal == "SIGSEGV"
    (found,) = judge_decode(ended, None, Cpu())
    assert found.state == "bad" and "died of SIGSEGV while Q4_K_M was decoded" in found.found
    assert "-DGGML_NATIVE=OFF" in found.fix


@pytest.mark.parametrize("name", ["SIGILL", "SIGKILL", "SIGABRT"])
def test_every_signal_has_its_name(name: str) -> None:
    ended = child(f"os.kill(os.getpid(), signal.{name})")
    (found,) = judge_decode(ended, None, Cpu())
    assert found.state == "bad" and name in found.found
    assert ("out of memory" in found.found) == (name == "SIGKILL")


def test_a_probe_that_hangs_is_killed() -> None:
    started = time.monotonic()
    ended = child("time.sleep(60)", limit_s=1.0)
    assert time.monotonic() - started < 20 and ended.timed_out and not ended.signal
    (found,) = judge_decode(ended, None, Cpu())
    assert found.state == "bad" and "did not end within 1 s while Q4_K_M" in found.found


def test_an_abort_of_ggml_brings_its_last_words() -> None:
    ended = child("os.abort()")
    assert "last words" in judge_decode(ended, None, Cpu())[0].found


def test_a_probe_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("QUANTCARD_WEBHOOK_SECRET", "hf_secret")
    ended = run_probe([sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"], limit_s=20)
    assert ended.lines and "hf_secret" not in json.dumps(ended.lines)


def test_a_library_that_can_not_be_loaded_is_told_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libllama.so").write_bytes(b"no library")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    (found,) = judge_build(llama.probe_build(), Cpu())
    assert found.state == "bad" and "libllama.so" in found.found and found.fix


def test_a_probe_leaves_no_folder() -> None:
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("quantcard-doctor-*"))
    llama.probe_decode(gpu_layers=0, limit_s=0.2)
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("quantcard-doctor-*")) == before


# the database


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "quantcard.db"
    with Store(path) as store:
        for n in range(300):
            store.repos.follow(f"owner-{n}", consented=False, now=float(n))
        store.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def judged(path: Path, **more: float) -> list[tuple[str, str]]:
    return [(one.state, one.found) for one in judge_database(path, look(path, now=time.time(), **more))]


def test_a_whole_database_is_well_and_no_other_is_made(db: Path, tmp_path: Path) -> None:
    before = db.read_bytes()
    ((state, _),) = judged(db)
    assert state == "ok" and db.read_bytes() == before
    assert judged(tmp_path / "none.db")[0][0] == "ok" and not (tmp_path / "none.db").exists()


def test_a_damaged_database_is_found_and_left_as_it_is(db: Path) -> None:
    raw = bytearray(db.read_bytes())
    with closing(sqlite3.connect(db)) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'follows_by_name'"
        (page,), size = connection.execute(sql).fetchone(), connection.execute("PRAGMA page_size").fetchone()[0]
    start = (page - 1) * size
    raw[start + size // 2 : start + size] = b"\xaa" * (size // 2)
    db.write_bytes(raw)
    found = judged(db)
    assert worst(state for state, _ in found) == "bad" and "damaged" in found[0][1]  # type: ignore[misc]
    assert db.read_bytes() == raw


def test_what_is_no_database_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"Not a database, but long enough to be looked at. " * 100)
    assert judged(path)[0][0] == "bad" and "not a database" in judged(path)[0][1]
    path.write_bytes(b"")
    assert judged(path)[0][0] == "warn", "an empty file waits for its migrations"


def test_rows_that_refer_to_none_are_counted(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("INSERT INTO job_events (job_id, at, state) VALUES (77, 0, 'todo'), (78, 0, 'todo')")
        connection.commit()
    assert judged(db)[0] == ("bad", f"2 rows of {db} refer to rows that are gone.")


def test_migrations_that_are_missing_or_newer(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("DELETE FROM _sqlite_migrations WHERE name LIKE 'm004%'")
        connection.commit()
        assert judged(db)[0][0] == "warn" and "m004_the_queue" in judged(db)[0][1]
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('quantcard', 'm999_later', '')"
        )
        connection.commit()
    assert judged(db)[0][0] == "bad" and "m999_later" in judged(db)[0][1]


def test_a_database_that_somebody_holds_is_said_to_be_held(db: Path) -> None:
    with closing(sqlite3.connect(db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ((state, said),) = judged(db)
    assert state == "warn" and "locked" in said


def test_a_check_that_takes_too_long_is_not_said_to_be_well(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("CREATE TABLE big (x)")
        connection.executemany("INSERT INTO big VALUES (?)", ((n,) for n in range(200_000)))
        connection.commit()
    ((state, said),) = judged(db, limit_s=0.0)
    assert state == "unknown" and "to the end" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_database_that_can_not_be_written(db: Path) -> None:
    db.chmod(0o444)
    assert any(state == "bad" and "can't be written" in said for state, said in judged(db))


def test_overdue_leases_and_the_newest_row_are_told(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute(
            "INSERT INTO jobs (key, kind, variant_id, protocol, state, lease_owner, lease_until, created_at,"
            " updated_at) VALUES ('k', 'quality', 1, 'p', 'running', 'w', 1000, 5, 99999999999)"
        )
        connection.commit()
    facts = look(db, now=5000.0)
    assert (facts.overdue, facts.oldest_lease, facts.newest, facts.n_jobs) == (1, 1000, 99999999999, 1)


# the machine


def test_a_folder_is_written_to_and_left_clean(tmp_path: Path) -> None:
    facts = probes.look_at_folder(tmp_path / "not" / "there" / "yet")
    assert not facts.error and facts.free > 0 and list(tmp_path.iterdir()) == []
    assert facts.kind == probes.mount_kind(tmp_path)


def test_a_folder_that_can_not_be_written_says_why() -> None:
    assert probes.look_at_folder(Path("/proc/self")).error


def test_a_write_that_fails_half_way_is_told_and_cleaned_up(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from bot.doctor.probes import look_at_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); print(look_at_folder(Path(sys.argv[1])).error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == os.strerror(errno.EFBIG) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "ext4"), ("/data", "nfs4"), ("/data/models", "nfs4"), ("/data base", "tmpfs"), ("/data2", "ext4")],
)
def test_the_mount_that_holds_a_path(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/vda / ext4 rw 0 0\nhost:/x /data nfs4 rw 0 0\ntmpfs /data\\040base tmpfs rw 0 0\nbroken\n")
    assert probes.mount_kind(Path(path), mounts) == kind
    assert probes.is_network(kind) == (kind == "nfs4")


def test_the_containers_limit_is_the_memory(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "user" / "mine").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\nHugePages_Total: 0\n")
    (proc / "self" / "cgroup").write_text("0::/user/mine\n")
    assert probes.look_at_memory(proc, groups).limit is None
    (groups / "user" / "memory.max").write_text("4000000000\n")
    (groups / "user" / "mine" / "memory.max").write_text("max\n")
    facts = probes.look_at_memory(proc, groups)
    assert (facts.total, facts.limit) == (16_000_000 * 1024, 4_000_000_000)


def test_a_taken_port_is_found_and_our_own_service_known_by_its_answer() -> None:
    class Health(BaseHTTPRequestHandler):
        answer = b'{"ok": true, "jobs": {}}'

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        facts = probes.look_at_port("127.0.0.1", port)
        assert (facts.free, facts.ours) == (False, True)
        Health.answer = b'{"ok": true}'
        facts = probes.look_at_port("127.0.0.1", port)
        assert (facts.free, facts.ours) == (False, False) and "in use" in facts.error
    finally:
        server.shutdown()
        server.server_close()
    assert probes.look_at_port("127.0.0.1", port).free
    assert not probes.look_at_port("no.such.host.invalid", 80).free


def test_a_silent_listener_does_not_hold_the_doctor_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        started = time.monotonic()
        assert not probes.look_at_port("127.0.0.1", silent.getsockname()[1]).ours
    assert time.monotonic() - started < 10


def test_leftovers_are_old_and_ours_by_name(tmp_path: Path) -> None:
    old, young, other = tmp_path / "quantcard-job-old", tmp_path / "quantcard-job-young", tmp_path / "somebody-else"
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "file").write_bytes(b"x" * 1000)
    for path in (old, other):
        os.utime(path, (1e9, 1e9))
    (found,) = probes.temporary_leftovers(3600, tmp_path)
    assert found.path == old and found.size == 1000 and found.age > 1e7


def test_half_written_files_are_found_where_our_own_writer_leaves_them(tmp_path: Path) -> None:
    write_atomic(tmp_path / "whole.bin", b"whole")
    deep = tmp_path / "models" / "abc"
    deep.mkdir(parents=True)
    for name in (".whole.bin.x.part", "model.gguf.incomplete"):
        (deep / name).write_bytes(b"half")
        os.utime(deep / name, (1e9, 1e9))
    (deep / "young.part").write_bytes(b"half")
    found = probes.partial_leftovers(tmp_path, 3600)
    assert {one.path.name for one in found} == {".whole.bin.x.part", "model.gguf.incomplete"}
    assert all(one.size == 4 for one in found)


@pytest.mark.skipif(not Path("/proc/1/stat").exists(), reason="no /proc here")
def test_a_measuring_process_without_a_parent_is_found() -> None:
    sleep = "import time; time.sleep(60)"
    script = (
        "import subprocess, sys; no = subprocess.DEVNULL\n"
        f"print(subprocess.Popen([sys.executable, '-c', {sleep!r}, '-m', 'jobs.run'], stdout=no, stderr=no).pid)"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    pid = int(made.stdout)
    kept = subprocess.Popen([sys.executable, "-c", sleep, "-m", "jobs.run"])
    try:
        found = until(lambda: [one for one in probes.orphans() if one == pid])
        assert found == [pid] and kept.pid not in probes.orphans()
    finally:
        os.kill(pid, signal.SIGKILL)
        kept.kill()
        kept.wait(timeout=10)


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "numpy==0.0.1\nno-such-package-of-anybody==1.0\npytest>=1\nonly-there==1 ; sys_platform == 'x'\n?\n"
    )
    facts = probes.look_at_packages(lock)
    assert facts.n_packages == 3 and facts.locked
    assert [(name, bool(version)) for name, version, _ in facts.different] == [
        ("numpy", True), ("no-such-package-of-anybody", False),
    ]  # fmt: skip
    assert not probes.look_at_packages(None).locked


def test_the_lock_is_found_in_a_checkout() -> None:
    from bot.doctor.here import Here
    from bot.settings import load_settings

    assert Here(load_settings()).packages.locked == (ROOT / "requirements.lock").is_file()


def test_bubblewrap_is_judged_as_it_works_here() -> None:
    from bot.doctor.sandbox import judge_sandbox, look_at_sandbox

    facts = look_at_sandbox()
    assert facts.bwrap == shutil.which("bwrap")
    (found,) = judge_sandbox(facts)
    assert (found.state == "ok") == (facts.level == "bubblewrap")
