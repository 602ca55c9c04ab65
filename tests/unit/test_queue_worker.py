"""The worker between table and runner: what a measuring process may and may not make us believe."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.clock import FakeClock
from bot.queue import worker as module
from bot.queue.runners.base import JobStopped, Stop, Task
from bot.queue.worker import JobEvent, Worker
from bot.settings import load_settings
from bot.store import Store
from bot.store.jobs import NewJob
from core.audit import inspect
from core.contract import (
    BaselineResult,
    BaselineSpec,
    Environment,
    Estimate,
    ProgressEvent,
    QualityResult,
    SpeedResult,
    SpeedTest,
)
from core.errors import GGUFError, MachineLostError, MeasurementDiedError, StorageError
from core.gguf_files import RepoFile, VariantFiles
from core.gguf_header import read_file_header
from core.need import Capacity
from core.protocol import WIKITEXT2_TEST, Protocol

FOUND = Environment(llama_cpp="x", backend="CPU", system_info="", cpu="c", n_threads=1, n_gpu_layers=0)


def speed(rate: float = 1.0, **more: Any) -> SpeedResult:
    told = dict.fromkeys(SpeedTest.model_fields, 1) | {
        "model_filename": "m", "model_type": "t", "type_k": "f16", "type_v": "f16", "flash_attn": "auto",
        "test_time": "now", "samples_ns": [1], "samples_ts": [1.0], "avg_ts": rate, "stddev_ts": 0.0,
    }  # fmt: skip
    tests = [{**told, "n_prompt": 512, "n_gen": 0}, {**told, "n_prompt": 0, "n_gen": 128}]
    return SpeedResult(tests=[SpeedTest(**{**one, "n_depth": 0, **more}) for one in tests], environment=FOUND)


def recorded(path: str) -> BaselineResult:
    return BaselineResult(
        path=path, format="logits", size_bytes=1, sha256="0" * 64, reference_sha256="0" * 64,
        ppl=Estimate(value=1.0, stderr=0.1), n_ctx=8, n_vocab=8, n_chunks=1, n_tokens=1, environment=FOUND,
    )  # fmt: skip


class Bench:
    """A worker whose runner and downloads are ours."""

    def __init__(self, folder: Path, store: Store, patch: pytest.MonkeyPatch) -> None:
        self.store, self.clock, self.events = store, FakeClock(), list[JobEvent]()
        self.settings = load_settings(db=store.path, data_dir=folder / "data", lease_s=60, hf_token="")
        self.answer: Any = speed()
        patch.setattr(module, "model_path", lambda *_, **__: folder / "m.gguf")
        patch.setattr(module, "corpus_path", lambda *_, **__: folder / "c.txt")
        self.tasks, self.stops, self.stage = list[Task](), list[Stop](), "measuring"
        store.repos.save_repo(
            "o/r", sha="1", last_modified=None, source="follow", note=None, base_model=None, config={}, now=1.0
        )
        files = VariantFiles("m.gguf", (RepoFile("m.gguf", 1, "a" * 64),), 1)
        store.repos.save_variants("o/r", [(files, None, None)], revision="1", now=1.0)

    name, slots, local_files = "ours", 1, True

    def capacity(self) -> Capacity:
        return Capacity(memory=None)

    def run(self, task: Task, *, report: Any, stop: Stop) -> Any:
        """The runner."""
        self.tasks.append(task)
        self.stops.append(stop)
        report(ProgressEvent(stage=self.stage, done=0, total=1))
        answer = self.answer(task.spec) if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def job(self, kind: str = "speed") -> None:
        self.store.jobs.add([NewJob(kind, kind, 1, None, Protocol(corpus=WIKITEXT2_TEST))], now=self.clock.now())

    def go(self) -> str:
        """Run one job; its state after that."""
        hub: Any = None
        worker = Worker(
            self.store, hub, self.settings, self.clock, runner=self, tell=self.events.append, stop=threading.Event()
        )
        assert worker.run_one()
        return self.store.jobs.all()[0].state


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with Store(tmp_path / "q.db") as store:
        yield Bench(tmp_path, store, monkeypatch)


def test_a_result_is_stored_once_with_its_job(bench: Bench) -> None:
    bench.job()
    assert bench.go() == "done"
    assert list(bench.store.results.measurements("a" * 64, Protocol(corpus=WIKITEXT2_TEST).fingerprint)) == ["speed"]


@pytest.mark.parametrize(
    "answer",
    [
        speed(float("nan")),
        recorded("/etc/passwd"),
        speed(peak_memory_bytes=10**30),
        speed(model_type="x" * 5000),
        speed(n_prompt=1024),
        speed().model_copy(update={"tests": []}),
    ],
)
def test_figures_that_are_none_and_answers_to_something_else_are_not_stored(bench: Bench, answer: object) -> None:
    bench.answer = answer
    bench.job()
    assert bench.go() == "todo"
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM measurements").fetchone()[0] == 0
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM baselines").fetchone()[0] == 0


def writes(spec: BaselineSpec, *, content: bytes = b"base", sha256: str | None = None) -> BaselineResult:
    Path(spec.out).write_bytes(content)
    told = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
    return recorded("/etc/passwd").model_copy(update={"format": spec.format, "size_bytes": 4, "sha256": told})


def test_a_baselines_path_is_the_one_we_gave(bench: Bench) -> None:
    bench.answer = writes
    bench.job("baseline")
    assert bench.go() == "done"
    [row] = bench.store.db.query("SELECT path, result FROM baselines")
    assert row["path"].startswith(str(bench.settings.data)) and "passwd" not in row["result"]
    assert Path(row["path"]).read_bytes() == b"base"
    assert not list((bench.settings.data / "work").iterdir())


def elsewhere(spec: BaselineSpec) -> BaselineResult:
    found = writes(spec)
    Path(spec.out).rename(f"{spec.out}.away")
    Path(spec.out).symlink_to(f"{spec.out}.away")
    return found


@pytest.mark.parametrize(
    "answer",
    [
        lambda spec: recorded(spec.out),
        elsewhere,
        lambda spec: writes(spec, sha256="0" * 64),
        lambda spec: writes(spec, content=b"other"),
    ],
    ids=["no file", "a link", "another checksum", "another size"],
)
def test_a_success_without_the_file_that_it_tells_of_is_none(bench: Bench, answer: Any) -> None:
    bench.answer = answer
    bench.job("baseline")
    assert bench.go() == "todo" and bench.store.jobs.all()[0].error_type == "JobProtocolError"
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM baselines").fetchone()[0] == 0


def test_a_run_keeps_its_name_until_it_failed(bench: Bench) -> None:
    bench.job()
    for answer in (JobStopped(), MachineLostError("gone"), speed()):
        bench.answer = answer
        bench.go()
        bench.clock.sleep(60)
    stopped, lost, done = bench.tasks
    assert (stopped.id, stopped.nonce) == (lost.id, lost.nonce) and done.id != lost.id and done.nonce != lost.nonce
    assert all(re.fullmatch(r"[a-z0-9-]{1,63}", task.id) for task in bench.tasks)
    assert [event["state"] for event in bench.store.jobs.events(1)][-3:] == ["leased", "running", "done"]


def waits(bench: Bench, reason: str) -> Any:
    """A runner that works until it is stopped for this reason."""

    def answer(_: object) -> Any:
        stop = bench.stops[-1]
        end = time.monotonic() + 20
        while not stop.is_set() and time.monotonic() < end:
            time.sleep(0.01)
        assert stop.is_set() and stop.reason == reason
        raise JobStopped

    return answer


def test_a_job_that_is_cancelled_while_it_runs_ends_so(bench: Bench) -> None:
    bench.answer = waits(bench, "cancelled")
    bench.job()

    def cancel() -> None:
        with Store(bench.store.path) as other:
            other.jobs.cancel(1, reason="not wanted", now=bench.clock.now())

    threading.Timer(0.5, cancel).start()
    assert bench.go() == "cancelled" and bench.events[-1].state == "cancelled"
    assert not list((bench.settings.data / "work").iterdir())


@pytest.mark.parametrize(
    ("stage", "state", "error"), [("measuring", "todo", "DeadlineError"), ("queued", "todo", "RunnerUnavailableError")]
)
def test_a_stage_that_takes_too_long_is_an_error_of_that_stage(
    bench: Bench, stage: str, state: str, error: str
) -> None:
    bench.settings = bench.settings.model_copy(update={"job_timeout_s": 0.3, "queue_timeout_s": 0.3, "lease_s": 1.0})
    bench.stage, bench.answer = stage, waits(bench, "deadline")
    bench.job()
    assert bench.go() == state
    [job] = bench.store.jobs.all()
    assert job.error_type == error and job.error == f"It was {stage} for longer than 0 s."


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GGUFError("bad"), "failed"),
        (MeasurementDiedError("died"), "todo"),
        (RuntimeError("ours"), "todo"),
        (OSError(12, "no memory"), "todo"),
    ],
)
def test_errors_are_the_jobs(bench: Bench, error: Exception, state: str) -> None:
    bench.answer = error
    bench.job()
    assert bench.go() == state and bench.events[-1].error


def test_reasons_do_not_tell_where_our_folders_are(bench: Bench) -> None:
    bench.answer = StorageError(f"{bench.settings.data}/baselines/x.kld could not be written.")
    bench.job()
    bench.go()
    assert bench.store.jobs.all()[0].error == "baselines/x.kld could not be written."


def test_a_result_waits_for_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, failures = Worker._keep, [StorageError("full"), StorageError("full")]

    def keep(self: Worker, *args: Any) -> None:
        if failures:
            raise failures.pop()
        whole(self, *args)

    monkeypatch.setattr(Worker, "_keep", keep)
    bench.job()
    assert bench.go() == "done" and bench.store.jobs.all()[0].attempts == 1


def test_a_worker_that_lost_its_lease_writes_nothing(bench: Bench) -> None:
    def taken(_: object) -> SpeedResult:
        bench.clock.sleep(1000)
        with Store(bench.store.path) as other:
            assert other.leases.claim("other", now=bench.clock.now(), lease=60)
        return speed()

    bench.answer = taken
    bench.job()
    assert bench.go() == "leased"
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM measurements").fetchone()[0] == 0
    assert bench.store.leases.finish(1, "other", now=bench.clock.now())


def quality(kld: float) -> QualityResult:
    tails = dict.fromkeys(("p99_9", "p99", "p95", "p90", "median", "p10", "p5", "p1", "p0_1", "min"), kld)
    one: Any = {"value": 1.0, "stderr": 0.0}
    delta = {**tails, "p75": 0.0, "p25": 0.0, "mean": 0.0, "stderr": 0.0, "max": 0.0, "rms": 0.0, "rms_stderr": 0.0}
    return QualityResult.model_validate(
        {
            "ppl": one, "ppl_base": one, "ppl_ratio": one, "ln_ppl_ratio": one, "ppl_cor": 1.0,
            "kld": {**tails, "mean": kld, "stderr": kld / 100, "max": kld}, "delta_p": delta, "same_top": one,
            "n_tokens": 1, "n_chunks": 1, "protocol": {}, "environment": FOUND, "scoring": "llama-cpp",
        }
    )  # fmt: skip


@pytest.mark.parametrize(("second", "said"), [(0.0005, "is the same"), (0.03, "DIFFERS")])
def test_a_figure_that_stands_out_is_measured_again_elsewhere(bench: Bench, second: float, said: str) -> None:
    ladder = {8.5: 0.0009, 6.56: 0.003, 5.67: 0.008, 4.83: 0.02, 3.9: 0.06}
    protocol = Protocol(corpus=WIKITEXT2_TEST)
    names = {"f16": 16.0, "odd": 4.5, **{f"q{bpw}": bpw for bpw in ladder}}
    files = [(VariantFiles(n, (RepoFile(n, 1, hashlib.sha256(n.encode()).hexdigest()),), 1), None, None) for n in names]
    bench.store.repos.save_variants("o/r", files, revision="2", now=2.0)
    ids = {one.name: one for one in bench.store.repos.variants("o/r")}
    path = Path(__file__).resolve().parents[2] / "localhub" / "demo_model" / "quantcard-demo-F16.gguf"
    inspection = inspect([read_file_header(path)], size_bytes=1, name="m").model_dump_json()
    for name, bpw in names.items():
        bench.store.db.conn.execute(
            "UPDATE variants SET inspection = json_set(?, '$.bpw', ?) WHERE id = ?", (inspection, bpw, ids[name].id)
        )
        if bpw in ladder:
            bench.store.results.save_measurement(
                ids[name].key,
                protocol.fingerprint,
                quality(ladder[bpw]),
                reference_key=ids["f16"].key,
                job_id=None,
                now=3.0,
            )
    base = Path(bench.settings.data) / "base.gguf"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"base")
    bench.store.results.save_baseline(ids["f16"].key, protocol.fingerprint, recorded(str(base)), now=3.0)
    bench.store.jobs.add([NewJob("k", "quality", ids["odd"].id, ids["f16"].id, protocol)], now=bench.clock.now())
    bench.settings = bench.settings.model_copy(update={"runners": ["ours", "theirs"]})
    bench.answer = quality(0.0005)
    assert bench.go() == "todo"
    assert bench.store.leases.claim("w", now=bench.clock.now(), lease=60, runner="ours") is None
    bench.name, bench.answer = "theirs", quality(second)
    assert bench.go() == "done" and len(bench.tasks) == 2 and bench.tasks[0].id != bench.tasks[1].id
    assert any(said in (event["reason"] or "") for event in bench.store.jobs.events(1))
    kept = bench.store.results.measurements(ids["odd"].key, protocol.fingerprint)["quality"].result
    assert isinstance(kept, QualityResult) and kept.kld.mean == second
