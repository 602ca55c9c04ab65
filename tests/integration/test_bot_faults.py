"""What goes wrong around the bot: the Hub, the network, the disk, other workers, signals. Nothing may be lost."""

from __future__ import annotations

import collections
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import BOT_TOKEN, CARD, DATASET, F16, READ_TOKEN, REPO, UP, World, command, quant, until

from bot.cli import run_app
from bot.clock import SystemClock
from bot.commands.common import open_hub
from bot.hub import base
from bot.hub.client import Hub
from bot.queue import fetch
from bot.queue.runners.local import JobStopped, LocalRunner, run_job, scrubbed_environment
from bot.queue.worker import Worker
from bot.settings import Settings
from bot.store import Store
from core.contract import SpeedSpec
from core.errors import HubAuthError, HubNotFoundError, HubRateLimitError, HubUnreachableError, InputError
from localhub import seed


def local_worker(store: Store, hub: Hub, settings: Settings) -> Worker:
    return Worker(
        store,
        hub,
        settings,
        SystemClock(),
        runner=LocalRunner(settings),
        tell=lambda _: None,
        stop=threading.Event(),
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(base, "_PAUSES", (0.05,))
    with World(tmp_path) as found:
        yield found


def counts(world: World) -> dict[str, int]:
    with Store(world.settings().db) as store:
        return store.jobs.counts()


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def long_job(world: World) -> None:
    """One unmeasured file without a reference: one speed job of some seconds."""
    world.upload({"demo-Q6_K.gguf": quant("Q6_K"), "README.md": CARD.encode()})
    world.follow()


def test_a_hub_that_is_not_there(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.follow(REPO)
    for name, value in world.environment(hf_endpoint=closed_port()).items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    assert run_app(["run", "--once"]) == 4
    assert time.monotonic() - started < 10
    assert "did not answer" in capfd.readouterr().err


def test_an_unknown_token_is_refused_before_anything_is_measured(world: World) -> None:
    long_job(world)
    with pytest.raises(HubAuthError, match="does not know this token"):
        world.cycle(hf_token="hf_nobody")
    assert counts(world).get("todo", 0) == 0


def test_a_read_only_token_measures_and_the_next_run_with_a_good_one_publishes(world: World) -> None:
    world.usual()
    world.follow()
    report = world.cycle(hf_token=READ_TOKEN)
    assert report.exit_code == 4 and world.pulls() == []
    assert {what for what, error in report.errors if isinstance(error, HubAuthError)} == {REPO, DATASET}
    good = world.cycle()
    assert good.exit_code == 0 and good.jobs_done == 0 and len(world.pulls()) == 1 and good.exported


def test_without_a_token_it_says_so_once(world: World) -> None:
    world.usual()
    world.follow()
    report = world.cycle(hf_token="")
    assert [(what, type(error)) for what, error in report.errors] == [("publishing", HubAuthError)]
    assert (world.folder / "data" / "export" / "data" / "measurements.parquet").exists()
    assert world.cycle(hf_token="", dry_run=True).exit_code == 0 and world.pulls() == []


def test_missing_names_do_not_stop_the_others(world: World) -> None:
    world.usual()
    for name in (UP, "nobody-here", "somebody/no-such-GGUF", "a--b/c"):
        world.follow(name)
    report = world.cycle()
    assert {what for what, error in report.poll.errors if isinstance(error, HubNotFoundError)} >= {
        "somebody/no-such-GGUF",
        "a--b/c",
    }
    assert len(world.pulls()) == 1 and report.exit_code == 4


def test_a_spent_budget_ends_the_poll_and_a_passing_fault_does_not(world: World) -> None:
    world.usual()
    world.follow(REPO)
    world.faults.fail(rf"^/api/models/{REPO}$", status=429)
    limited = world.cycle()
    assert [type(error) for _, error in limited.poll.errors] == [HubRateLimitError] and limited.exit_code == 4
    world.faults.fail(rf"^/api/models/{REPO}$", status=500)
    assert world.cycle().exit_code == 0 and len(world.pulls()) == 1


def test_a_failing_download_is_put_off_not_dead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.usual()
    world.follow()
    world.cycle()
    world.upload({"demo-Q6_K.gguf": quant("Q6_K")})
    away = HubUnreachableError("The Hub did not answer.")

    def stream(*_: object, **__: object) -> None:
        raise away

    whole = Hub.stream
    monkeypatch.setattr(Hub, "stream", stream)
    settings = world.settings()
    with Store(settings.db) as store:
        hub = open_hub(settings)
        from bot.cycle import Cycle, CycleReport

        cycle = Cycle(
            store, hub, settings, SystemClock(), tell_job=lambda _: None, tell=lambda _: None, stop=threading.Event()
        )
        cycle.poll()
        cycle.plan()
        report = CycleReport()
        worker = local_worker(store, hub, settings)
        assert worker.run_one()
        [job, _] = store.jobs.all(states=("todo",))
        assert job.attempts == 0 and job.error_type == "HubUnreachableError"
        monkeypatch.setattr(Hub, "stream", whole)
        store.db.conn.execute("UPDATE jobs SET not_before = 0")
        cycle.work(report)
        assert report.jobs_done == 2 and report.exit_code == 0


def test_a_full_disk_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    long_job(world)
    usage = collections.namedtuple("usage", "total used free")
    real = shutil.disk_usage
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    monkeypatch.setattr("bot.queue.pool.PATIENCE", 0.0)
    report = world.cycle()
    assert report.exit_code == 6 and counts(world)["todo"] == 1 and "Free some space" in str(report.errors[0][1])
    monkeypatch.setattr(fetch.shutil, "disk_usage", real)
    with Store(world.settings().db) as store:
        store.db.conn.execute("UPDATE jobs SET not_before = 0")
    assert world.cycle().jobs_done == 1


def test_names_and_identities_from_the_hub_name_no_folder_elsewhere(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    with Store(world.settings().db) as store:
        variant = store.repos.variants(REPO)[0]
    from dataclasses import replace

    hub = open_hub(world.settings())
    for name in ("../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\..\\x.gguf", "a\nb.gguf", ""):
        hostile = replace(variant, files=(replace(variant.files[0], path=name),))
        with pytest.raises(InputError):
            fetch.model_path(world.folder / "data", hostile, hub)
    for key in ("", "..", "../../x", "A" * 64, "a" * 63):
        with pytest.raises(InputError):
            fetch.model_path(world.folder / "data", replace(variant, key=key), hub)


def test_two_processes_share_a_queue_and_open_one_pull(world: World) -> None:
    world.usual(**{"demo-Q6_K.gguf": quant("Q6_K"), "demo-Q4_K_M.gguf": quant("Q4_K_M")})
    world.follow()
    with command(world, "run", "--once", lease_s=20) as one, command(world, "run", "--once", lease_s=20) as two:
        out = one.communicate(timeout=100)[0], two.communicate(timeout=100)[0]
    assert one.returncode == two.returncode == 0, out
    with Store(world.settings().db) as store:
        jobs = store.jobs.all()
        assert {job.state for job in jobs} == {"done"} and len(jobs) == 9
        runs = [sum(event["state"] == "running" for event in store.jobs.events(job.id)) for job in jobs]
        assert runs == [1] * 9
        assert store.db.conn.execute("SELECT COUNT(*) FROM measurements").fetchone()[0] == 8
    assert len(world.pulls()) == 1


def running_child(process: subprocess.Popen[str]) -> int | None:
    """The pid of a command's measuring process, if it runs."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        children += [pid for thread in threads for pid in (thread / "children").read_text().split()]
        for pid in children:
            if b"jobs.run" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    except OSError:
        return None
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sigterm_puts_the_job_back_and_no_secret_reaches_the_child(world: World) -> None:
    long_job(world)
    with command(world, "run", "--once", repetitions=60) as process:
        child = until(lambda: running_child(process))
        environment = Path(f"/proc/{child}/environ").read_bytes()
        assert BOT_TOKEN.encode() not in environment and b"HF_" not in environment and b"QUANTCARD" not in environment
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        said = process.communicate(timeout=20)[0]
        assert process.returncode == 130 and time.monotonic() - started < 8, said
    assert not Path(f"/proc/{child}").exists()
    with Store(world.settings().db) as store:
        [job] = store.jobs.all(states=("todo",))
        assert job.attempts == 0
        # The same work with a shorter test, so that the new run ends soon.
        store.db.conn.execute("UPDATE jobs SET protocol = json_set(protocol, '$.repetitions', 1)")
    again = world.cycle()
    assert again.exit_code == 0 and again.jobs_done == 2 and counts(world).keys() == {"done"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_is_replaced_when_its_lease_ends(world: World) -> None:
    long_job(world)
    with command(world, "run", "--once", repetitions=200, lease_s=4) as process:
        child = until(lambda: running_child(process))
        process.kill()
        process.wait(timeout=10)
    until(lambda: not Path(f"/proc/{child}").exists(), seconds=5)
    assert counts(world)["running"] == 1
    with Store(world.settings().db) as store:
        # The same work, asked for with a shorter test, so that this one ends soon.
        store.db.conn.execute("UPDATE jobs SET protocol = json_set(protocol, '$.repetitions', 1)")
    settings = world.settings()
    with Store(settings.db) as store:
        worker = local_worker(store, open_hub(settings), settings)
        assert until(worker.run_one, seconds=15)
        [job] = [job for job in store.jobs.all() if job.id > 5]
        assert job.state == "done" and (job.attempts, job.lost) == (1, 1)
        assert any("was lost" in (event["reason"] or "") for event in store.jobs.events(job.id))


def test_the_scrubbed_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "QUANTCARD_WEBHOOK_SECRET", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD"):
        monkeypatch.setenv(name, "s3cret")
    assert "s3cret" not in scrubbed_environment("/tmp/x").values()
    assert scrubbed_environment("/tmp/x")["HOME"] == "/tmp/x"


def test_a_job_stops_when_asked_and_dies_at_its_limit() -> None:
    spec = SpeedSpec(model=str(F16), repetitions=500)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(JobStopped):
        run_job(spec, timeout=60, stop=stop)
    from core.errors import MeasurementDiedError

    with pytest.raises(MeasurementDiedError, match="longer than 1 s"):
        run_job(spec, timeout=1)


def test_a_slow_download_is_left_behind_on_a_stop(world: World) -> None:
    long_job(world)
    with Store(world.settings().db) as store:
        store.jobs.pause("its header is to be read first")
        world.cycle(publish=False)
        store.jobs.resume()
    world.faults.delay(r"/resolve/.*Q6_K", seconds=3, method="GET")
    threading.Timer(0.8, world.stop.set).start()
    started = time.monotonic()
    world.cycle(publish=False)
    assert time.monotonic() - started < 2.8
    assert counts(world)["todo"] == 1
    until(lambda: not any(thread.name == "fetch" for thread in threading.enumerate()))


def test_a_hub_that_fails_at_three_cards_in_a_row_is_away(world: World) -> None:
    repos = [REPO, *(f"{UP}/other-{number}-GGUF" for number in range(4))]
    for repo in repos:
        world.usual(repo)
    world.follow(consented=True)
    world.faults.fail(r"/discussions", status=502, times=1000)
    report = world.cycle()
    assert [type(error) for _, error in report.errors] == [HubUnreachableError] * 3 and not report.exported
    world.faults.clear()
    # Those that it failed at wait a little, so that the others come first.
    assert [outcome.decision.action for outcome in world.cycle().outcomes] == ["open", "open"]
    assert [outcome.decision.action for outcome in world.later().outcomes].count("open") == 3


def test_a_hub_that_fails_at_one_card_is_not(world: World) -> None:
    other = "zoe/other-GGUF"
    seed.create_user(world.root, "zoe", token="hf_zoe")
    world.usual()
    world.usual(other)
    world.follow()
    world.follow("zoe")
    world.faults.fail(rf"{REPO}/discussions", status=502, times=1000)
    report = world.cycle()
    assert [what for what, _ in report.errors] == [REPO] and report.exported
    assert len(world.pulls(other)) == 1
