"""What is decided about a Ray cluster without one: places, log lines, reasons of an end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bot.queue.runners.ray as ray_module
from bot.queue.runners.base import ModelSource, Stages, Task
from bot.queue.runners.ray import RayRunner, _Log
from bot.queue.runners.ray_cluster import Ask, Node, asked_of, capacity_of, largest, nodes_of
from bot.queue.runners.shared_files import limits_of
from core.contract import ErrorEvent, Machine, ProgressEvent, SpeedSpec
from core.errors import (
    JobProtocolError,
    MachineLostError,
    MeasurementDiedError,
    QuantcardError,
    RunnerUnavailableError,
    SettingsError,
)
from core.frame import Ended, frame, progress_line
from core.need import Capacity, Need

NONCE = "ab" * 16
GB = 1_000_000_000


def task_of(*, need: int | None = 4 * GB, threads: int = 0, gpu_layers: int = -1) -> Task:
    parts = None
    if need is not None:
        sizes = {"weights": need, "largest_layer": need // 32, "disk": need}
        parts = Need(kv_cache=0, logits=0, compute=0, baseline=0, n_layers=32, **sizes)
    return Task(
        id="t-1",
        nonce=NONCE,
        spec=SpeedSpec(model="/m/m.gguf", machine=Machine(n_threads=threads, n_gpu_layers=gpu_layers)),
        model=ModelSource("o/r", "0" * 40, ()),
        need=parts,
        stages=Stages(1, 1, 1, 1),
    )


def state(*, alive: bool = True, **total: float) -> dict[str, Any]:
    return {
        "state": "ALIVE" if alive else "DEAD",
        "resources_total": {k.replace("__", ":"): v for k, v in total.items()},
    }


def test_nodes_are_read_from_what_the_cluster_says() -> None:
    states = [
        state(CPU=8, memory=64e9, GPU=2, accelerator_type__H100=1),
        state(CPU=4, memory=16e9),
        state(CPU=4, memory=16e9, GPU=1, accelerator_type__G=1),
        state(CPU=4, memory=16e9, GPU=1, accelerator_type__G=1, quantcard_vram_gb=24),
        state(CPU=64, memory=900e9, alive=False),
        {"state": "ALIVE", "resources_total": None},
        {"state": "ALIVE", "resources_total": {"CPU": "many", "memory": 1e9}},
    ]
    assert nodes_of(states, "") == [
        Node(64 * GB, 8, (80 * GB, 80 * GB)),
        Node(16 * GB, 4),
        # Nobody said how much memory that GPU has: it is not counted on.
        Node(16 * GB, 4),
        Node(16 * GB, 4, (24 * GB,)),
        Node(GB, 0),
    ]


def test_with_a_resource_of_our_own_only_the_nodes_that_declare_it_take_jobs() -> None:
    states = [state(CPU=8, memory=64e9), state(CPU=4, memory=16e9, quantcard_memory_gb=12)]
    assert nodes_of(states, "quantcard_memory_gb") == [Node(12 * GB, 4)]


def test_the_largest_node_is_the_capacity_and_nothing_is_known_without_one() -> None:
    nodes = [Node(64 * GB, 8), Node(16 * GB, 4, (24 * GB,))]
    assert largest(nodes) == nodes[1] and capacity_of(nodes[1]) == Capacity(16 * GB, (24 * GB,))
    assert capacity_of(largest([])) == Capacity(None)


NODES = [Node(16 * GB, 4), Node(64 * GB, 32), Node(64 * GB, 16, (24 * GB, 24 * GB))]


@pytest.mark.parametrize(
    ("task", "nodes", "asked"),
    [
        # Threads left to the machine: a whole node, the smallest that fits.
        (task_of(gpu_layers=0), NODES, Ask(4, 0, 4 * GB)),
        (task_of(need=40 * GB, gpu_layers=0), NODES, Ask(16, 0, 40 * GB)),
        (task_of(threads=3, gpu_layers=0), NODES, Ask(3, 0, 4 * GB)),
        # On the GPU: one, or as many as it takes; little is left in main memory.
        (task_of(), NODES, Ask(16, 1, 0)),
        (task_of(need=40 * GB), NODES, Ask(16, 2, 0)),
        (task_of(need=None), NODES, Ask(16, 1, 0)),
        (task_of(need=None), NODES[:2], Ask(4, 0, 0)),
        # A cluster that has no node yet, and makes one when somebody asks.
        (task_of(), [], Ask(1, 0, 4 * GB)),
    ],
)
def test_a_task_asks_for_what_it_uses(task: Task, nodes: list[Node], asked: Ask) -> None:
    assert asked_of(task, nodes) == asked


def test_what_no_node_takes_is_not_submitted_to_wait_for_ever() -> None:
    with pytest.raises(RunnerUnavailableError, match=r"400\.0 GB"):
        asked_of(task_of(need=400 * GB), NODES)


def test_limits_leave_room_above_the_estimate() -> None:
    limits = limits_of(task_of(need=4 * GB))
    assert limits.memory_bytes is not None and 6 * GB < limits.memory_bytes < 9 * GB
    assert limits_of(task_of(need=None)).memory_bytes is None


EVENTS = [ProgressEvent(stage="measuring", done=i, total=3) for i in range(3)]
END = Ended(event=ErrorEvent(type="GGUFError", message="Broken."))
TEXT = "\n".join(
    ["2026 INFO Runtime env is setting up.", *map(progress_line, EVENTS), "", frame(END.event, NONCE), "bye\n"]
)


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_a_growing_log_is_read_once_however_it_is_cut(cuts: list[int]) -> None:
    log = _Log(NONCE)
    found = [event for cut in sorted(cuts) for event in log.new(TEXT[:cut], whole=False)]
    found += log.new(TEXT, whole=True)
    assert found == [*EVENTS, END]


def test_a_line_in_the_making_counts_when_the_job_has_ended() -> None:
    line = frame(END.event, NONCE)
    log = _Log(NONCE)
    assert list(log.new(line[:-3], whole=False)) == [] and list(log.new(line, whole=True)) == [END]
    with pytest.raises(JobProtocolError):
        list(_Log(NONCE).new(line[:-3], whole=True))


@pytest.fixture
def runner(tmp_path: Path) -> RayRunner:
    pytest.importorskip("ray", reason="Ray is not installed (quantcard[ray])")
    return RayRunner("http://127.0.0.1:1", slots=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("status", "kind", "message", "code", "words", "error"),
    [
        (
            "FAILED",
            "JOB_SUPERVISOR_ACTOR_DIED",
            "its node has died",
            None,
            "",
            MachineLostError,
        ),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "?", None, "", MachineLostError),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_DIED", "killed as the node is low on memory", None, "", MeasurementDiedError),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "within 900 s", None, "", RunnerUnavailableError),
        ("FAILED", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "no", None, "", RunnerUnavailableError),
        ("FAILED", "RUNTIME_ENV_SETUP_FAILURE", "no", None, "", RunnerUnavailableError),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", "x", 1, "No module named jobs", RunnerUnavailableError),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", "x", -9, "", MeasurementDiedError),
        ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", "x", 1, "ouch", JobProtocolError),
        ("SUCCEEDED", None, "", 0, "", JobProtocolError),
        ("STOPPED", None, "", None, "", MachineLostError),
    ],
)
def test_an_end_without_a_line_has_a_reason_that_can_be_retried(
    runner: RayRunner, status: str, kind: str | None, message: str, code: int | None, words: str, error: type
) -> None:
    log = _Log(NONCE)
    list(log.new(f"{words}\n", whole=True))
    details = SimpleNamespace(error_type=kind, message=message, driver_exit_code=code)
    with pytest.raises(QuantcardError) as caught:
        runner._ended_without_line(details, status, log, task_of())
    assert type(caught.value) is error and caught.value.retryable


def test_a_cluster_that_is_not_there_is_tried_again_later(runner: RayRunner) -> None:
    never = SimpleNamespace(is_set=lambda: False, reason="shutdown")
    with pytest.raises(RunnerUnavailableError, match="can't be used"):
        runner.run(task_of(), report=lambda event: None, stop=never)  # type: ignore[arg-type]
    assert runner.capacity() == Capacity(None)


class Head:
    """A Jobs API that answers with what is given, in turn; the last for ever."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)

    def get_job_info(self, _: str) -> object:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get_job_logs(self, _: str) -> str:
        raise RuntimeError("Request failed with status code 500: its node is gone")


