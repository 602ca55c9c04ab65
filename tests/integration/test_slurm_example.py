"""The runner that docs/runners.md shows keeps the contract, on programs that act as Slurm's do."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bot.queue.runners.base import Runner, Task
from bot.settings import Settings
from tests.conftest import ROOT
from tests.integration.remote_tasks import Files
from tests.integration.runner_contract import RunnerContract

SBATCH = """
    import os, subprocess, sys
    from pathlib import Path
    given = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    here = Path(__file__).parent
    state = here / f"{given['job-name']}.state"
    state.write_text("PENDING")
    if os.fork():
        sys.exit()
    os.setsid()
    for fd in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    (here / f"{given['job-name']}.pid").write_text(str(os.getpid()))
    state.write_text("RUNNING")
    instead = here / "instead"
    command = instead.read_text() if instead.exists() else given["wrap"]
    kept = {name: os.environ[name] for name in given["export"].split(",")}
    with open(given["output"], "w") as log:
        code = subprocess.call(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=kept)
    if state.read_text() == "RUNNING":
        state.write_text("FAILED" if code else "COMPLETED")
"""
SQUEUE = """
    import sys
    from pathlib import Path
    (name,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--name=")]
    state = Path(__file__).parent / f"{name}.state"
    if "--states=all" in sys.argv and state.exists():
        print(state.read_text())
"""
SCANCEL = """
    import os, signal, sys
    from pathlib import Path
    name = sys.argv[1].partition("=")[2]
    here = Path(__file__).parent
    (here / f"{name}.state").write_text("CANCELLED")
    os.killpg(int((here / f"{name}.pid").read_text()), signal.SIGTERM)
"""


class TestSlurmExample(RunnerContract):
    #: Its result comes by a file that only the job's parent writes.
    reads_log = False

    @pytest.fixture(autouse=True)
    def _slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        for name, code in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            program = self.bin / name
            program.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}")

    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory: pytest.TempPathFactory) -> Files:
        return Files(tmp_path_factory.mktemp("slurm"))

    @pytest.fixture
    def runner(self, files: Files) -> Runner:
        (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "runners.md").read_text(), re.DOTALL)
        module = ModuleType("slurm")
        exec(compile(code, "docs/runners.md", "exec"), module.__dict__)
        module.__dict__["time"] = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 20))
        found: Runner = module.__dict__["slurm_runner"](Settings(db=files.folder / "q.db", data_dir=files.folder), None)
        return found

    @pytest.fixture
    def again(self, runner: Runner) -> Runner:
        return runner

    def print_instead(self, monkeypatch: pytest.MonkeyPatch, text: str, *, code: int = 0) -> None:
        (self.bin / "instead").write_text(f"echo '{text.replace(chr(39), '')}'; exit {code}")

    def n_running(self) -> int:
        return sum(path.read_text() in ("PENDING", "RUNNING") for path in self.bin.glob("*.state"))

    def lose_machine(self, task: Task) -> None:
        with suppress(ProcessLookupError):
            os.killpg(int((self.bin / f"{task.id}.pid").read_text()), signal.SIGKILL)
        (self.bin / f"{task.id}.state").write_text("NODE_FAIL")
