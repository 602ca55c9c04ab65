"""Files that mean harm, measured as a stranger's file is: each ends in the right error, in bounded time and memory."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bot.queue.runners.base import ModelSource, Stages, Task
from bot.queue.runners.local import JobStopped, LocalRunner, run_job
from bot.settings import load_settings
from core.contract import (
    BaselineResult,
    BaselineSpec,
    BaselineToolSpec,
    ProgressEvent,
    QualityResult,
    QualitySpec,
    QuantizeResult,
    QuantizeSpec,
    SpeedResult,
    SpeedSpec,
)
from core.errors import GGUFError, MeasurementDiedError, SandboxError
from core.need import Capacity, Need
from core.sandbox import levels
from core.sandbox.child import StopReason, run_child
from core.sandbox.levels import Limits, Sandbox
from core.sandbox.spec_paths import reads_of
from tests import hostile_models
from tests.integration.sandbox_helpers import require
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
TEXT = "the quick brown fox jumps over the lazy dog, and then it rests for a while. " * 60


@pytest.fixture
def sandbox() -> Sandbox:
    """The best that there is, also where that is none: what the files do must be bounded everywhere."""
    return levels.best_sandbox(unsafe=True) if levels.probe("bubblewrap") is None else Sandbox("none")


def speed(path: Path, sandbox: Sandbox, *, seconds: float = 60, memory: int = 1 << 30) -> SpeedResult:
    spec = SpeedSpec(model=str(path), n_prompt=[64], n_gen=[2], repetitions=1)
    limits = Limits(seconds=seconds, memory_bytes=memory)
    found = run_child(spec, sandbox=sandbox, reads=reads_of(spec), writes=[], limits=limits)
    assert isinstance(found, SpeedResult)
    return found


@pytest.mark.parametrize("name", hostile_models.REFUSED)
def test_a_header_that_can_not_be_true_is_refused_at_once(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(hostile_models.REFUSED[name])
    started = time.monotonic()
    with pytest.raises(GGUFError) as caught:
        speed(path, sandbox)
    assert not caught.value.retryable and time.monotonic() - started < 20


def test_a_file_that_ends_too_early(tmp_path: Path, sandbox: Sandbox) -> None:
    hostile_models.truncated(tmp_path / "m.gguf")
    with pytest.raises(GGUFError):
        speed(tmp_path / "m.gguf", sandbox)


def test_a_chat_template_is_never_rendered(tmp_path: Path, sandbox: Sandbox) -> None:
    hostile_models.templated(tmp_path / "m.gguf")
    assert speed(tmp_path / "m.gguf", sandbox).tests[0].avg_ts > 0


def test_a_file_that_makes_llama_cpp_abort(tmp_path: Path, sandbox: Sandbox) -> None:
    path = hostile_models.changed(tmp_path / "m.gguf", {"llama.block_count": hostile_models.uint32(2**32 - 1)})
    with pytest.raises(MeasurementDiedError, match="died: SIGABRT"):
        speed(path, sandbox)


def test_a_file_that_eats_memory(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "m.gguf"
    hostile_models.hungry(path)
    assert path.stat().st_blocks * 512 < 1 << 20
    with pytest.raises(MeasurementDiedError, match=r"it took more memory than 0\.4 GB"):
        speed(path, sandbox, memory=400_000_000)


def test_a_file_that_is_never_done(demo_model: Path, sandbox: Sandbox) -> None:
    spec = SpeedSpec(model=str(demo_model), repetitions=10**6)
    with pytest.raises(MeasurementDiedError, match="it took longer than 2 s"):
        run_child(spec, sandbox=sandbox, reads=[demo_model], writes=[], limits=Limits(seconds=2))


def test_the_whole_work_in_the_sandbox_and_outputs_where_they_were_asked_for(tmp_path: Path, demo_model: Path) -> None:
    require("bubblewrap")
    held = Sandbox("bubblewrap")
    place = tmp_path / "out"
    place.mkdir()
    (place / "other").write_text("mine")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT)
    told: list[ProgressEvent] = []
    quant = place / "q.gguf"
    made = run_job(QuantizeSpec(model=str(demo_model), out=str(quant), file_type="Q4_K_M"), timeout=60, sandbox=held)
    assert isinstance(made, QuantizeResult) and made.path == str(quant) and quant.stat().st_size == made.size_bytes
    base = run_job(
        BaselineSpec(reference=str(demo_model), corpus=str(corpus), out=str(place / "b.gguf"), n_ctx=64, chunks=4)
        .model_copy(update={"format": "states"}),
        timeout=100, sandbox=held, on_progress=told.append,
    )  # fmt: skip
    assert isinstance(base, BaselineResult) and base.path == str(place / "b.gguf") and told
    assert base.head_path is not None and Path(base.head_path).parent == place and Path(base.head_path).is_file()
    spec = QualitySpec(
        model=str(quant),
        baseline=base.path,
        tokens_out=str(place / "t.parquet"),
        checkpoint=str(place / "c.checkpoint"),
    )
    found = run_job(spec, timeout=100, sandbox=held)
    assert isinstance(found, QualityResult) and found.tokens_path == str(place / "t.parquet")
    assert found.model_dump(exclude={"timings", "environment"}) == run_job(
        spec, timeout=100, sandbox=levels.NONE
    ).model_dump(exclude={"timings", "environment"})
    names = {path.name for path in place.iterdir()}
    assert names == {"other", "q.gguf", "b.gguf", Path(base.head_path).name, "t.parquet"}


def test_relative_paths_and_files_in_place(tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("bubblewrap")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "m.gguf").symlink_to(demo_model)
    (tmp_path / "a" / "c.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "a" / "b")
    spec = BaselineSpec(reference="../m.gguf", corpus="../c.txt", out="x.kld", format="logits", n_ctx=64, chunks=2)
    made = run_job(spec, timeout=100)
    assert isinstance(made, BaselineResult) and made.path == "x.kld" and Path("x.kld.json").is_file()
    said: list[str] = []
    Path("x.kld.json").unlink()
    again = BaselineToolSpec(action="import", path="x.kld", out="x.kld", reference="../m.gguf")
    run_job(again, timeout=100, say=said.append)
    assert Path("x.kld.json").is_file() and said == ["Measured without a sandbox: the file is changed in place."]


def test_kernels_are_compiled_before_and_not_in_the_sandbox(tmp_path: Path, demo_model: Path) -> None:
    """Else every job would wait for the compiler; and what one job could write, the next one would run."""
    from core.sandbox.kernels import copy_kernels

    copy_kernels(tmp_path / "kernels")
    before = {path.name for path in (tmp_path / "kernels").rglob("*") if path.is_file()}
    for name in ("score_clipped", "score_unclipped", "encode_rows", "check_encoded", "apply_head_rule"):
        assert any(f"kernel.{name}-" in file and file.endswith(".nbc") for file in before), name


@dataclass
class Halt:
    """A stop as the worker gives it."""

    event: threading.Event
    reason: StopReason = "cancelled"

    def is_set(self) -> bool:
        return self.event.is_set()


def task(spec: SpeedSpec | QualitySpec | BaselineSpec) -> Task:
    stages = Stages(queued=1, fetching=1, measuring=100, uploading=1)
    return Task("a" * 8, "0" * 32, spec, ModelSource("o/r", "main", ()), None, stages)


def test_the_local_runner(tmp_path: Path, demo_model: Path) -> None:
    runner = LocalRunner(load_settings(db=tmp_path / "q.db", unsafe_no_sandbox=True, local_slots=2))
    assert (runner.name, runner.slots, runner.local_files) == ("local", 2, True)
    have = runner.capacity()
    assert have.memory is not None and have.disk is not None
    told: list[ProgressEvent] = []
    halt = Halt(threading.Event())
    spec = SpeedSpec(model=str(demo_model), n_prompt=[16], n_gen=[2], repetitions=1)
    assert isinstance(runner.run(task(spec), report=told.append, stop=halt), SpeedResult) and told
    threading.Timer(0.5, halt.event.set).start()
    with pytest.raises(JobStopped):
        runner.run(task(spec.model_copy(update={"repetitions": 10**6})), report=told.append, stop=halt)


def test_what_a_task_may_take_follows_from_what_was_estimated(
    tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 1 << 30
    runner = LocalRunner(load_settings(db=tmp_path / "q.db", unsafe_no_sandbox=True))
    monkeypatch.setattr("bot.queue.runners.local.capacity_here", lambda data: Capacity(memory=64 * gib))
    given: list[Limits] = []

    def measured(spec: object, *, limits: Limits, **_: object) -> None:
        given.append(limits)

    monkeypatch.setattr("bot.queue.runners.local.run_child", measured)
    spec = SpeedSpec(model=str(demo_model))
    small, large = (
        Need(weights=n * gib, kv_cache=0, logits=0, compute=0, baseline=0, disk=8 * gib, n_layers=1) for n in (4, 400)
    )
    for need in (small, large, None):
        runner.run(replace(task(spec), need=need), report=lambda _: None, stop=Halt(threading.Event()))
    assert [limits.memory_bytes for limits in given] == [8 * gib, 64 * gib - gib // 2, 64 * gib - gib // 2]
    assert given[0].output_bytes == 13 * gib and given[0].seconds == 100


def test_the_local_runner_refuses_where_nothing_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "_probed", lambda level: f"{level} is not here")
    with pytest.raises(SandboxError, match="Install bubblewrap"):
        LocalRunner(load_settings(db=tmp_path / "q.db"))
    assert LocalRunner(load_settings(db=tmp_path / "q.db", unsafe_no_sandbox=True)).sandbox.level == "none"


def test_a_model_that_another_user_can_not_read_is_said(tmp_path: Path) -> None:
    require("uid")
    tmp_path.chmod(0o700)
    tiny_model(tmp_path / "m.gguf", "llama-tied")
    with pytest.raises(SandboxError, match=r"m\.gguf can't be reached by the unprivileged user.*closed to others"):
        speed(tmp_path / "m.gguf", Sandbox("uid"))
