"""The service as a process that is refused, drained, hurried, locked out and killed: alive, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import BOT_TOKEN, CARD, REPO, World, command, quant, until
from web_helpers import ask

from bot.lock import held, holder_of
from bot.store import Store
from bot.store.backup import backups_in

SECRET = "a long random text"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(url: str) -> tuple[int, dict[str, Any]]:
    status, _, text = ask(url)
    try:
        return status, dict(json.loads(text) or {})
    except ValueError:
        return status, {}


def cycles(url: str) -> Any:
    return answer(f"{url}/healthz")[1].get("cycles")


def busy(world: World) -> list[int]:
    with Store(world.settings().db) as store:
        return [row[0] for row in store.db.conn.execute("SELECT id FROM jobs WHERE state = 'running'")]


def events(world: World, state: str, *, since: float = 0.0) -> list[int]:
    with Store(world.settings().db) as store:
        rows = store.db.conn.execute("SELECT job_id FROM job_events WHERE state = ? AND at > ?", (state, since))
        return [row[0] for row in rows]


def states(world: World) -> dict[str, int]:
    with Store(world.settings().db) as store:
        return store.jobs.counts()


def children(pid: int) -> set[int]:
    """Every process under this one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | children(child)
    return found


def new_files(world: World, *labels: str) -> None:
    """Files to be measured: two jobs each."""
    files: dict[str, Path | bytes] = {f"demo-{label}.gguf": quant(label) for label in labels}
    world.upload({**files, "README.md": CARD.encode()})


def test_what_it_answers_and_that_there_is_one(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path) as world:
        world.usual("private/of-somebody-GGUF")
        world.usual()
        world.follow()
        with command(world, "serve", port=port, webhook_secret=SECRET) as process:
            until(lambda: cycles(url), seconds=60)
            holder = holder_of(world.settings().db)
            assert holder is not None and holder.pid == process.pid
            assert answer(f"{url}/livez") == (200, {"ok": True})
            assert answer(f"{url}/readyz") == (200, {"ready": True, "reasons": []})
            status, headers, text = ask(f"{url}/metrics")
            assert status == 200 and headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            for line in (
                "quantcard_ready 1",
                "quantcard_cycles_total 1",
                'quantcard_jobs{state="done",kind="speed"} 2',
            ):
                assert f"\n{line}\n" in text, text
            assert 'quantcard_hub_requests_total{resource="api"}' in text and "quantcard_data_bytes" in text
            assert not any(word in text for word in (BOT_TOKEN, SECRET, str(tmp_path), "uploader", "private"))

            with command(world, "serve", port=free_port()) as second:
                said = second.communicate(timeout=60)[0]
            assert second.returncode == 2 and f"(process {process.pid} on " in said and "Stop it first" in said
            with command(world, "run", "--once") as beside:
                assert beside.communicate(timeout=120) and beside.returncode == 0
            with command(world, "status") as shown:
                assert f"Service: process {process.pid}" in shown.communicate(timeout=60)[0]

            with Store(world.settings().db) as store:
                store.db.conn.execute("BEGIN IMMEDIATE")
                status, found = until(lambda: (told := answer(f"{url}/readyz"))[0] == 503 and told)
                assert found["reasons"] == ["The database can't be used (database is locked)."]
                assert answer(f"{url}/livez")[0] == 200 == ask(f"{url}/metrics")[0] == ask(f"{url}/status")[0]
            until(lambda: answer(f"{url}/readyz")[0] == 200)
            process.send_signal(signal.SIGTERM)
            assert "Stopped." in process.communicate(timeout=30)[0] and process.returncode == 0
        assert not held(world.settings().db)


