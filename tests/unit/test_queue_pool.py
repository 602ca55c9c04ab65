"""Workers side by side: every job once, none left behind, an end when there is nothing more to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bot.clock import SystemClock
from bot.queue import pool as module
from bot.queue import worker
from bot.queue.pool import Pool
from bot.queue.runners.base import JobStopped, Stop, Task
from bot.queue.worker import JobEvent
from bot.settings import Settings, load_settings
from bot.store import Store
from bot.store.jobs import NewJob
from core.contract import Environment, SpeedResult, SpeedTest
from core.errors import HubUnreachableError, MachineLostError
from core.gguf_files import RepoFile, VariantFiles
from core.need import Capacity, Need
from core.protocol import WIKITEXT2_TEST, Protocol

FOUND = Environment(llama_cpp="x", backend="CPU", system_info="", cpu="c", n_threads=1, n_gpu_layers=0)
NEED = Need(weights=1000, kv_cache=0, logits=0, compute=0, baseline=0, disk=0, n_layers=1)


def speed() -> SpeedResult:
    told = dict.fromkeys(SpeedTest.model_fields, 1) | {
        "model_filename": "m", "model_type": "t", "type_k": "f16", "type_v": "f16", "flash_attn": "auto",
        "test_time": "now", "samples_ns": [1], "samples_ts": [1.0], "avg_ts": 1.0, "stddev_ts": 0.0, "n_depth": 0,
    }  # fmt: skip
    tests = [{**told, "n_prompt": 512, "n_gen": 0}, {**told, "n_prompt": 0, "n_gen": 128}]
    return SpeedResult(tests=[SpeedTest(**one) for one in tests], environment=FOUND)


@dataclass
class Place:
    """A runner of our own."""

    name: str = "ours"
    slots: int = 1
    local_files: bool = False
    memory: int | None = None
    answer: Callable[[Task, Stop], Any] = lambda *_: speed()
    ran: list[str] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity(memory=self.memory)

    def run(self, task: Task, *, report: Any, stop: Stop) -> Any:
        self.ran.append(task.id)
        return self.answer(task, stop)


@dataclass
class Bench:
    settings: Settings
    store: Store
    said: list[str] = field(default_factory=list)
    events: list[JobEvent] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def add(self, *keys: str, need: Need | None = None) -> None:
        protocol = Protocol(corpus=WIKITEXT2_TEST)
        jobs = [replace(NewJob(key, "speed", 1, None, protocol), need=need) for key in keys]
        self.store.jobs.add(jobs, now=time.time())

    def pool(self, *places: Place, **more: Any) -> Pool:
        hub: Any = None
        return Pool(
            self.store, hub, self.settings, SystemClock(), places, tell_job=self.events.append, tell=self.said.append,
            stop=self.stop, **more,
        )  # fmt: skip

    def states(self) -> dict[str, int]:
        return self.store.jobs.counts()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with Store(tmp_path / "q.db") as store:
        store.repos.save_repo(
            "o/r", sha="1", last_modified=None, source="follow", note=None, base_model=None, config={}, now=1.0
        )
        files = VariantFiles("m.gguf", (RepoFile("m.gguf", 1, "a" * 64),), 1)
        store.repos.save_variants("o/r", [(files, None, None)], revision="1", now=1.0)
        yield Bench(load_settings(db=store.path, data_dir=tmp_path / "data", hf_token=""), store)


def test_several_slots_of_several_runners_share_the_queue(bench: Bench) -> None:
    keys = [f"k{n}" for n in range(20)]
    bench.add(*keys)
    both = threading.Barrier(2, timeout=20)

    def meet(_task: Task, _stop: Stop) -> SpeedResult:
        if not both.broken and len(one.ran) + len(two.ran) <= 2:
            # The first two run at the same time.
            both.wait()
        return speed()

    one, two = Place(answer=meet), Place(name="other", slots=2, answer=meet)
    bench.pool(one, two).run()
    assert bench.states() == {"done": 20} and sorted(one.ran + two.ran) == sorted(f"{key}-0" for key in keys)
    assert len([event for event in bench.events if event.state == "done"]) == 20


def test_a_hub_that_is_away_is_left_alone_until_the_next_cycle(bench: Bench) -> None:
    bench.add(*(f"k{n}" for n in range(10)))

    def away(_task: Task, _stop: Stop) -> Any:
        raise HubUnreachableError("The Hub did not answer.")

    place = Place(answer=away)
    bench.pool(place).run()
    assert len(place.ran) == 3 and bench.states() == {"todo": 10}


def test_a_job_goes_where_it_fits_and_ends_where_it_fits_nowhere(bench: Bench) -> None:
    bench.add("large", need=NEED)
    bench.add("larger", need=replace(NEED, weights=10**6))
    bench.add("small", need=replace(NEED, weights=10))
    tiny, big = Place(memory=100), Place(name="big", memory=5000)
    bench.pool(tiny, big).run()
    assert "large-0" in big.ran and tiny.ran in (["small-0"], [])
    [larger] = [job for job in bench.store.jobs.all() if job.key == "larger"]
    assert larger.state == "failed" and larger.error_type == "TooLargeError" and "0.0 GB" in (larger.error or "")
    assert any("more memory than any runner" in said for said in bench.said)


def test_what_fits_nowhere_waits_where_a_runners_size_is_not_known(bench: Bench) -> None:
    bench.add("large", need=NEED)
    bench.pool(Place(memory=100)).run()
    assert bench.states() == {"failed": 1}
    bench.add("other", need=NEED)
    unknown = Place(name="unknown")
    bench.pool(Place(memory=100), unknown).run()
    assert unknown.ran == ["other-0"]


def test_a_paused_queue_ends_the_work_and_a_resumed_one_begins_it(bench: Bench) -> None:
    bench.add("a")
    bench.store.jobs.pause("a new disk")
    bench.pool(Place()).run()
    assert bench.states() == {"todo": 1}
    bench.store.jobs.resume()
    bench.pool(Place()).run()
    assert bench.states() == {"done": 1}


def test_jobs_of_a_process_that_is_gone_are_taken_back_first(bench: Bench) -> None:
    bench.add("a", "b")
    gone = f"{worker.machine_name()}:{2**22 + 1}:0"
    job = bench.store.leases.claim(gone, now=time.time(), lease=3600)
    assert job and worker.alive(gone) is False and worker.alive(worker.worker_name()) is True
    assert worker.alive("elsewhere:1:2:3") is None
    bench.pool(Place()).run()
    assert bench.states() == {"done": 2} and any("put back" in said for said in bench.said)


def test_workers_for_ever_take_what_comes_and_end_when_told(bench: Bench) -> None:
    place = Place(slots=2)

    def work() -> None:
        with Store(bench.store.path) as own:
            replace(bench.pool(place, forever=True), store=own).run()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    bench.add("a", "b", "c")
    end = time.monotonic() + 20
    while bench.states() != {"done": 3} and time.monotonic() < end:
        time.sleep(0.05)
    assert thread.is_alive() and bench.states() == {"done": 3}
    bench.stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_stop_puts_running_jobs_back(bench: Bench) -> None:
    begun = threading.Event()

    def long(_task: Task, stop: Stop) -> Any:
        begun.set()
        end = time.monotonic() + 20
        while not stop.is_set() and time.monotonic() < end:
            time.sleep(0.01)
        raise JobStopped

    bench.add("a", "b")
    thread = threading.Thread(target=lambda: begun.wait(10) and bench.stop.set())
    thread.start()
    bench.pool(Place(slots=2, answer=long)).run()
    thread.join()
    assert bench.states() == {"todo": 2}
    assert all(job.attempts == 0 and job.run == 0 for job in bench.store.jobs.all())


def test_a_lost_machine_is_tried_at_once_and_its_run_has_another_name(bench: Bench) -> None:
    bench.add("a")

    def first_lost(task: Task, _stop: Stop) -> SpeedResult:
        if task.id.endswith("-0"):
            raise MachineLostError("The machine was lost.")
        return speed()

    place = Place(answer=first_lost)
    bench.pool(place).run()
    assert place.ran == ["a-0", "a-1"] and bench.states() == {"done": 1}
