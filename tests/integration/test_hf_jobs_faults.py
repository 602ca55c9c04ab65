"""What goes wrong between the bot and Hugging Face Jobs: lost answers, machines that never come, no money, kills."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bot.hub.jobs_api import DryRunJobsApi
from bot.queue.runners import hf_jobs, hf_jobs_plan
from bot.queue.runners.base import JobStopped
from bot.queue.runners.hf_jobs import HfJobsRunner, hf_jobs_runner
from bot.settings import load_settings
from core.contract import BaselineResult, QuantizeResult, ResultEvent
from core.errors import MeasurementDiedError, RunnerUnavailableError, SettingsError
from core.frame import frame
from core.remote_task import VARIABLE
from tests.integration.hf_jobs_world import BOT, FLAVOR, TOKEN, JobsWorld
from tests.integration.remote_tasks import Heard, Switch, wait_for

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
NEVER = Switch()
A_RESULT = ResultEvent(result=QuantizeResult(path="x", file_type="Q4_0", size_bytes=1))
RUN = r"^/api/jobs/quantbot$"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsWorld]:
    monkeypatch.setattr(hf_jobs, "_AWAY", (0.2,))
    with JobsWorld(tmp_path) as world:
        yield world


def say(monkeypatch: pytest.MonkeyPatch, line: str, *, seconds: float = 0.0) -> None:
    """Have Jobs print this instead of measuring."""
    monkeypatch.setattr(hf_jobs_plan, "COMMAND", ("sh", "-c", 'sleep "$1"; echo "$0"', line, str(seconds)))


def test_a_job_gets_no_token_and_carries_its_label(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    task = world.files.task()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(
        hf_jobs_plan, "COMMAND", ("sh", "-c", f'env; cat /proc/self/environ; echo "{frame(A_RESULT, task.nonce)}"')
    )
    world.runner().run(task, report=Heard(), stop=NEVER)
    (row,) = world.jobs()
    job = row["job"]
    assert job.labels["quantcard"] == task.id and job.labels["quantcard-of"] == hf_jobs_plan.owner_of(task)
    assert job.flavor == FLAVOR
    assert job.secrets == {} and list(job.environment) == [VARIABLE]
    log = "\n".join(world.api().log(str(row["id"]), limit=1 << 20))
    assert VARIABLE in log and TOKEN not in log and "HF_TOKEN" not in log
    assert [(v.type, v.mount_path, v.read_only) for v in job.volumes] == [
        ("model", "/model", None), ("bucket", "/corpus", True), ("bucket", "/out", False),
    ]  # fmt: skip


def test_a_job_whose_start_was_not_answered_is_found_and_not_started_again(
    world: JobsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = world.files.task()
    say(monkeypatch, frame(A_RESULT, task.nonce))
    world.faults.drop(RUN, method="POST")
    assert world.runner().run(task, report=Heard(), stop=NEVER) == A_RESULT.result
    assert len(world.jobs()) == 1 and world.spent().n_jobs == 1


def test_a_start_that_never_arrived_keeps_its_money_and_is_tried_later(
    world: JobsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_jobs, "_LOST", (0.1,))
    world.faults.drop(RUN, method="POST", work=False)
    with pytest.raises(RunnerUnavailableError, match="did not answer"):
        world.runner().run(world.files.task(), report=Heard(), stop=NEVER)
    assert world.jobs() == [] and len(world.spent().open) == 1


def test_two_that_ask_at_the_same_moment_make_one_job(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    task = world.files.task()
    say(monkeypatch, frame(A_RESULT, task.nonce), seconds=3)
    # Both have looked before either has started one.
    world.faults.delay(RUN, seconds=1.5, times=2, method="POST")
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(world.runner().run(task, report=Heard(), stop=NEVER)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [A_RESULT.result] * 2
    assert len(world.jobs("COMPLETED")) == 1 and not world.jobs("RUNNING", "SCHEDULING")


@pytest.mark.parametrize("status", [402, 403, 429])
def test_no_quota_is_told_in_the_hubs_words(world: JobsWorld, status: int) -> None:
    said = "You are out of prepaid credits" if status != 429 else "rate limit"
    world.faults.fail(RUN, method="POST", status=status, headers={"X-Error-Message": said})
    with pytest.raises(RunnerUnavailableError, match=said) as caught:
        world.runner().run(world.files.task(), report=Heard(), stop=NEVER)
    assert caught.value.retryable and world.jobs() == [] and world.spent().open == ()


def test_passing_faults_of_the_hub_are_waited_out(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    task = world.files.task()
    heard = Heard()
    # 500s on every kind of request once it runs: looks, logs, the bucket.
    world.faults.fail(r"/api/jobs/quantbot/[0-9a-f]+", status=500, times=4)
    world.faults.fail(r"/api/buckets/.*/paths-info", status=500, times=1)
    world.faults.drop(r"/logs$", times=1)
    world.faults.jobs.cut_logs(after=2, times=2)
    result = world.runner().run(task, report=heard, stop=NEVER)
    assert isinstance(result, BaselineResult) and Path(result.path).stat().st_size == result.size_bytes
    assert len(world.jobs()) == 1


def test_storage_that_refuses_is_told_and_nothing_is_started(world: JobsWorld) -> None:
    world.faults.fail(r"/xet/.*/xorbs/", status=403, times=20)
    with pytest.raises(RunnerUnavailableError, match=r"storage refused an upload.*403"):
        world.runner().run(world.files.task(), report=Heard(), stop=NEVER)
    assert world.jobs() == [] and world.spent().open == ()


def test_storage_that_does_not_give_back_what_a_job_made_is_told(world: JobsWorld) -> None:
    task = world.files.task()
    world.faults.fail(r"/xet/.*reconstructions/", status=400, times=2)
    with pytest.raises(RunnerUnavailableError, match=r"storage refused a download.*400"):
        world.runner().run(task, report=Heard(), stop=NEVER)


def test_a_job_that_no_machine_takes_is_ended_and_tried_later(world: JobsWorld) -> None:
    task = world.files.task()
    task = replace(task, stages=replace(task.stages, queued=1.0))
    world.faults.jobs.hang()
    heard = Heard()
    with pytest.raises(RunnerUnavailableError, match="had no cpu-basic for it within 1 s"):
        world.runner().run(task, report=heard, stop=NEVER)
    assert "queued" in heard.stages
    assert len(world.jobs("CANCELED")) == 1 and world.spent().spent == 0.0 and world.spent().open == ()
    assert world.in_bucket("jobs/") == []


def test_a_job_past_its_time_limit_is_told_as_such(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, "", seconds=100)
    monkeypatch.setattr(hf_jobs_plan, "time_limit", lambda stages, most: 1)
    with pytest.raises(MeasurementDiedError, match="longer than it may"):
        world.runner().run(world.files.task(), report=Heard(), stop=NEVER)


def test_what_a_month_may_cost_is_never_passed(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    task = world.files.task()
    say(monkeypatch, frame(A_RESULT, task.nonce))
    # Ten minutes at the worst, at 0.01 USD an hour.
    worst = 10 * round(0.01 * 1e6 / 60) / 1e6
    with pytest.raises(RunnerUnavailableError, match="QUANTCARD_HF_JOBS_MONTHLY_USD"):
        world.runner(limit_usd=0.9 * worst).run(task, report=Heard(), stop=NEVER)
    assert world.jobs() == [] and world.in_bucket() == []
    runner = world.runner(limit_usd=1.05 * worst)
    runner.run(task, report=Heard(), stop=NEVER)
    # It took seconds: a minute is spent, so that the next one's worst case does not fit.
    assert world.spent().spent == pytest.approx(worst / 10) and world.spent().open == ()
    with pytest.raises(RunnerUnavailableError, match="are spent"):
        runner.run(world.files.task(), report=Heard(), stop=NEVER)


def test_money_of_a_run_that_nobody_saw_end_comes_back(world: JobsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    task, stop = world.files.task(), Switch()
    say(monkeypatch, "", seconds=1)
    worst = 10 * round(0.01 * 1e6 / 60) / 1e6
    running = threading.Thread(target=lambda: _stopped(world.runner(), task, stop))
    running.start()
    wait_for(lambda: world.jobs("RUNNING"))
    stop.set("shutdown")
    running.join(timeout=20)
    assert len(world.spent().open) == 1
    wait_for(lambda: world.jobs("COMPLETED"))
    # The job was measured elsewhere meanwhile; a later one finds the money.
    other = world.files.task()
    say(monkeypatch, frame(A_RESULT, other.nonce))
    world.runner(limit_usd=1.2 * worst).run(other, report=Heard(), stop=NEVER)
    assert world.spent().open == () and world.spent().n_jobs == 2


def _stopped(runner: HfJobsRunner, task: object, stop: Switch) -> None:
    with pytest.raises(JobStopped):
        runner.run(task, report=Heard(), stop=stop)  # type: ignore[arg-type]


RUNS = """
import sys, pickle
from pathlib import Path
from bot.clock import SystemClock
from bot.hub.jobs_api import JobsApi
from bot.queue.runners.hf_jobs import HfJobsRunner
from bot.queue.runners.hf_jobs_files import Files
from bot.queue.runners.hf_jobs_money import Ledger
from bot.store import Store
from tests.integration.remote_tasks import Heard, Switch
url, db, folder, task = sys.argv[1:]
api, store = JobsApi(endpoint=url, token="hf_bot"), lambda: Store(Path(db))
runner = HfJobsRunner(
    api, files=Files(api, Path(folder), store), ledger=Ledger(store, limit_usd=100.0),
    clock=SystemClock(), image="anything", flavors=("cpu-basic",), timeout_s=600, poll_s=0.2,
)
runner.run(pickle.loads(Path(task).read_bytes()), report=Heard(), stop=Switch())
"""


def test_a_bot_that_was_killed_joins_its_job(world: JobsWorld, tmp_path: Path) -> None:
    import pickle

    task = world.files.task()
    (tmp_path / "task").write_bytes(pickle.dumps(task))
    arguments = [world.server.url, tmp_path / "bot.db", world.files.folder / "remote", tmp_path / "task"]
    root = Path(hf_jobs.__file__).resolve().parents[3]
    bot = subprocess.Popen([sys.executable, "-c", RUNS, *map(str, arguments)], cwd=root, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: world.jobs("RUNNING"))
    finally:
        bot.send_signal(signal.SIGKILL)
        bot.wait()
    began = time.monotonic()
    result = world.runner().run(task, report=Heard(), stop=NEVER)
    assert isinstance(result, BaselineResult) and Path(result.path).exists(), time.monotonic() - began
    assert len(world.jobs()) == 1 and world.spent().n_jobs == 1 and world.spent().open == ()


def test_the_result_is_read_from_the_bucket_where_the_log_has_lost_it(
    world: JobsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = world.files.task()
    monkeypatch.setattr(hf_jobs, "_LATE", (0.1,))
    line = frame(A_RESULT, task.nonce)
    monkeypatch.setattr(hf_jobs_plan, "COMMAND", ("sh", "-c", 'echo "$0" > /out/end', line))
    assert world.runner().run(task, report=Heard(), stop=NEVER) == A_RESULT.result
    run = hf_jobs_plan.run_of(task)
    assert world.in_bucket("jobs/") == [f"jobs/{run}/.keep", f"jobs/{run}/end"]


def test_an_image_that_can_change_is_refused(world: JobsWorld, tmp_path: Path) -> None:
    hub = DryRunJobsApi(endpoint="https://huggingface.co", token=None)
    for image in ("", "owner/quantcard:latest", "owner/quantcard@sha256:12"):
        settings = load_settings(db=tmp_path / "x.db", hf_endpoint=hub.endpoint, hf_jobs_image=image)
        with pytest.raises(SettingsError, match="QUANTCARD_HF_JOBS_IMAGE"):
            hf_jobs_runner(settings, hub)  # type: ignore[arg-type]
    pinned = f"owner/quantcard@sha256:{'0' * 64}"
    settings = load_settings(db=tmp_path / "x.db", hf_endpoint=hub.endpoint, hf_jobs_image=pinned)
    assert hf_jobs_runner(settings, hub).name == "hf-jobs"  # type: ignore[arg-type]


def test_a_dry_run_starts_nothing_and_writes_nothing(world: JobsWorld, tmp_path: Path) -> None:
    hub = DryRunJobsApi(endpoint=world.server.url, token=TOKEN)
    settings = load_settings(
        db=tmp_path / "bot.db", hf_endpoint=hub.endpoint, hf_token=TOKEN, hf_jobs_image="any",
        hf_jobs_flavors=[FLAVOR], hf_jobs_monthly_usd=5,
    )  # fmt: skip
    with pytest.raises(RunnerUnavailableError, match="dry run"):
        hf_jobs_runner(settings, hub).run(world.files.task(), report=Heard(), stop=NEVER)  # type: ignore[arg-type]
    assert world.jobs() == [] and list(world.client().list_buckets(namespace=BOT)) == []
    assert world.spent().open == ()
