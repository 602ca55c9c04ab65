"""The Ray runner on a real cluster of several nodes, on loopback."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bot.queue.runners.ray as ray_module
from bot.queue.runners.base import JobStopped, Runner, Task
from bot.queue.runners.ray import RayRunner
from core.contract import Machine
from tests.integration.remote_tasks import Files, Heard, wait_for
from tests.integration.runner_contract import NEVER, InThread, RunnerContract

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (quantcard[ray])")
RESOURCE = "quantcard_memory_gb"
#: So that a node that went away is noticed within two seconds instead of half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
NODE: dict[str, Any] = {"num_cpus": 4, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}


class Cluster:
    """A head that takes no jobs, and two nodes that do."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self.ray = RayCluster(
            initialize_head=True,
            head_node_args={
                **NODE,
                "num_cpus": 1,
                "include_dashboard": True,
                "dashboard_host": "127.0.0.1",
                "dashboard_port": 0,
                "_system_config": HEALTH,
            },
        )
        self.address = f"http://{self.ray.webui_url}"
        self.nodes = [self.add() for _ in range(2)]

    def add(self) -> Any:
        return self.ray.add_node(wait=False, resources={RESOURCE: 8}, **NODE)

    def jobs(self) -> list[Any]:
        from ray.job_submission import JobSubmissionClient

        return list(JobSubmissionClient(self.address).list_jobs())

    def lose_node_of(self, task_id: str) -> None:
        """Kill -9 the node on which a job runs, and put another one in its place."""
        (job,) = (job for job in self.jobs() if job.submission_id == task_id)
        (node,) = (node for node in self.nodes if node.node_id == job.driver_node_id)
        self.ray.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)
        self.nodes.append(self.add())


def measuring(*folders: Path) -> list[str]:
    """Processes of jobs that know one of ``folders``, by their command lines and environments."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            about = command + (process / "environ").read_bytes()
            if b"jobs.r" in command and any(bytes(folder) in about for folder in folders):
                found.append(command.decode(errors="replace"))
    return found


@pytest.fixture(scope="module")
def cluster(data: Files) -> Iterator[Cluster]:
    # Short: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="qc-ray-"))
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        patch.delenv(name)
    # Jobs are started as "python": the one that has quantcard.
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("RAY_TMPDIR", str(folder))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # The name misleads: with 0 all of Ray takes loopback for the machine's address, on Linux too.
    patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    found = Cluster()
    try:
        yield found
        wait_for(lambda: not measuring(data.folder, folder))
    finally:
        found.ray.shutdown()
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("data"))


class TestRay(RunnerContract):
    @pytest.fixture(autouse=True)
    def _here(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        monkeypatch.setattr(ray_module, "_POLL_S", 0.3)

    @pytest.fixture
    def files(self, data: Files) -> Files:
        return data

    def made(self, files: Files) -> RayRunner:
        return RayRunner(self.cluster.address, slots=2, folder=files.folder / "remote", resource=RESOURCE)

    @pytest.fixture
    def runner(self, files: Files) -> Runner:
        return self.made(files)

    @pytest.fixture
    def again(self, files: Files) -> Runner:
        return self.made(files)

    def print_instead(self, monkeypatch: pytest.MonkeyPatch, text: str, *, code: int = 0) -> None:
        monkeypatch.setattr(ray_module, "ENTRYPOINT", f"echo {shlex.quote(text)}; exit {code}")

    def n_running(self) -> int:
        return sum(job.status in ("PENDING", "RUNNING") for job in self.cluster.jobs())

    def lose_machine(self, task: Task) -> None:
        self.cluster.lose_node_of(task.id)

    def test_a_job_without_a_place_is_queued_and_can_be_called_back(self, runner: RayRunner, files: Files) -> None:
        # More cores than a node has left over: each has four.
        task = files.task(name="waits", long=True)
        task = replace(task, spec=task.spec.model_copy(update={"machine": Machine(n_threads=5, n_gpu_layers=0)}))
        waiting = InThread(runner, task)
        wait_for(lambda: waiting.error or waiting.heard.events)
        assert waiting.heard.stages == ["queued"] and waiting.error is None
        waiting.stop.set("deadline")
        waiting.join(seconds=20)
        assert isinstance(waiting.error, JobStopped)

    def test_the_result_of_a_job_whose_log_is_gone_is_in_its_file(
        self, runner: RayRunner, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = files.task(name="logless")
        result = runner.run(task, report=Heard(), stop=NEVER)
        monkeypatch.setattr(runner, "_log_of", lambda *_: "")
        assert runner.run(task, report=Heard(), stop=NEVER) == result

    def test_what_it_tells_the_cluster_holds_no_token(self, runner: RayRunner) -> None:
        for job in self.cluster.jobs():
            assert set(job.runtime_env["env_vars"]) == {"QUANTCARD_TASK"}

    def test_it_knows_the_largest_node(self, runner: RayRunner) -> None:
        runner.capacity()
        wait_for(lambda: runner.capacity().memory is not None)
        assert runner.capacity().memory == 8_000_000_000 and runner.capacity().vram == ()
