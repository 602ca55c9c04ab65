"""What every runner that measures elsewhere promises, as tests to inherit.

A runner's own tests derive from :class:`RunnerContract` and give the fixtures ``runner``, ``again`` and ``files``, and
say how its job's command is replaced, how many of its jobs run and how its machine is lost.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from bot.queue.runners.base import JobStopped, Runner, Task
from core.contract import BaselineResult, QuantizeResult, Result, ResultEvent, SpeedSpec
from core.errors import GGUFError, JobProtocolError, MachineLostError
from core.frame import frame
from tests.integration.remote_tasks import ONE_THREAD, Files, Heard, Switch, wait_for

NEVER = Switch()
A_RESULT = ResultEvent(result=QuantizeResult(path="x", file_type="Q4_0", size_bytes=1))


class InThread:
    """A task that runs in a thread: its end and what was reported."""

    def __init__(self, runner: Runner, task: Task) -> None:
        self.stop, self.heard = Switch(), Heard()
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(runner, task), daemon=True)
        self._thread.start()

    def _run(self, runner: Runner, task: Task) -> None:
        try:
            self.result = runner.run(task, report=self.heard, stop=self.stop)
        except BaseException as error:
            self.error = error

    def join(self, *, seconds: float = 60) -> None:
        """Wait for its end."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "it did not come to an end"

    def begun(self) -> InThread:
        """Wait until it measures."""
        wait_for(lambda: self.error or any(e.stage == "recording" and e.done for e in self.heard.events), seconds=60)
        assert self.error is None, self.error
        return self


class RunnerContract:
    """Derive from it, and give what is named here."""

    #: Whether a result line in the job's log is the job's result.
    reads_log = True

    @pytest.fixture
    def runner(self) -> Runner:
        """The runner."""
        raise NotImplementedError

    @pytest.fixture
    def again(self, runner: Runner) -> Runner:
        """Another object for the same place, as after our own restart."""
        raise NotImplementedError

    @pytest.fixture
    def files(self) -> Files:
        """A model and texts where the runner's tasks find them."""
        raise NotImplementedError

    def print_instead(self, monkeypatch: pytest.MonkeyPatch, text: str, *, code: int = 0) -> None:
        """Have the job print this and exit, instead of measuring."""
        raise NotImplementedError

    def n_running(self) -> int:
        """How many jobs run there now."""
        raise NotImplementedError

    def lose_machine(self, task: Task) -> None:
        """Take the machine away on which this task runs."""
        raise NotImplementedError

    def test_a_result_comes_with_its_files_at_the_specs_own_paths(
        self, runner: Runner, again: Runner, files: Files
    ) -> None:
        task, heard = files.task(name="whole"), Heard()
        result = runner.run(task, report=heard, stop=NEVER)
        assert isinstance(result, BaselineResult) and result.path == task.spec.out  # type: ignore[union-attr]
        assert Path(result.path).stat().st_size == result.size_bytes
        order = ["queued", "fetching", "measuring", "recording", "uploading"]
        assert heard.stages and heard.stages == sorted(heard.stages, key=order.index)
        # The answer was lost, or we were killed before we wrote it down: the same run gives the same result.
        made = Path(result.path).stat().st_mtime_ns
        assert again.run(task, report=Heard(), stop=NEVER) == result
        assert Path(result.path).stat().st_mtime_ns == made

    def test_a_run_is_left_at_a_shutdown_joined_after_it_and_never_started_twice(
        self, runner: Runner, again: Runner, files: Files
    ) -> None:
        task = files.task(name="joined", long=True)
        first = InThread(runner, task).begun()
        assert self.n_running() == 1
        first.stop.set("shutdown")
        first.join(seconds=20)
        assert isinstance(first.error, JobStopped) and self.n_running() == 1
        # A duplicate submit: two of us at once.
        second, third = InThread(again, task).begun(), InThread(runner, task).begun()
        assert self.n_running() == 1
        second.stop.set("cancelled")
        second.join(seconds=30)
        assert isinstance(second.error, JobStopped)
        third.join(seconds=30)
        assert isinstance(third.error, MachineLostError), third.error
        wait_for(lambda: self.n_running() == 0)

    def test_a_stop_before_it_began_starts_nothing_that_stays(self, runner: Runner, files: Files) -> None:
        task, stop = files.task(name="stopped", long=True), Switch()
        stop.set("deadline")
        began = time.monotonic()
        with pytest.raises(JobStopped):
            runner.run(task, report=Heard(), stop=stop)
        assert time.monotonic() - began < 20
        wait_for(lambda: self.n_running() == 0)

    def test_the_jobs_own_error_is_raised(self, runner: Runner, files: Files) -> None:
        broken = files.folder / "models" / "broken.gguf"
        broken.write_bytes(b"GGUF" + bytes(400))
        model, files.model = files.model, broken
        try:
            task = files.of(SpeedSpec(model=str(broken), machine=ONE_THREAD), name="broken")
        finally:
            files.model = model
        with pytest.raises(GGUFError):
            runner.run(task, report=Heard(), stop=NEVER)

    def test_a_lost_machine_is_told_as_such(self, runner: Runner, files: Files) -> None:
        task = files.task(name="lost", long=True)
        running = InThread(runner, task).begun()
        self.lose_machine(task)
        running.join(seconds=40)
        assert isinstance(running.error, MachineLostError) and running.error.retryable
        wait_for(lambda: self.n_running() == 0)
        # Another try elsewhere comes to its end.
        again = files.task(name="lost-again")
        assert isinstance(runner.run(again, report=Heard(), stop=NEVER), BaselineResult)

    @pytest.mark.parametrize("what", ["success without a result", "another's nonce", "a cut line", "another result"])
    def test_an_end_that_is_not_the_jobs_is_refused(
        self, runner: Runner, files: Files, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        task = files.task(name="forged")
        line = frame(A_RESULT, task.nonce)
        text = {
            "success without a result": "all is well",
            "another's nonce": frame(A_RESULT, "0" * 32),
            "a cut line": line[:-9],
            "another result": line,
        }[what]
        self.print_instead(monkeypatch, text)
        if what == "another result" and self.reads_log:
            # A whole line with the right nonce is the job's word; whether it answers the question is seen by the queue.
            assert runner.run(task, report=Heard(), stop=NEVER) == A_RESULT.result
            return
        with pytest.raises(JobProtocolError):
            runner.run(task, report=Heard(), stop=NEVER)
