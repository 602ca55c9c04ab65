"""The parent inside a job elsewhere: ``python -m jobs.remote`` reads QUANTCARD_TASK, measures, frames the result.

It holds the nonce; the process that reads the model is its sandboxed child and never sees it. Its stdout carries
nothing but the lines of :mod:`core.frame`, and nothing of what the child prints. It exits 0 after a result, else with
the error's exit code, and 143 when it was told to end.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from core.canonical import atomic_file, write_atomic
from core.contract import ErrorEvent, ProgressEvent, ResultEvent
from core.errors import (
    JobProtocolError,
    MachineLostError,
    QuantcardError,
    RunnerUnavailableError,
    SandboxError,
    StorageError,
)
from core.frame import Output, frame, progress_line
from core.remote_task import VARIABLE, InputFile, OutputFolder, RemoteTask, unpacked
from core.sandbox.child import JobStopped, StopReason, run_child
from core.sandbox.levels import Limits, best_sandbox
from core.sandbox.spec_paths import reads_of, writes_of

_BLOCK = 4 << 20
#: A job writes a handful of files.
_MAX_OUTPUTS = 100
_PR_SET_DUMPABLE = 4
#: Steps of a job of hours are told less often, so that its log stays small: at most every 15 s.
_SLOWER, _SLOWEST = 100, 15.0
#: Changes of stage that may be told without waiting.
_BURST = 10.0
_TOLD_TO_END: tuple[int, ErrorEvent | ResultEvent, list[Output]] = (
    128 + signal.SIGTERM,
    ErrorEvent(type=MachineLostError.__name__, message="The machine was told to end the job before it was done."),
    [],
)


class _Stop:
    """Set by SIGTERM and its like, or when nobody reads us any more."""

    def __init__(self) -> None:
        self._signal = 0

    @property
    def reason(self) -> StopReason:
        return "shutdown"

    def is_set(self) -> bool:
        return self._signal != 0

    def set(self, number: int, _frame: FrameType | None = None) -> None:
        self._signal = number


class _Teller:
    """Prints our lines, each at once and whole; steps at most once a second."""

    def __init__(self, out: int, stop: _Stop) -> None:
        self._out, self._stop = out, stop
        self._begun = self._at = time.monotonic()
        self._last = -_SLOWEST
        self._stage = ""
        self._allowance = _BURST

    def progress(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        # A child that changes its stage all the time gets no more lines than another one.
        self._allowance = min(_BURST, self._allowance + now - self._at)
        self._at = now
        pause = min(_SLOWEST, max(1.0, (now - self._begun) / _SLOWER))
        changed = event.stage != self._stage and self._allowance >= 1.0
        if changed or now - self._last >= pause:
            self._allowance -= changed
            self._last, self._stage = now, event.stage
            self.line(progress_line(event))

    def line(self, text: str) -> None:
        data = f"{text}\n".encode("ascii")
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            self._stop.set(signal.SIGPIPE)


def _hidden() -> None:
    """Nobody but root reads our memory or our first environment, where the nonce stands; also not our own user."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _copied(source: int, write: Callable[[bytes], object], stop: _Stop, told: Callable[[int], None]) -> str:
    """Read an open file to its end; the sha256 of what was read."""
    digest, n = hashlib.sha256(), 0
    while piece := os.read(source, _BLOCK):
        if stop.is_set():
            raise JobStopped
        digest.update(piece)
        write(piece)
        n += len(piece)
        told(n)
    return digest.hexdigest()


def check_inputs(files: list[InputFile], stop: _Stop, tell: Callable[[ProgressEvent], None]) -> None:
    """Read every file whole and compare it; the mount it lies on may be cut off, stale or of another revision.

    Raises:
        RunnerUnavailableError: one is not there.
        MachineLostError: one holds other bytes here than on the Hub.
        JobStopped: told to end.
    """
    total, before = sum(file.size for file in files), 0
    tell(ProgressEvent(stage="fetching", done=0, total=total))
    for file in files:
        name = Path(file.path).name
        try:
            handle = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise RunnerUnavailableError(
                f"{name} can't be read where it was to be measured ({error.strerror}). Check that the machines of "
                "the runner see the model's files at the path they were told."
            ) from None
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
                raise MachineLostError(
                    f"{name} has {found.st_size} bytes where it was to be measured, not {file.size}: it did not arrive "
                    "whole."
                )
            done = before

            def told(n: int, done: int = done) -> None:
                tell(ProgressEvent(stage="fetching", done=done + n, total=total))

            got = _copied(handle, lambda piece: None, stop, told)
        except OSError as error:
            raise MachineLostError(f"{name} could not be read to its end ({error.strerror}).") from None
        finally:
            os.close(handle)
        if got != file.sha256:
            raise MachineLostError(
                f"{name} holds other bytes (sha256 {got[:12]}…) where it was to be measured than on the Hub "
                f"({file.sha256[:12]}…)."
            )
        before += file.size


