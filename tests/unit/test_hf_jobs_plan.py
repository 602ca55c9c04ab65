"""Which Job a task becomes, what it may cost, and what its log says: the pure parts of the runner."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import JobHardwareInfo
from hypothesis import given
from hypothesis import strategies as st

from bot.hub.jobs_api import HubJob, _bytes, _flavor, _xet_error
from bot.queue.runners import hf_jobs_plan as plan
from bot.queue.runners.base import ModelSource, Stages, Task
from bot.queue.runners.hf_jobs_end import by_itself, read_log, without_result
from bot.queue.runners.hf_jobs_money import Ledger, Spending, cost, spending
from bot.store import Store
from core.contract import BaselineSpec, Machine, ProgressEvent, QualitySpec, QuantizeResult, ResultEvent, SpeedSpec
from core.errors import (
    HubAuthError,
    HubError,
    HubNotFoundError,
    HubRateLimitError,
    JobProtocolError,
    MachineLostError,
    MeasurementDiedError,
    RunnerUnavailableError,
    SettingsError,
    TooLargeError,
)
from core.frame import Output, frame, progress_line
from core.gguf_files import RepoFile
from core.need import Need
from core.remote_task import VARIABLE, unpacked
from localhub import hardware

GB = 10**9
NONCE = "ab" * 16
FLAVORS = [found for row in hardware.rows() if (found := _flavor(JobHardwareInfo(**row)))]
STAGES = Stages(queued=60, fetching=60, measuring=3600, uploading=60)
SHA = "c" * 64


def need(gigabytes: float, *, layers: int = 40) -> Need:
    weights = int(gigabytes * GB)
    return Need(
        weights=weights, kv_cache=GB // 4, logits=GB // 4, compute=GB // 4, baseline=GB // 4, disk=weights,
        n_layers=layers, largest_layer=weights // layers, outside_layers=GB // 2,
    )  # fmt: skip


def task(spec: BaselineSpec | QualitySpec | SpeedSpec, *, files: int = 1) -> Task:
    shards = tuple(RepoFile(f"q/m-{i:05}-of-{files:05}.gguf", 10 + i, SHA) for i in range(1, files + 1))
    return Task("run-1", NONCE, spec, ModelSource("owner/m-GGUF", "0" * 40, shards), need(4), STAGES)


# hardware


def test_flavors_are_told_in_bytes_and_dollars_a_minute() -> None:
    by_name = {flavor.name: flavor for flavor in FLAVORS}
    assert len(by_name) == len(hardware.rows())
    assert by_name["l4x4"].vram == (24 * GB,) * 4 and by_name["cpu-basic"].vram == ()
    assert by_name["l4x1"].memory == 30 * GB and by_name["l4x1"].disk == 400 * GB
    assert by_name["h200"].usd_per_minute == pytest.approx(5 / 60, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16 GB", 16 * GB), ("1.5TB", 1500 * GB), ("80 GiB", 80 << 30), ("142", 142),
        ("N/A", None), ("", None), ("-1 GB", None), ("9" * 50, None),
    ],
)  # fmt: skip
def test_sizes_are_read_or_not_known(text: str, size: int | None) -> None:
    assert _bytes(text) == size


def test_a_flavor_that_is_not_understood_is_passed_over() -> None:
    row = next(row for row in hardware.rows() if row["name"] == "l4x1")
    for change in (
        {"unitLabel": "fortnight"}, {"ram": "much"}, {"unitCostUSD": -1}, {"unitCostUSD": "free"},
        {"accelerator": {**row["accelerator"], "quantity": "0"}}, {"accelerator": {**row["accelerator"], "vram": "?"}},
    ):  # fmt: skip
        assert _flavor(JobHardwareInfo(**{**row, **change})) is None
    hourly = _flavor(JobHardwareInfo(**{**row, "unitLabel": "hour", "unitCostUSD": 0.8}))
    assert hourly is not None and hourly.usd_per_minute == pytest.approx(0.8 / 60)


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [(4, "t4-small"), (20, "l4x1"), (35, "l40sx1"), (70, "a100-large"), (76, "l4x4"), (120, "h200"), (800, "h200x8")],
)
def test_the_cheapest_that_holds_the_whole_model_is_taken(gigabytes: float, name: str) -> None:
    choice = plan.choose(need(gigabytes), plan.usable(FLAVORS, []))
    assert choice.flavor.name == name and choice.placement is not None and choice.placement.n_gpu_layers == -1


def test_a_part_on_the_gpu_comes_before_none_and_the_cpu_last() -> None:
    some = plan.usable(FLAVORS, ["l4x1", "cpu-performance", "cpu-upgrade"])
    assert plan.choose(need(20), some).flavor.name == "l4x1"
    part = plan.choose(need(30), some)
    assert part.flavor.name == "l4x1" and part.placement is not None and 0 < part.placement.n_gpu_layers < 40
    assert plan.choose(need(100), some).flavor.name == "cpu-performance"
    with pytest.raises(TooLargeError, match="cpu-performance, the largest"):
        plan.choose(need(400), some)
    with pytest.raises(RunnerUnavailableError, match="QUANTCARD_HF_JOBS_FLAVORS"):
        plan.choose(need(4), plan.usable(FLAVORS, ["abacus"]))
    unknown = plan.need_of(replace(task(SpeedSpec(model="m")), need=None))
    assert unknown.weights == 11 and plan.choose(unknown, plan.usable(FLAVORS, [])).flavor.name == "t4-small"
    assert plan.largest(plan.usable(FLAVORS, [])).vram == (141 * GB,) * 8 and plan.largest([]).memory is None


@given(st.floats(0.1, 900), st.integers(1, 120))
def test_no_cheaper_one_would_have_held_it_as_well(gigabytes: float, layers: int) -> None:
    flavors = plan.usable(FLAVORS, [])
    wanted = need(gigabytes, layers=layers)
    try:
        choice = plan.choose(wanted, flavors)
    except TooLargeError:
        return
    assert choice.placement is not None
    for flavor in flavors:
        if flavor.usd_per_minute < choice.flavor.usd_per_minute:
            try:
                other = plan.choose(wanted, [flavor])
            except TooLargeError:
                continue
            assert other.placement is not None and other.placement.n_gpu_layers != -1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Task error: CAS Client Error: HTTP status client error (403 Forbidden), domain: x", HubAuthError),
        ("Network error: HTTP status client error (404 Not Found)", HubNotFoundError),
        ("HTTP status client error (429 Too Many Requests)", HubRateLimitError),
        ("HTTP status client error (400 Bad Request)", HubError),
        ("HTTP status server error (500 Internal Server Error)", type(None)),
        ("", type(None)),
    ],
)
def test_what_xet_says_in_words_is_told_apart(said: str, error: type) -> None:
    assert type(_xet_error(RuntimeError(said), "an upload")) is error


# what is asked


def test_an_image_is_pinned_unless_the_hub_is_our_own() -> None:
    pinned = f"registry.example/q@sha256:{'a' * 64}"
    assert plan.checked_image(pinned, "https://huggingface.co") == pinned
    assert plan.checked_image("q:latest", "http://127.0.0.1:8790") == "q:latest"
    for image in ("q:latest", "q@sha256:abc", f"{pinned} x", f"q@sha256:{'A' * 64}"):
        with pytest.raises(SettingsError):
            plan.checked_image(image, "https://huggingface.co")
    with pytest.raises(SettingsError):
        plan.checked_image("q:latest", "http://localhost.example.com")


def test_a_quality_job_sees_its_model_its_baseline_and_a_folder_to_write_in() -> None:
    spec = QualitySpec(
        model="/data/models/m.gguf", baseline="/data/b/x.gguf", tokens_out="/data/work/t.parquet",
        checkpoint="/data/work/c", machine=Machine(n_threads=7, n_gpu_layers=3),
    )  # fmt: skip
    kept = plan.kept_prefix("baselines", "b", [Output(path="x.gguf", size=5, sha256=SHA)])
    choice = plan.choose(need(4), plan.usable(FLAVORS, []))
    asked = plan.request(
        task(spec, files=2), choice, image="i", bucket="me/b", inputs={plan.BASELINE: kept}, timeout_s=900, unsafe=False
    )
    assert [(one.at, one.kind, one.source, one.path, one.read_only) for one in asked.mounts] == [
        ("/model", "model", "owner/m-GGUF", None, True),
        ("/baseline", "bucket", "me/b", kept.prefix, True),
        ("/out", "bucket", "me/b", f"jobs/run-1-{plan.owner_of(task(spec))}", False),
    ]
    assert asked.mounts[0].revision == "0" * 40 and list(asked.environment) == [VARIABLE]
    told = unpacked(asked.environment[VARIABLE])
    assert told.nonce == NONCE and told.limits.seconds == 900 and not told.unsafe
    assert told.outputs is not None and told.outputs.to == "/out" and told.end == "/out/end"
    assert [file.path for file in told.model_files] == [
        "/model/q/m-00001-of-00002.gguf", "/model/q/m-00002-of-00002.gguf", "/baseline/x.gguf",
    ]  # fmt: skip
    inside = told.spec
    assert (inside.model, inside.baseline) == ("/model/q/m-00001-of-00002.gguf", "/baseline/x.gguf")
    assert inside.tokens_out == f"{plan.WORK}/t.parquet" and inside.checkpoint is None
    assert inside.machine == Machine(n_threads=0, n_gpu_layers=-1)


def test_what_a_task_reads_is_named_by_its_content() -> None:
    one, two = (Output(path=name, size=5, sha256=SHA) for name in ("a", "b"))
    assert plan.kept_prefix("k", "n", [one, two]) == plan.kept_prefix("k", "n", [two, one])
    other = plan.kept_prefix("k", "n", [one, replace_sha(two)])
    assert other.prefix != plan.kept_prefix("k", "n", [one, two]).prefix
    assert plan.kept_prefix("k", "../we ird", [one]).prefix.startswith("k/---we-ird-")


def replace_sha(output: Output) -> Output:
    return output.model_copy(update={"sha256": "d" * 64})


def test_a_task_that_does_not_fit_is_told() -> None:
    spec = SpeedSpec(model="m.gguf")
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(3000)]
    shards = tuple(RepoFile(f"{name}.gguf", 1, name[::-1]) for name in names)
    many = replace(task(spec), model=ModelSource("o/m", "0" * 40, shards))
    choice = plan.choose(need(4), plan.usable(FLAVORS, []))
    with pytest.raises(RunnerUnavailableError, match="can't be told"):
        plan.request(many, choice, image="i", bucket="b/b", inputs={}, timeout_s=60, unsafe=False)


def test_time_and_its_guess_stay_within_the_limit() -> None:
    assert plan.time_limit(STAGES, most=7200) == 4500 and plan.time_limit(STAGES, most=1800) == 1800
    assert plan.guess_seconds(need(4), limit=7200) < plan.guess_seconds(need(40), limit=7200) < 7200
    assert plan.guess_seconds(need(4), limit=100) == 100


# money


def ledger(path: Path, limit: float = 10.0) -> Ledger:
    return Ledger(lambda: Store(path / "x.db"), limit_usd=limit)


def told(path: Path, now: float = 1e9) -> Spending:
    with Store(path / "x.db") as store:
        return spending(store, now)


def test_a_minute_that_was_begun_is_paid() -> None:
    assert [cost(0.5, seconds) for seconds in (0, 1, 60, 61)] == [0, 0.5, 0.5, 1.0]


def test_money_is_put_aside_at_the_worst_and_settled_by_what_ran(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.reserve("a", usd_per_minute=0.1, worst_s=3600, now=1e9)
    book.reserve("a", usd_per_minute=0.1, worst_s=3600, now=1e9)
    assert told(tmp_path).reserved == pytest.approx(6.0)
    with pytest.raises(
        RunnerUnavailableError, match=r"6\.00 USD is not started.* 10\.00 USD .*0\.00 are spent and 6\.00"
    ):
        book.reserve("b", usd_per_minute=0.1, worst_s=3600, now=1e9)
    book.started("a", "job-1", now=1e9)
    assert [one.job for one in book.open(1e9)] == ["job-1"]
    for _ in range(2):
        book.settle("a", seconds=130, now=1e9)
    assert (told(tmp_path).spent, told(tmp_path).n_jobs, told(tmp_path).open) == (pytest.approx(0.3), 1, ())
    book.reserve("b", usd_per_minute=0.1, worst_s=3600, now=1e9)
    book.settle("b", seconds=None, now=1e9)
    assert (told(tmp_path).n_jobs, told(tmp_path).reserved) == (1, 0)


def test_a_month_begins_anew_and_a_job_counts_for_the_one_it_was_started_in(tmp_path: Path) -> None:
    book, october, november = ledger(tmp_path), 1_793_490_000.0, 1_793_494_800.0
    book.reserve("a", usd_per_minute=1.0, worst_s=600, now=october)
    book.reserve("b", usd_per_minute=1.0, worst_s=600, now=november)
    book.settle("a", seconds=300, now=november)
    assert (told(tmp_path, october).month, told(tmp_path, october).spent) == ("2026-10", 5.0)
    assert (told(tmp_path, november).month, told(tmp_path, november).spent) == ("2026-11", 0.0)
    assert [one.run for one in book.open(november)] == ["b"]


def test_many_that_ask_at_once_never_pass_the_limit(tmp_path: Path) -> None:
    book, took = ledger(tmp_path, limit=1.0), []

    def ask(i: int) -> None:
        try:
            book.reserve(f"run-{i}", usd_per_minute=0.1, worst_s=60, now=1e9)
            took.append(i)
        except RunnerUnavailableError:
            pass

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 10 and told(tmp_path).reserved == pytest.approx(1.0)


# the end


RESULT = ResultEvent(result=QuantizeResult(path="x", file_type="Q4_0", size_bytes=1))
OTHER = ResultEvent(result=QuantizeResult(path="x", file_type="Q4_0", size_bytes=2))


def job(stage: str = "ERROR", message: str = "") -> HubJob:
    return HubJob("j", stage, message, "l4x1", 0.0, None, 1.0, "")


def test_a_log_tells_the_last_step_and_the_one_result() -> None:
    step = ProgressEvent(stage="scoring", done=3, total=9)
    lines = ["Traceback:", "  boom", progress_line(step), "", frame(RESULT, NONCE), frame(RESULT, NONCE)]
    said = read_log(lines, NONCE)
    assert said.ended is not None and said.ended.event == RESULT
    assert (said.progress, said.words) == (step, "Traceback: | boom")
    assert read_log([], NONCE).ended is None


@pytest.mark.parametrize(
    "lines",
    [[frame(RESULT, NONCE), frame(OTHER, NONCE)], [frame(RESULT, "0" * 32)], [frame(RESULT, NONCE)[:-4]]],
    ids=["two that differ", "another's", "cut"],
)
def test_a_result_that_is_not_the_jobs_is_refused(lines: list[str]) -> None:
    with pytest.raises(JobProtocolError):
        read_log(lines, NONCE)


@pytest.mark.parametrize(
    ("stage", "message", "error", "itself"),
    [
        ("COMPLETED", "", JobProtocolError, True),
        ("ERROR", "Job failed with exit code: 1. Reason: Error", JobProtocolError, True),
        ("ERROR", "Job failed with exit code: 137. Reason: OOMKilled", MeasurementDiedError, True),
        ("ERROR", "Job failed with exit code: 137. Reason: Error", MeasurementDiedError, True),
        ("ERROR", "Job failed with exit code: 143. Reason: Error", MachineLostError, True),
        ("ERROR", "Job timeout", MeasurementDiedError, False),
        ("ERROR", "", MachineLostError, False),
        ("ERROR", "Node was preempted", MachineLostError, False),
        ("CANCELED", "", MachineLostError, False),
        ("DELETED", "", MachineLostError, False),
    ],
)
def test_why_there_is_no_result(stage: str, message: str, error: type[Exception], itself: bool) -> None:
    found = without_result(job(stage, message), "last words")
    assert type(found) is error and found.retryable
    assert by_itself(job(stage, message)) is itself
