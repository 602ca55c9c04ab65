"""The worker between table and runner: what a measuring process may and may not make us believe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.clock import FakeClock
from bot.queue import worker as module
from bot.queue.worker import JobEvent, Worker
from bot.settings import load_settings
from bot.store import Store
from bot.store.jobs import NewJob
from core.contract import BaselineResult, Environment, Estimate, SpeedResult, SpeedTest
from core.errors import GGUFError, MeasurementDiedError, StorageError
from core.gguf_files import RepoFile, VariantFiles
from core.protocol import WIKITEXT2_TEST, Protocol

FOUND = Environment(llama_cpp="x", backend="CPU", system_info="", cpu="c", n_threads=1, n_gpu_layers=0)


def speed(rate: float = 1.0) -> SpeedResult:
    told = dict.fromkeys(SpeedTest.model_fields, 1) | {
        "model_filename": "m", "model_type": "t", "type_k": "f16", "type_v": "f16", "flash_attn": "auto",
        "test_time": "now", "samples_ns": [1], "samples_ts": [1.0], "avg_ts": rate, "stddev_ts": 0.0,
    }  # fmt: skip
    return SpeedResult(tests=[SpeedTest(**told)], environment=FOUND)


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
        patch.setattr(module, "model_path", lambda *_: folder / "m.gguf")
        patch.setattr(module, "corpus_path", lambda *_, **__: folder / "c.txt")
        patch.setattr(module, "run_job", self._run)
        store.repos.save_repo(
            "o/r", sha="1", last_modified=None, source="follow", note=None, base_model=None, config={}, now=1.0
        )
        files = VariantFiles("m.gguf", (RepoFile("m.gguf", 1, "a" * 64),), 1)
        store.repos.save_variants("o/r", [(files, None, None)], revision="1", now=1.0)

    def _run(self, spec: object, **_: Any) -> Any:
        answer = self.answer(spec) if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def job(self, kind: str = "speed") -> None:
        self.store.jobs.add([NewJob(kind, kind, 1, None, Protocol(corpus=WIKITEXT2_TEST))], now=self.clock.now())

    def run(self) -> str:
        hub: Any = None
        worker = Worker(self.store, hub, self.settings, self.clock, tell=self.events.append, stop=threading.Event())
        assert worker.run_one()
        return self.store.jobs.all()[0].state


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with Store(tmp_path / "q.db") as store:
        yield Bench(tmp_path, store, monkeypatch)


def test_a_result_is_stored_once_with_its_job(bench: Bench) -> None:
    bench.job()
    assert bench.run() == "done"
    assert list(bench.store.results.measurements("a" * 64, Protocol(corpus=WIKITEXT2_TEST).fingerprint)) == ["speed"]


@pytest.mark.parametrize("answer", [speed(float("nan")), recorded("/etc/passwd")])
def test_figures_that_are_none_and_answers_to_something_else_are_not_stored(bench: Bench, answer: object) -> None:
    bench.answer = answer
    bench.job()
    assert bench.run() == "todo"
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM measurements").fetchone()[0] == 0
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM baselines").fetchone()[0] == 0


def test_a_baselines_path_is_the_one_we_gave(bench: Bench) -> None:
    bench.answer = recorded("/etc/passwd")
    bench.job("baseline")
    assert bench.run() == "done"
    [row] = bench.store.db.query("SELECT path, result FROM baselines")
    assert row["path"].startswith(str(bench.settings.data)) and "passwd" not in row["result"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GGUFError("bad"), "dead"),
        (MeasurementDiedError("died"), "todo"),
        (RuntimeError("ours"), "todo"),
        (OSError(12, "no memory"), "todo"),
    ],
)
def test_errors_are_the_jobs(bench: Bench, error: Exception, state: str) -> None:
    bench.answer = error
    bench.job()
    assert bench.run() == state and bench.events[-1].error


def test_reasons_do_not_tell_where_our_folders_are(bench: Bench) -> None:
    bench.answer = StorageError(f"{bench.settings.data}/baselines/x.kld could not be written.")
    bench.job()
    bench.run()
    assert bench.store.jobs.all()[0].error == "baselines/x.kld could not be written."


def test_a_result_waits_for_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, failures = Worker._keep, [StorageError("full"), StorageError("full")]

    def keep(self: Worker, *args: Any) -> None:
        if failures:
            raise failures.pop()
        whole(self, *args)

    monkeypatch.setattr(Worker, "_keep", keep)
    bench.job()
    assert bench.run() == "done" and bench.store.jobs.all()[0].attempts == 1


def test_a_worker_that_lost_its_lease_writes_nothing(bench: Bench) -> None:
    def taken(_: object) -> SpeedResult:
        bench.clock.sleep(1000)
        with Store(bench.store.path) as other:
            assert other.jobs.claim("other", now=bench.clock.now(), lease=60)
        return speed()

    bench.answer = taken
    bench.job()
    assert bench.run() == "running"
    assert bench.store.db.conn.execute("SELECT COUNT(*) FROM measurements").fetchone()[0] == 0
    assert bench.store.jobs.finish(1, "other", now=bench.clock.now())
