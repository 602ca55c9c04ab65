"""A run that is killed at any point goes on where it was, and ends in the same figures and the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from bot.queue.runners.local import scrubbed_environment
from core.contract import (
    BaselineResult,
    BaselineSpec,
    BaselineToolSpec,
    ErrorEvent,
    Machine,
    ProgressEvent,
    QualityFailure,
    QualityManySpec,
    QualityResult,
    QualitySpec,
    ResultEvent,
    event_adapter,
)
from core.errors import NonFiniteLogitsError
from core.gguf_header import read_file_header
from core.token_file import read_tokens
from jobs.baseline.kld_file import KldReader
from jobs.baseline.record import record
from jobs.baseline.tools import run_tool
from jobs.quality import measure, measure_many
from tests.tiny_models import tiny_model

#: One thread: the processes of other tests must not stretch a run beyond its random moment.
MACHINE = Machine(n_threads=1, n_gpu_layers=0)
#: Two chunks at a time, 45 groups: a run of most of a second.
SIZES: dict[str, Any] = {"n_batch": 256, "n_ubatch": 64, "machine": MACHINE}
RECORDING: dict[str, Any] = {"n_ctx": 128, "chunks": 90, **SIZES}
KILLS, TERMS = 20, 2


WORK = ("recording", "measuring")


@dataclass
class Kill:
    """When a process is ended: so many seconds after it began, or after its work did."""

    after: float
    at_work: bool = False
    signal: signal.Signals = signal.SIGKILL


@dataclass
class Run:
    """What one process said before it ended; ``work`` are the seconds since its first word of chunks."""

    code: int = 0
    work: float = 0.0
    seconds: float = 0.0
    progress: list[ProgressEvent] = field(default_factory=list)
    last: ResultEvent | ErrorEvent | None = None

    @property
    def result(self) -> Any:
        assert self.code == 0 and isinstance(self.last, ResultEvent), self
        return self.last.result

    @property
    def error(self) -> ErrorEvent:
        assert self.code != 0 and isinstance(self.last, ErrorEvent), self
        return self.last

    @property
    def began_at(self) -> int | None:
        """How many chunks were done when it began, if it came that far."""
        working = [event.done for event in self.progress if event.stage in WORK]
        return working[0] if working else None


def run(spec: BaseModel, home: Path, *, kill: Kill | None = None, limit: Callable[[], None] | None = None) -> Run:
    """Run a job in a process of its own, as the bot does, and end it at some moment."""
    found, begin = Run(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "jobs.run", "--die-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=scrubbed_environment(str(home)),
        preexec_fn=limit,
    )
    timer = threading.Timer(60 if kill is None or kill.at_work else kill.after, _end, (process, kill))
    timer.start()
    working = None
    try:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(spec.model_dump_json().encode())
        for line in process.stdout:
            try:
                event = event_adapter.validate_python(json.loads(line))
            except ValueError:
                assert kill is not None, line  # a line that the kill cut short
                continue
            if not isinstance(event, ProgressEvent):
                found.last = event
                continue
            found.progress.append(event)
            if event.stage in WORK and working is None:
                working = time.monotonic()
                if kill is not None and kill.at_work:
                    timer.cancel()
                    timer = threading.Timer(kill.after, _end, (process, kill))
                    timer.start()
        found.code = process.wait(60)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    found.seconds = time.monotonic() - begin
    found.work = 0.0 if working is None else time.monotonic() - working
    return found


def _end(process: subprocess.Popen[bytes], kill: Kill | None) -> None:
    process.send_signal(signal.SIGKILL if kill is None else kill.signal)


@dataclass
class World:
    """Models, a corpus, and what undisturbed runs over them give."""

    folder: Path
    recorded: dict[str, BaselineResult] = field(default_factory=dict)
    undisturbed: dict[str, Run] = field(default_factory=dict)

    @property
    def reference(self) -> Path:
        return self.folder / "reference.gguf"

    @property
    def variant(self) -> Path:
        return self.folder / "variant.gguf"

    def recording(self, out: Path, format_: str, **options: Any) -> BaselineSpec:
        given = {**RECORDING, **options}
        corpus = self.folder / "corpus.txt"
        return BaselineSpec(reference=str(self.reference), corpus=str(corpus), out=str(out), format=format_, **given)  # type: ignore[arg-type]

    def measuring(self, format_: str, **options: Any) -> QualitySpec:
        given = {**SIZES, **options}
        return QualitySpec(model=str(self.variant), baseline=self.recorded[format_].path, **given)


OUT = {"states": "base.gguf", "logits": "base.kld"}
FORMATS = pytest.mark.parametrize("format_", ["states", "logits"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("kill"))
    text = "the of and to in is that for it as was with be by on not he his but at are this have from"
    words = np.random.default_rng(2).choice(text.split(" "), 20_000)
    (found.folder / "corpus.txt").write_text(" ".join(words))
    tiny_model(found.reference, "llama-untied", n_vocab=1500)
    tiny_model(found.variant, "llama-untied", n_vocab=1500, head_type="q8_0")
    for format_, name in OUT.items():
        # Once to warm up: the kernels' first use compiles them.
        run(found.recording(found.folder / "warm" / name, format_), found.folder)
        undisturbed = run(found.recording(found.folder / "undisturbed" / name, format_), found.folder)
        found.recorded[format_], found.undisturbed[format_] = undisturbed.result, undisturbed
        assert found.recorded[format_].format == format_
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def standing(folder: Path) -> dict[str, bytes]:
    """Contents but for the locks that writers of a head take, which are empty and stay."""
    return {name: data for name, data in contents(folder).items() if data or not name.endswith(".lock")}


def settled(folder: Path) -> dict[str, bytes]:
    """And but for small files whose writing was cut off by a kill (``.NAME.RANDOM.part``)."""
    return {name: data for name, data in standing(folder).items() if not re.fullmatch(r"\..+\.\w{8}\.part", name)}


def figures(result: BaseModel) -> dict[str, Any]:
    """Everything of a result but where it lies and how long it took."""
    return result.model_dump(exclude={"path", "head_path", "timings", "tokens_path"})


@dataclass
class Campaign:
    """Starts a job again and again, killing it at random moments, until enough kills hit it and it ended."""

    spec: BaseModel
    home: Path
    undisturbed: Run
    finished: Callable[[Any], None]
    random: random.Random
    kills: dict[signal.Signals, int] = field(default_factory=dict)
    resumed: int = 0
    ends: int = 0

    def run(self) -> None:
        missing = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * TERMS
        self.random.shuffle(missing)
        while missing or not self.ends:
            kill = self._kill(missing[-1]) if missing else None
            found = run(self.spec, self.home, kill=kill)
            self.resumed += bool(found.began_at)
            if found.code < 0:
                assert found.code == -missing[-1]
                which = missing.pop()
                self.kills[which] = self.kills.get(which, 0) + 1
            else:
                # The kill came too late: from wherever it began, it is done.
                self.ends += 1
                self.finished(found.result)

    def _kill(self, which: signal.Signals) -> Kill:
        """One in four at any moment since the process began, the others while it is at work."""
        if self.random.random() < 0.25:
            return Kill(self.random.uniform(0, self.undisturbed.seconds), signal=which)
        return Kill(self.random.uniform(0, 0.8) * self.undisturbed.work, at_work=True, signal=which)

    def assert_enough(self) -> None:
        assert self.kills == {signal.SIGKILL: KILLS, signal.SIGTERM: TERMS}
        assert self.resumed >= 3, self


@FORMATS
def test_a_recording_killed_at_random_ends_in_the_same_bytes(world: World, tmp_path: Path, format_: str) -> None:
    out = tmp_path / "killed" / OUT[format_]
    undisturbed = world.recorded[format_]
    beside = Path(undisturbed.path).parent
    wanted = {name: data for name, data in contents(beside).items() if name.startswith(OUT[format_])}
    if format_ == "states":
        assert undisturbed.head_path is not None
        wanted |= {Path(undisturbed.head_path).name: Path(undisturbed.head_path).read_bytes()}

    def finished(result: BaselineResult) -> None:
        assert figures(result) == figures(undisturbed)
        found = settled(out.parent)
        assert set(found) == set(wanted), "nothing else is left"
        assert all(found[name] == data for name, data in wanted.items())
        # The next run finds nothing to go on from.
        shutil.rmtree(out.parent)

    spec, chance = world.recording(out, format_), random.Random(f"recording {format_}")
    campaign = Campaign(spec, tmp_path, world.undisturbed[format_], finished, chance)
    campaign.run()
    campaign.assert_enough()


@FORMATS
def test_a_measurement_killed_at_random_ends_in_the_same_figures(world: World, tmp_path: Path, format_: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    options = {"as_llama_cpp": True} if format_ == "states" else {}
    spec = world.measuring(
        format_, checkpoint=str(folder / "checkpoint"), tokens_out=str(folder / "tokens.parquet"), **options
    )
    run(spec.model_copy(update={"checkpoint": None, "tokens_out": None}), tmp_path)
    first = run(spec.model_copy(update={"checkpoint": None, "tokens_out": str(tmp_path / "whole.parquet")}), tmp_path)
    undisturbed, sidecar = first.result, (tmp_path / "whole.parquet").read_bytes()

    def finished(result: QualityResult) -> None:
        assert figures(result) == figures(undisturbed)
        assert settled(folder) == {"tokens.parquet": sidecar}, "the checkpoint is gone"
        shutil.rmtree(folder)
        folder.mkdir()

    campaign = Campaign(spec, tmp_path, first, finished, random.Random(f"measuring {format_}"))
    campaign.run()
    campaign.assert_enough()
    assert read_tokens(tmp_path / "whole.parquet").kld.shape == (90, 63)


def test_what_a_kill_left_of_a_small_file_is_cleared_by_the_next_run(world: World, tmp_path: Path) -> None:
    """Such a file has no end of its own: of an export it may be as large as a disk."""
    for name in (".tokens.parquet.ab_12cd3.part", ".exported.kld.zz0_q9xy.part"):
        (tmp_path / name).write_bytes(b"half")
    measure(world.measuring("logits", chunks=2, tokens_out=str(tmp_path / "tokens.parquet")), noting([]))
    whole, out = world.recorded["states"].path, str(tmp_path / "exported.kld")
    run_tool(BaselineToolSpec(action="export", path=whole, out=out, machine=MACHINE), noting([]))
    assert set(contents(tmp_path)) == {"tokens.parquet", "exported.kld"}


# --- interrupted here and there, in this process


class Interrupted(BaseException):
    """What a test raises in the middle of a run; nothing of ours catches it."""


def stopping_at(chunk: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage in ("recording", "measuring") and done >= chunk:
            raise Interrupted

    return progress


def noting(seen: list[int]) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage in ("recording", "measuring"):
            seen.append(done)

    return progress


@FORMATS
@pytest.mark.parametrize("chunk", [2, 14, 40])
def test_a_recording_goes_on_from_its_last_group(world: World, tmp_path: Path, format_: str, chunk: int) -> None:
    spec = world.recording(tmp_path / "a" / OUT[format_], format_, chunks=41)
    whole = record(world.recording(tmp_path / "b" / OUT[format_], format_, chunks=41), noting([]))
    with pytest.raises(Interrupted):
        record(spec, stopping_at(chunk))
    seen: list[int] = []
    assert figures(record(spec, noting(seen))) == figures(whole)
    assert seen[0] == chunk
    assert standing(tmp_path / "a") == standing(tmp_path / "b")


@FORMATS
def test_a_recording_whose_part_was_damaged_begins_where_it_is_whole(
    world: World, tmp_path: Path, format_: str
) -> None:
    """The disk lost pages that the checkpoint speaks of: those chunks are recorded again."""
    spec = world.recording(tmp_path / "a" / OUT[format_], format_, chunks=40)
    whole = record(world.recording(tmp_path / "b" / OUT[format_], format_, chunks=40), noting([]))
    with pytest.raises(Interrupted):
        record(spec, stopping_at(30))
    (part,) = (tmp_path / "a").glob(".*.part")
    size = part.stat().st_size
    with part.open("r+b") as file:
        file.seek(size * 17 // 30)
        file.write(bytes(100))
    seen: list[int] = []
    assert figures(record(spec, noting(seen))) == figures(whole)
    assert 0 < seen[0] < 30
    assert standing(tmp_path / "a") == standing(tmp_path / "b")
    # And without the part nothing is believed.
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(Interrupted):
        record(spec, stopping_at(30))
    part.unlink()
    record(spec, noting(seen := []))
    assert seen[0] == 0
    assert standing(tmp_path / "a") == standing(tmp_path / "b")


def test_the_kept_logits_are_as_safe_as_the_states(world: World, tmp_path: Path) -> None:
    """A crash of the machine may lose any page that was not synced, those of the sample rows too."""
    spec = world.recording(tmp_path / "a" / "base.gguf", "states", chunks=20)
    with pytest.raises(Interrupted):
        record(spec, stopping_at(10))
    (part,) = (tmp_path / "a").glob(".*.part")
    whole = world.recorded["states"].path
    header = read_file_header(Path(whole))
    (samples,) = [tensor for tensor in header.tensors if tensor.name == "sample_logits"]
    # Found by their content: this file's offsets are others.
    with Path(whole).open("rb") as file:
        file.seek(header.data_start + samples.offset)
        known = file.read(64)
    data = part.read_bytes()
    assert data.count(known) == 1
    with part.open("r+b") as file:
        file.seek(data.index(known))
        file.write(bytes(samples.n_bytes))
    result = record(spec, noting([]))
    assert run_tool(BaselineToolSpec(action="verify", path=result.path, machine=MACHINE), noting([])).ppl == result.ppl


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("as_llama_cpp", [False, True])
def test_a_measurement_goes_on_from_its_last_group(
    world: World, tmp_path: Path, overlap: bool, as_llama_cpp: bool
) -> None:
    for format_ in OUT:
        checkpoint = tmp_path / f"{format_}.checkpoint"
        options = {"chunks": 31, "as_llama_cpp": as_llama_cpp, "overlap": overlap}
        whole = measure(world.measuring(format_, **options), noting([]))
        spec = world.measuring(format_, checkpoint=str(checkpoint), **options)
        for chunk in (2, 10, 31):
            with pytest.raises(Interrupted):
                measure(spec, stopping_at(chunk))
        seen: list[int] = []
        again = measure(spec, noting(seen))
        assert figures(again) == figures(whole)
        assert set(seen) <= {31}, "all was done"
        assert not checkpoint.exists()


@pytest.mark.parametrize("chunk", [8, 20])
def test_several_go_on_together(world: World, tmp_path: Path, chunk: int) -> None:
    """Those that failed fail again, also where all others had been measured to the end."""
    models = [str(world.variant), str(tmp_path / "missing.gguf"), str(world.reference)]
    for format_ in OUT:
        options: dict[str, Any] = {**SIZES, "chunks": 20, "models": models, "baseline": world.recorded[format_].path}
        whole = measure_many(QualityManySpec(**options), noting([])).outcomes
        spec = QualityManySpec(checkpoint=str(tmp_path / "checkpoint"), **options)
        with pytest.raises(Interrupted):
            measure_many(spec, stopping_at(chunk))
        seen: list[int] = []
        again = measure_many(spec, noting(seen)).outcomes
        assert seen[:1] in ([chunk], [])
        for mine, its in zip(again, whole, strict=True):
            if isinstance(its, QualityFailure):
                assert mine == its
            else:
                assert figures(mine) == figures(its)
        assert [isinstance(outcome, QualityFailure) for outcome in whole] == [False, True, False]


@pytest.mark.parametrize("name", ["split-00001-of-00002.gguf", "split-00002-of-00002.gguf"])
def test_a_split_model_that_is_not_whole_sinks_no_other(world: World, tmp_path: Path, name: str) -> None:
    models = [str(tmp_path / name), str(world.variant)]
    shutil.copyfile(world.variant, tmp_path / name)
    spec = QualityManySpec(
        models=models, baseline=world.recorded["logits"].path, chunks=2, checkpoint=str(tmp_path / "c"), **SIZES
    )
    outcomes = measure_many(spec, noting([])).outcomes
    assert isinstance(outcomes[0], QualityFailure) and outcomes[0].type == "GGUFError"
    assert isinstance(outcomes[1], QualityResult)


def test_what_decides_the_figures_decides_the_checkpoint(world: World, tmp_path: Path) -> None:
    """A checkpoint of other settings, of another model or another baseline is not gone on from."""
    variant = tmp_path / "variant.gguf"
    shutil.copyfile(world.variant, variant)
    path = str(tmp_path / "checkpoint")

    def began(**changes: Any) -> int:
        first = world.measuring("logits", checkpoint=path, chunks=20).model_copy(update={"model": str(variant)})
        Path(path).unlink(missing_ok=True)
        with pytest.raises(Interrupted):
            measure(first, stopping_at(8))
        change = changes.pop("change", None)
        if change:
            change()
        seen: list[int] = []
        measure(first.model_copy(update=changes), noting(seen))
        return seen[0]

    assert began() == 8
    assert began(tokens_out=str(tmp_path / "t.parquet")) == 8
    assert began(n_ubatch=32) == 0
    assert began(n_batch=128) == 0
    assert began(chunks=21) == 0
    assert began(type_k="f32") == 0
    assert began(flash_attn="off") == 0
    assert began(baseline=world.recorded["states"].path) == 0
    assert began(model=str(world.reference)) == 0
    assert began(change=lambda: variant.write_bytes(world.variant.read_bytes())) == 0, "written again"


def test_a_broken_model_is_told_alike_after_an_interruption(world: World, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    reader = KldReader(Path(world.recorded["logits"].path))
    reader.close()
    common = int(np.bincount(reader.tokens.ravel()).argmax())
    header = read_file_header(world.variant)
    (tensor,) = [t for t in header.tensors if t.name == "token_embd.weight"]
    data = bytearray(world.variant.read_bytes())
    row = tensor.n_bytes // tensor.shape[1]
    start = header.data_start + tensor.offset + common * row
    data[start : start + row] = b"\xff" * row
    bad.write_bytes(data)
    spec = world.measuring("logits", chunks=40).model_copy(update={"model": str(bad)})
    with pytest.raises(NonFiniteLogitsError, match="INVALID") as whole:
        measure(spec, noting([]))
    kept = spec.model_copy(update={"checkpoint": str(tmp_path / "checkpoint")})
    for chunk in (6, 16, 20, 36):
        with pytest.raises((Interrupted, NonFiniteLogitsError)):
            measure(kept, stopping_at(chunk))
    with pytest.raises(NonFiniteLogitsError, match="INVALID") as again:
        measure(kept, noting([]))
    assert str(again.value) == str(whole.value)


# --- no room


def at_most(n_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def assert_storage_error(found: Run) -> None:
    assert found.error.type == "StorageError", found.error
    assert "could not be written" in found.error.message or "full" in found.error.message
    assert found.code == 6


@FORMATS
@pytest.mark.parametrize("share", [0.0001, 0.3, 0.99])
def test_a_recording_without_room_leaves_nothing(world: World, tmp_path: Path, format_: str, share: float) -> None:
    """Files may not grow beyond a share of what is needed: the error is named and nothing half-written is left."""
    size = Path(world.recorded[format_].path).stat().st_size
    out = tmp_path / "folder" / OUT[format_]
    found = run(world.recording(out, format_), tmp_path, limit=partial(at_most, int(size * share)))
    assert_storage_error(found)
    left = set(standing(tmp_path / "folder"))
    assert not [name for name in left if name.startswith(".") or "base" in name], left


@FORMATS
@pytest.mark.parametrize("n_bytes", [0, 5_000, 200_000])
def test_a_measurement_without_room_for_its_checkpoint_is_named(
    world: World, tmp_path: Path, format_: str, n_bytes: int
) -> None:
    spec = world.measuring(format_, checkpoint=str(tmp_path / "checkpoint"))
    found = run(spec, tmp_path, limit=partial(at_most, n_bytes))
    assert_storage_error(found)
    # With room it goes on, from whatever was kept.
    seen: list[int] = []
    again = measure(spec, noting(seen))
    assert figures(again) == figures(measure(world.measuring(format_), noting([])))
    assert (seen[0] > 0) == (n_bytes == 200_000)


def test_a_measurement_without_room_for_its_sidecar_keeps_its_checkpoint(world: World, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    spec = world.measuring("logits", chunks=20, tokens_out=str(tmp_path / "full" / "t.parquet"))
    found = run(spec, tmp_path, limit=partial(at_most, 1000))
    assert_storage_error(found)
    assert not contents(tmp_path / "full")


@contextmanager
def small_disk(path: Path, n_bytes: int) -> Iterator[Path]:
    """A file system of its own, of this size."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


@FORMATS
def test_a_disk_that_is_too_small_is_told_before_the_first_row(world: World, tmp_path: Path, format_: str) -> None:
    with small_disk(tmp_path / "disk", 1 << 19) as disk:
        found = run(world.recording(disk / OUT[format_], format_), tmp_path)
        assert_storage_error(found)
        assert found.began_at is None
        assert not standing(disk)


@FORMATS
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(world: World, tmp_path: Path, format_: str) -> None:
    """Room for the baseline, but not for what stands beside it as well (companion, head)."""
    whole = Path(world.recorded[format_].path)
    beside = Path(world.recorded[format_].head_path or f"{whole}.json").stat().st_size
    for share in (0.03, 0.5, 0.9):
        size = whole.stat().st_size + int(beside * share)
        with small_disk(tmp_path / f"disk{share}", size) as disk:
            found = run(world.recording(disk / OUT[format_], format_), tmp_path)
            assert_storage_error(found)
            left = standing(disk)
            assert not [name for name in left if name.startswith(".") or "base" in name], set(left)