def test_it_drains_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path) as world:
        world.usual()
        world.follow()
        new_files(world, "Q6_K", "Q4_0")
        with command(world, "serve", port=port, drain_s=100.0, log_format="json") as process:
            [running] = until(lambda: busy(world), seconds=60)
            asked = time.time()
            process.send_signal(signal.SIGTERM)
            answers = until(lambda: (told := answer(f"{url}/readyz"))[0] != 200 and told)
            assert answers == (503, {"ready": False, "reasons": ["The service is ending."]})
            said = process.communicate(timeout=100)[0]
            assert process.returncode == 0, said
        assert running in events(world, "done", since=asked), said
        assert events(world, "leased", since=asked + 0.5) == [] and states(world)["todo"] == 3
        lines = [json.loads(line) for line in said.splitlines()]
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
        [told] = [line for line in lines if line.get("state") == "done"]
        assert told["job"] == running and told["repo"] == REPO and told["variant"].startswith("demo-Q")
        assert lines[-1]["message"] == "Stopped."


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world:
        world.usual()
        world.follow()
        # The whole text, on one thread: a recording of a while.
        more = {"chunks": -1, "threads": 1, "drain_s": 1000.0}
        with command(world, "serve", port=free_port(), **more) as process:
            until(lambda: busy(world), seconds=60)
            below = until(lambda: children(process.pid))
            process.send_signal(signal.SIGINT)
            # Two of the same, so close, may become one.
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            said = process.communicate(timeout=30)[0]
            assert time.monotonic() - started < 12 and process.returncode == 130, said
        assert states(world) == {"todo": 5}, "put back"
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_killed_at_any_moment_it_comes_up_again(tmp_path: Path) -> None:
    """kill -9 from its first breath to the middle of its work, with copies made all the while."""
    chance, port = random.Random(5), free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path) as world:
        world.usual()
        world.follow()
        new_files(world, "Q6_K", "Q4_0", "Q5_K_M")
        copies = tmp_path / "copies"
        more = {"backup_dir": copies, "backup_interval_s": 1.0, "backup_keep": 3, "lease_s": 3.0}
        seen: set[int] = set()
        for n in range(8):
            with command(world, "serve", port=port, **more) as process:
                if n % 2 == 0:
                    time.sleep(chance.uniform(0.0, 3.0))
                else:
                    until(lambda: answer(f"{url}/livez")[0] == 200, seconds=90)
                    time.sleep(chance.uniform(0.0, 2.5))
                below = children(process.pid)
                assert process.poll() is None, process.communicate()[0]
                process.kill()
                process.wait()
            seen |= below
            assert until(lambda gone=frozenset(below): not any(_ours(pid) for pid in gone))
        with command(world, "serve", port=port, **more) as process:
            until(lambda: states(world) == {"done": 11}, seconds=120)
            until(lambda: len(backups_in(copies, "bot")) == 3 and world.pulls())
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[0]
            assert process.returncode == 0 and "Traceback" not in said, said
        assert all(one.problem is None for one in backups_in(copies, "bot"))
        left = [*tmp_path.glob(".*"), *copies.glob(".*"), *(tmp_path / "data").rglob("*.part")]
        assert left == [] and not any(_ours(pid) for pid in seen)
        with closing(Store(world.settings().db)) as store:
            done = store.db.conn.execute("SELECT job_id FROM job_events WHERE state = 'done'").fetchall()
        assert len(done) == len(set(done)), "each ended once"
        assert len(world.pulls()) == 1


def _ours(pid: int) -> bool:
    """Whether a measuring process of ours still runs there."""
    try:
        return b"jobs.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_nothing_to_be_read_is_at_metrics_when_it_is_off(tmp_path: Path) -> None:
    port = free_port()
    with World(tmp_path, template=False) as world:
        world.follow()
        with command(world, "serve", port=port, metrics=False) as process:
            until(lambda: answer(f"http://127.0.0.1:{port}/livez")[0] == 200, seconds=60)
            assert "quantcard_jobs" not in ask(f"http://127.0.0.1:{port}/metrics")[2]
            process.kill()


def test_a_bad_end_of_the_program_is_told_without_secrets(tmp_path: Path) -> None:
    """What nobody expected, in the command itself: a traceback, but no secret in it."""
    token = "hf_" + "aB3dE5gH" * 4
    code = (
        "import sys, bot.commands.run as run\n"
        "def broken(settings): raise ValueError(f'bad: {settings.hf_token}')\n"
        "run.serve_with = broken\n"
        "import bot.cli; sys.exit(bot.cli.run_app(['serve']))"
    )
    environment = {**os.environ, "HF_TOKEN": token, "QUANTCARD_DB": str(tmp_path / "q.db")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "ValueError: bad: hf_***" in ended.stderr and token not in ended.stderr
    told = code.replace("ValueError", "bot.cli.QuantcardError").replace("import sys, ", "import sys, bot.cli, ")
    ended = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "Error: bad: hf_***" in ended.stderr and token not in ended.stderr


def test_a_full_disk_is_told_and_outlived(tmp_path: Path) -> None:
    """On a file system of its own, filled to the last byte while it serves, and then not."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path, template=False) as world, small_disk(tmp_path / "disk", 48 << 20) as disk:
        places = {"db": disk / "bot.db", "data_dir": disk / "data"}
        with Store(places["db"]) as store:
            store.repos.follow("uploader", consented=False, now=time.time())
        with command(world, "serve", port=port, poll_interval_s=1.0, **places) as process:
            until(lambda: cycles(url), seconds=60)
            assert "The disk of the data has" in answer(f"{url}/readyz")[1]["reasons"][0], "less than it should have"
            fill(disk / "filling")
            world.usual()
            until(lambda: "disk is full" in answer(f"{url}/healthz")[1].get("error", ""), seconds=60)
            assert answer(f"{url}/livez")[0] == 200 == ask(f"{url}/metrics")[0]
            until(lambda: "has 0 MB free" in _reason(url, "The disk of the database"))
            page = ask(f"{url}/status")[2]
            assert "has 0 MB free" in page and str(tmp_path) not in page
            (disk / "filling").unlink()
            until(lambda: answer(f"{url}/healthz")[1].get("jobs", {}).get("done") == 5, seconds=120)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[0]
            assert process.returncode == 0 and "Traceback" not in said, said


def _reason(url: str, begins: str) -> str:
    return next((one for one in answer(f"{url}/readyz")[1].get("reasons", []) if one.startswith(begins)), "")


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


@contextmanager
def small_disk(path: Path, n_bytes: int) -> Iterator[Path]:
    """A file system of its own, of this size."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)