def hand_over(folder: OutputFolder, stop: _Stop, tell: Callable[[ProgressEvent], None]) -> list[Output]:
    """Copy what the job wrote to where it is wanted, and say what it is. Links and hidden files are left behind.

    Raises:
        StorageError: there is no room for it, or it can't be read.
        JobProtocolError: the job wrote more files than any of ours does.
        JobStopped: told to end.
    """
    source, outputs = Path(folder.path), []
    try:
        with os.scandir(source) as entries:
            names = sorted(e.name for e in entries if e.is_file(follow_symlinks=False) and not e.name.startswith("."))
        if len(names) > _MAX_OUTPUTS:
            raise JobProtocolError(f"The measurement left {len(names)} files, more than any of ours does.")
        for name in names:
            handle = os.open(source / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                sha256 = _hand_over_one(handle, name, folder, stop, tell)
                outputs.append(Output(path=name, size=os.fstat(handle).st_size, sha256=sha256))
            finally:
                os.close(handle)
    except OSError as error:
        raise StorageError(f"What the measurement wrote could not be handed over ({error.strerror}).") from None
    return outputs


def _hand_over_one(
    handle: int, name: str, folder: OutputFolder, stop: _Stop, tell: Callable[[ProgressEvent], None]
) -> str:
    total = os.fstat(handle).st_size

    def told(n: int) -> None:
        tell(ProgressEvent(stage="uploading", done=n, total=total, note=name))

    told(0)
    if folder.to is None:
        return _copied(handle, lambda piece: None, stop, told)
    with atomic_file(Path(folder.to) / name) as target:
        return _copied(handle, target.write, stop, told)


def measure(task: RemoteTask, stop: _Stop, tell: Callable[[ProgressEvent], None]) -> tuple[ResultEvent, list[Output]]:
    """Run a task to its end.

    Raises:
        QuantcardError: why there is no result.
        JobStopped: told to end.
    """
    sandbox = best_sandbox(unsafe=task.unsafe)
    check_inputs(task.model_files, stop, tell)
    writes = writes_of(task.spec) if task.outputs is None else [Path(task.outputs.path)]
    for folder in writes:
        folder.mkdir(parents=True, exist_ok=True)
    tell(ProgressEvent(stage="measuring", done=0, total=0))
    limits = Limits(**task.limits.model_dump(exclude_none=True))
    result = run_child(
        task.spec,
        sandbox=sandbox,
        reads=reads_of(task.spec),
        writes=writes,
        limits=limits,
        on_progress=tell,
        stop=stop,
    )
    outputs = hand_over(task.outputs, stop, tell) if task.outputs is not None else []
    return ResultEvent(result=result), outputs


def _end(task: RemoteTask, stop: _Stop, teller: _Teller) -> tuple[int, ErrorEvent | ResultEvent, list[Output]]:
    try:
        event, outputs = measure(task, stop, teller.progress)
        return 0, event, outputs
    except JobStopped:
        return _TOLD_TO_END
    except SandboxError as error:
        # A fault of this machine: elsewhere the job may well run.
        told: QuantcardError = RunnerUnavailableError(f"The machine that was to measure it can't: {error}")
    except QuantcardError as error:
        # Whoever ends a job may end our child first, or with us.
        if stop.is_set():
            return _TOLD_TO_END
        told = error
    except OSError as error:
        told = MachineLostError(f"The job could not be run there ({error.strerror or type(error).__name__}).")
    except Exception as error:
        logging.getLogger(__name__).exception("An error of ours.")
        told = JobProtocolError(f"An error inside quantcard ({type(error).__name__}); the job's log has more.")
    return told.exit_code, ErrorEvent(type=type(told).__name__, message=str(told)), []


def main() -> int:
    """Entry point of the parent inside a job."""
    _hidden()
    out = os.dup(1)
    os.dup2(2, 1)
    text = os.environ.pop(VARIABLE, "")
    # Ray repeats a job's environment here.
    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    stop = _Stop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop.set)
    try:
        task = unpacked(text)
    except QuantcardError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    teller = _Teller(out, stop)
    code, event, outputs = _end(task, stop, teller)
    try:
        line = frame(event, task.nonce, outputs=outputs)
    except ValueError as error:
        code = JobProtocolError.exit_code
        line = frame(ErrorEvent(type=JobProtocolError.__name__, message=f"There is no frame for {error}."), task.nonce)
    if task.end is not None:
        # The log may go with the machine.
        with suppress(QuantcardError, OSError):
            write_atomic(Path(task.end), f"{line}\n")
    teller.line(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