RUNNING = SimpleNamespace(status="RUNNING")


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((RUNNING, ConnectionError("refused")), "has not answered for long"),
        ((RUNNING, RuntimeError("Request failed with status code 404: no such job")), "no longer knows the job"),
    ],
)
def test_a_cluster_that_goes_away_loses_its_jobs(
    runner: RayRunner, monkeypatch: pytest.MonkeyPatch, answers: tuple[object, ...], says: str
) -> None:
    monkeypatch.setattr(ray_module, "_POLL_S", 0.01)
    monkeypatch.setattr(ray_module, "_PATIENCE_S", 0.05)
    never = SimpleNamespace(is_set=lambda: False, reason="shutdown")
    with pytest.raises(MachineLostError, match=says):
        runner._follow(Head(*answers), task_of(), lambda event: None, never)  # type: ignore[arg-type]


def test_a_silence_is_waited_out(runner: RayRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_module, "_POLL_S", 0.01)
    (runner._end_file(task_of())).write_text(frame(END.event, NONCE) + "\n")
    done = SimpleNamespace(status="FAILED", error_type=None, message="", driver_exit_code=5)
    never = SimpleNamespace(is_set=lambda: False, reason="shutdown")
    head = Head(RUNNING, ConnectionError("refused"), TimeoutError("slow"), done)
    assert runner._follow(head, task_of(), lambda event: None, never) == END  # type: ignore[arg-type]


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for one in held:
            one.close()


def test_a_cluster_that_says_nothing_is_not_waited_for_for_ever(
    mute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (quantcard[ray])")
    monkeypatch.setattr(ray_module, "_TIMEOUT", (0.3, 0.3))
    never = SimpleNamespace(is_set=lambda: False, reason="shutdown")
    with pytest.raises(RunnerUnavailableError, match="timed out"):
        RayRunner(mute, slots=1, folder=tmp_path).run(task_of(), report=lambda event: None, stop=never)  # type: ignore[arg-type]


def test_without_ray_the_setting_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"quantcard\[ray\]"):
        RayRunner("http://127.0.0.1:1", slots=1, folder=tmp_path)
