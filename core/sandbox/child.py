"""Runs a job in a process of its own: spec in on stdin, events out on stdout, no secrets inside, nothing left after."""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from pydantic import BaseModel, ValidationError

from core.contract import ErrorEvent, ProgressEvent, Result, ResultEvent, event_adapter
from core.errors import (
    JobProtocolError,
    MeasurementDiedError,
    QuantcardError,
    RunnerUnavailableError,
    SandboxError,
    StorageError,
    jobs_own,
)
from core.sandbox.inside import UNSAFE_EXIT
from core.sandbox.kernels import copy_kernels
from core.sandbox.launch import Launch, launched
from core.sandbox.levels import Limits, Sandbox
from core.sandbox.reach import scrubbed_environment
from core.sandbox.scratch import make_plain, scratch_folder
from core.sandbox.watch import Watchdog, descendants, oom_kills

__all__ = ["JobStopped", "Limits", "Sandbox", "Stop", "StopReason", "last_words", "run_child", "scrubbed_environment"]

#: Why a running job is to end early: we end and come back; its asker took it back; it took too long; its lease is
#: another worker's now.
StopReason = Literal["shutdown", "cancelled", "deadline", "lost"]

#: A longer line is not one of our events; and nobody has that much to say.
_MAX_LINE, _MAX_SAID = 16 << 20, 512 << 20
_TAIL = 200
#: Lines that wait for us; then the job waits.
_MAX_WAITING = 256
#: Seconds after its end in which a process's last lines may still arrive.
_GRACE = 1.0
#: An error's sentence is cut here: it may be a stranger's.
_MAX_MESSAGE = 500
_MAX_STAGE, _MAX_COUNT = 100, 1 << 62
#: What keeps a process from being started for a while.
_PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
#: Progress events passed on a second; ours say five.
_PER_SECOND = 50
#: Jobs that need compiled kernels.
_SCORES = ("baseline", "baseline-tool", "quality", "quality-many")


class Stop(Protocol):
    """Says whether a running job is to end early."""

    @property
    def reason(self) -> StopReason:
        """Why; only asked once :meth:`is_set` is true."""
        ...

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class JobStopped(Exception):
    """The job was stopped because we were asked to stop."""


class Flag(Protocol):
    """The half of a :class:`Stop` that is needed here; a :class:`threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


def run_child(
    spec: BaseModel,
    *,
    sandbox: Sandbox,
    reads: Sequence[Path],
    writes: Sequence[Path],
    limits: Limits,
    on_progress: Callable[[ProgressEvent], None] | None = None,
    stop: Stop | Flag | None = None,
) -> Result:
    """Run one job to its end.

    Args:
        spec: a model of :data:`core.contract.JobSpec`.
        sandbox: from :func:`core.sandbox.levels.best_sandbox`.
        reads: files and folders that the spec names, with what stands beside them; see :mod:`core.sandbox.spec_paths`.
        writes: folders that it may also write to, which are there. With a sandbox they have to be the job's own:
            afterwards only folders and plain files are left in them, whatever the job made.
        limits: what it may take.
        on_progress: called for every progress event, in this thread.
        stop: set it (from another thread or a signal handler) to end the job early.

    Raises:
        QuantcardError: the job's own error; MeasurementDiedError for a signal or a limit.
        JobProtocolError: it ended without a result that can be read.
        SandboxError: it could not be held, so it was not run.
        JobStopped: ``stop`` was set.
    """
    with scratch_folder() as scratch:
        if getattr(spec, "kind", None) in _SCORES:
            copy_kernels(scratch / "kernels")
        with launched(
            sandbox.level, ["jobs.run"], scratch=scratch, reads=reads, writes=writes, limits=limits
        ) as launch:
            try:
                return run_launched(launch, spec, [scratch, *writes], limits, on_progress, stop)
            finally:
                if sandbox.holds_strangers:
                    for folder in writes:
                        make_plain(folder)


@dataclass(slots=True)
class _Ended:
    """How a job came to its end."""

    last: ErrorEvent | ResultEvent | None
    #: Its exit code; a signal's number, negative.
    code: int
    stopped: bool
    reason: str | None
    tail: deque[str]
    oom: bool
    #: Whether it said anything: one that could not be started did not.
    spoke: bool


def run_launched(
    launch: Launch,
    spec: BaseModel,
    folders: Sequence[Path],
    limits: Limits,
    on_progress: Callable[[ProgressEvent], None] | None,
    stop: Stop | Flag | None,
) -> Result:
    """Start what :func:`core.sandbox.launch.launched` gave and run it to its end; errors as :func:`run_child`.

    Args:
        folders: what it writes to; what is added to them is counted.
    """
    ooms = oom_kills()
    try:
        process = subprocess.Popen(
            launch.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=launch.environment,
            **launch.options,
        )
    except OSError as error:
        said = f"The measuring process could not be started ({error.strerror or error})."
        raise (RunnerUnavailableError if error.errno in _PASSING else SandboxError)(said) from None
    tail: deque[str] = deque(maxlen=_TAIL)
    talk = _Conversation(process, on_progress)
    with ExitStack() as stack:
        # In the end from below: kill while its number is still its own, then take its last words and its code.
        stack.callback(process.wait)
        reader = threading.Thread(target=_drain, args=(process.stderr, tail), daemon=True)
        stack.callback(_join, reader)
        stack.callback(_kill, process)
        reader.start()
        dog = Watchdog(
            process.pid,
            limits,
            folders=folders,
            stopped=lambda: stop is not None and stop.is_set(),
            kill=lambda: _kill(process),
        )
        stack.callback(dog.end)
        last = talk.hold(spec, dog)
        _wait(process)
    code = process.returncode
    if launch.shell_codes and 128 < code <= 128 + signal.NSIG:
        code = 128 - code
    oom = code == -signal.SIGKILL and oom_kills() > ooms
    return _outcome(_Ended(last, code, dog.stopped, dog.reason, tail, oom, talk.spoke))


class _Conversation:
    """Hands over the spec and reads events; the last error or result is the outcome.

    Lines are read by a thread of their own: a process that the job left behind may hold the pipe open for ever.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_progress: Callable[[ProgressEvent], None] | None) -> None:
        self._process, self._on_progress = process, on_progress
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MAX_WAITING)
        self._over = threading.Event()
        self.spoke = False

    def hold(self, spec: BaseModel, dog: Watchdog) -> ErrorEvent | ResultEvent | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout, dog), daemon=True).start()
        last: ErrorEvent | ResultEvent | None = None
        pace = _Pace()
        try:
            with suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(spec.model_dump_json().encode())
            while True:
                try:
                    line = self._lines.get(timeout=_GRACE)
                except queue.Empty:
                    if _has_ended(self._process):
                        return last
                    continue
                if line is None:
                    return last
                self.spoke = True
                event = _event(line)
                if isinstance(event, ProgressEvent):
                    if self._on_progress and pace.lets_through():
                        self._on_progress(_bounded(event))
                elif event is not None:
                    last = event
        finally:
            self._over.set()

    def _read(self, pipe: IO[bytes], dog: Watchdog) -> None:
        said = 0
        with pipe:
            while line := pipe.readline(_MAX_LINE):
                said += len(line)
                if said > _MAX_SAID:
                    dog.too_much(f"it said more than {_MAX_SAID >> 20} MB")
                    break
                self._put(line)
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        """Wait for room as long as somebody reads."""
        while not self._over.is_set():
            with suppress(queue.Full):
                self._lines.put(line, timeout=0.5)
                return


