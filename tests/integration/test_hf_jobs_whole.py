"""The whole way with the model that ships with us: a baseline is recorded in a Job, a variant measured in another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bot.queue.runners.base import ModelSource, Task
from core.canonical import sha256_file
from core.contract import BaselineResult, BaselineSpec, QualityResult, QualitySpec, Result, SpeedResult, SpeedSpec
from core.gguf_files import RepoFile
from core.sandbox.child import run_child
from core.sandbox.levels import Limits, best_sandbox
from localhub import seed
from tests.integration.hf_jobs_world import JobsWorld
from tests.integration.remote_tasks import NEED, ONE_THREAD, STAGES, Heard, Switch

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
REPO = "demo/model-GGUF"


def task_of(world: JobsWorld, spec: BaselineSpec | QualitySpec | SpeedSpec, model: Path, *, name: str) -> Task:
    commit = seed.upload_files(world.root, REPO, {model.name: model})
    file = RepoFile(model.name, model.stat().st_size, sha256_file(model))
    return Task(f"{name}-1", name[:1].encode().hex() * 16, spec, ModelSource(REPO, commit, (file,)), NEED, STAGES)


def here(spec: BaselineSpec | QualitySpec, folder: Path, model: Path, *reads: Path) -> Result:
    """The same measurement on this machine."""
    return run_child(
        spec, sandbox=best_sandbox(unsafe=True), reads=[model.parent, *reads], writes=[folder], limits=Limits(120)
    )


def test_figures_from_jobs_are_those_of_this_machine(tmp_path: Path, demo_model: Path, demo_corpus: Path) -> None:
    # What is measured has another name here than on the hub, and no file of it is on this machine.
    there, local = tmp_path / "there", tmp_path / "here"
    for folder in (there, local):
        (folder / "baseline").mkdir(parents=True)
        (folder / "work").mkdir()
    name = f"{sha256_file(demo_model)[:16]}-0123456789abcdef.gguf"
    record = BaselineSpec(
        reference=str(demo_model), corpus=str(demo_corpus), out=str(local / "baseline" / name), format="states",
        n_ctx=128, chunks=3, machine=ONE_THREAD,
    )  # fmt: skip
    quality = QualitySpec(
        model=str(demo_model), baseline=record.out, tokens_out=str(local / "work" / "tokens.parquet"),
        checkpoint=str(local / "work" / "c.checkpoint"), machine=ONE_THREAD,
    )  # fmt: skip
    mine = here(record, local / "baseline", demo_model, demo_corpus)
    figures = here(quality, local / "work", demo_model, local / "baseline")
    assert isinstance(mine, BaselineResult) and isinstance(figures, QualityResult)
    with JobsWorld(tmp_path / "world") as world:
        runner, stop = world.runner(), Switch()
        nowhere = str(tmp_path / "nowhere" / demo_model.name)
        asked = record.model_copy(update={"reference": nowhere, "out": str(there / "baseline" / name)})
        made = runner.run(task_of(world, asked, demo_model, name="baseline"), report=Heard(), stop=stop)
        assert isinstance(made, BaselineResult)
        assert (made.path, made.size_bytes, made.ppl) == (asked.out, mine.size_bytes, mine.ppl)
        assert sorted(p.name for p in (there / "baseline").iterdir()) == sorted(
            p.name for p in (local / "baseline").iterdir() if not p.name.startswith(".")
        )
        wanted = quality.model_copy(
            update={"model": nowhere, "baseline": asked.out, "tokens_out": str(there / "work" / "tokens.parquet")}
        )
        for run in ("quality", "quality-again"):
            found = runner.run(task_of(world, wanted, demo_model, name=run), report=Heard(), stop=stop)
            assert isinstance(found, QualityResult)
            assert (found.kld, found.ppl, found.same_top) == (figures.kld, figures.ppl, figures.same_top)
            assert wanted.tokens_out and sha256_file(Path(wanted.tokens_out)) == found.tokens_sha256
        # The baseline went to the bucket once, with all that stands beside it.
        (folder,) = {path.split("/")[1] for path in world.in_bucket("baselines/")}
        assert folder.startswith("baseline-") and len(world.in_bucket("baselines/")) == len(
            list((there / "baseline").iterdir())
        )
        assert world.server.requests.count("/xet/.*/v1/shards$") <= 6
        speed = SpeedSpec(model=nowhere, n_prompt=[8], n_gen=[4], repetitions=1, machine=ONE_THREAD)
        told = runner.run(task_of(world, speed, demo_model, name="speed"), report=Heard(), stop=stop)
        assert isinstance(told, SpeedResult) and told.tests[0].avg_ts > 0
        assert world.spent().n_jobs == 4 and world.spent().open == ()


def test_what_a_baseline_was_before_is_not_kept_in_the_bucket(tmp_path: Path) -> None:
    with JobsWorld(tmp_path / "world") as world:
        runner = world.runner()
        folder = tmp_path / "b1"
        folder.mkdir()
        (folder / "b.gguf").write_bytes(b"one")
        other = tmp_path / "b1-0123456789abcdef"
        other.mkdir()
        (other / "b.gguf").write_bytes(b"another")
        spec = QualitySpec(model="m.gguf", baseline=str(folder / "b.gguf"))
        task = world.files.of(spec)
        near = world.files.of(spec.model_copy(update={"baseline": str(other / "b.gguf")}))
        first = runner._files.brought_there(task)["/baseline"].prefix
        kept = runner._files.brought_there(near)["/baseline"].prefix
        (folder / "b.gguf").write_bytes(b"two")
        second = runner._files.brought_there(task)["/baseline"].prefix
        assert first != second
        assert world.in_bucket("baselines/") == sorted([f"{kept}/b.gguf", f"{second}/b.gguf"])
