"""The Hugging Face Jobs runner keeps what every runner promises, on a hub whose Jobs run for real."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.queue.runners import hf_jobs_plan
from bot.queue.runners.base import Runner, Task
from tests.integration.hf_jobs_world import JobsWorld
from tests.integration.remote_tasks import Files, wait_for
from tests.integration.runner_contract import RunnerContract

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


class TestHfJobs(RunnerContract):
    @pytest.fixture(autouse=True, scope="class")
    def world(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobsWorld]:
        with JobsWorld(tmp_path_factory.mktemp("world")) as world:
            yield world

    @pytest.fixture(autouse=True)
    def _here(self, world: JobsWorld) -> None:
        self.world = world

    @pytest.fixture
    def files(self, world: JobsWorld) -> Files:
        return world.files

    @pytest.fixture
    def runner(self, world: JobsWorld) -> Runner:
        return world.runner()

    @pytest.fixture
    def again(self, world: JobsWorld) -> Runner:
        return world.runner()

    def print_instead(self, monkeypatch: pytest.MonkeyPatch, text: str, *, code: int = 0) -> None:
        monkeypatch.setattr(hf_jobs_plan, "COMMAND", ("sh", "-c", 'echo "$0"; exit "$1"', text, str(code)))

    def n_running(self) -> int:
        return len(self.world.jobs("SCHEDULING", "RUNNING"))

    def lose_machine(self, task: Task) -> None:
        (job,) = self.world.jobs("RUNNING")
        self.world.server.jobs.preempt(str(job["id"]))

    def test_it_knows_the_largest_hardware_that_may_be_used(self, runner: Runner) -> None:
        runner.capacity()
        wait_for(lambda: runner.capacity().memory is not None)
        assert (runner.capacity().memory, runner.capacity().vram) == (16_000_000_000, ())

    def test_nothing_is_left_running_or_reserved(self, world: JobsWorld, tmp_path: Path) -> None:
        """The last of all: what the others did came to its end on every side."""
        assert self.n_running() == 0
        assert world.spent().open == () and world.spent().n_jobs > 3