class _Pace:
    """Lets so many events through a second, so that a flood of them is not written down one by one."""

    def __init__(self) -> None:
        self._left, self._at = float(_PER_SECOND), time.monotonic()

    def lets_through(self) -> bool:
        now = time.monotonic()
        self._left = min(_PER_SECOND, self._left + (now - self._at) * _PER_SECOND)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _event(line: bytes) -> ProgressEvent | ErrorEvent | ResultEvent | None:
    """An event, or None for anything else that a library may have printed."""
    with suppress(ValidationError, ValueError, RecursionError):
        event: ProgressEvent | ErrorEvent | ResultEvent = event_adapter.validate_json(line)
        return event
    return None


def _bounded(event: ProgressEvent) -> ProgressEvent:
    """Progress as it may be shown and stored: what says it has read a stranger's file."""
    return ProgressEvent(
        stage=_printable(event.stage)[:_MAX_STAGE],
        done=max(0, min(event.done, _MAX_COUNT)),
        total=max(0, min(event.total, _MAX_COUNT)),
        note=_printable(event.note)[:_MAX_STAGE],
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _MAX_MESSAGE])


def _outcome(ended: _Ended) -> Result:
    if ended.stopped:
        raise JobStopped
    if isinstance(ended.last, ResultEvent) and ended.code == 0:
        return ended.last.result
    if ended.reason:
        raise MeasurementDiedError(f"The measurement was stopped: {ended.reason}.")
    if isinstance(ended.last, ErrorEvent):
        raise _rebuilt(ended.last)
    said = last_words(ended.tail)[:300] or "none"
    if not ended.spoke and (ended.code == UNSAFE_EXIT or said.startswith("bwrap:")):
        raise SandboxError(f"The sandbox could not be set up, so nothing was run: {said}.")
    if ended.code == -signal.SIGXFSZ:
        raise StorageError("The measurement wrote a larger file than it may.")
    if ended.code < 0:
        known = -ended.code in signal.Signals._value2member_map_
        name = signal.Signals(-ended.code).name if known else f"signal {-ended.code}"
        raise MeasurementDiedError(f"The measurement died: {name}{_hint(ended)}. Last words: {said}.")
    raise JobProtocolError(f"The measuring process ended with code {ended.code} and no result. Last words: {said}.")


def _hint(ended: _Ended) -> str:
    if ended.oom:
        return " (the machine ran out of memory, and the kernel ended it)"
    return " (not by us: out of memory?)" if ended.code == -signal.SIGKILL else ""


def last_words(tail: Iterable[str]) -> str:
    """What a process that died had to say: the assertion that ended it if there was one, else its last lines.

    An assertion of llama.cpp is followed by a backtrace, which says nothing to a user.
    """
    lines = [line for text in tail if (line := _printable(text).strip())]
    said = ("GGML_ASSERT", "GGML_ABORT", "terminate called", "what():")
    asserted = [line for line in lines if any(word in line for word in said)]
    return " | ".join(asserted[-2:] or lines[-2:])


def _rebuilt(event: ErrorEvent) -> QuantcardError:
    return jobs_own(event.type)(" ".join(_printable(event.message).split())[:_MAX_MESSAGE])


def _drain(pipe: IO[bytes], tail: deque[str]) -> None:
    with pipe:
        for line in iter(lambda: pipe.readline(8192), b""):
            tail.append(line.decode("utf-8", errors="replace").rstrip())


def _join(reader: threading.Thread) -> None:
    # It was never started where there is no room for a thread.
    with suppress(RuntimeError):
        reader.join(timeout=5)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it stays a zombie, so that nobody else gets its number before we have killed its group."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end; see :func:`_has_ended`."""
    if not hasattr(os, "waitid"):
        process.wait()
        return
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End everything of the job, and wait until it is gone: its group, and what bubblewrap put elsewhere."""
    below = descendants(process.pid)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    until = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < until:
        for pid in below:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
