"""Runs a job on this machine: one subprocess per job, spec in on stdin, events out on stdout, no secrets inside."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Protocol

from pydantic import BaseModel, ValidationError

from core.contract import ErrorEvent, ProgressEvent, Result, ResultEvent, event_adapter
from core.errors import JobProtocolError, MeasurementDiedError, QuantcardError, by_name

#: What a measuring process may know of our environment: where programs and libraries are, and which devices to use.
_KEEP = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LLAMA_CPP_LIB_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "TZ",
    "NUMBA_CACHE_DIR",
)
_KEEP_PREFIXES = ("CUDA_", "GGML_", "OMP_", "GOMP_", "HIP_", "ROCR_", "NVIDIA_")
#: A longer line is not one of our events.
_MAX_LINE = 16 << 20
_TAIL = 200
#: Seconds after its end in which a process's last lines may still arrive.
_GRACE = 1.0
#: An error's sentence is cut here: it may be a stranger's.
_MAX_MESSAGE = 500


class Stop(Protocol):
    """Says whether a running job is to end early; a :class:`threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class JobStopped(Exception):
    """The job was stopped because we were asked to stop."""


def scrubbed_environment(home: str) -> dict[str, str]:
    """The child's environment: no token, no setting, no home of ours."""
    kept = {name: value for name, value in os.environ.items() if name in _KEEP or name.startswith(_KEEP_PREFIXES)}
    return {**kept, "HOME": home, "TMPDIR": home, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_job(
    spec: BaseModel,
    *,
    timeout: float,
    on_progress: Callable[[ProgressEvent], None] | None = None,
    stop: Stop | None = None,
) -> Result:
    """Run one job to its end.

    Args:
        spec: a model of :data:`core.contract.JobSpec`.
        timeout: seconds after which it is stopped.
        on_progress: called for every progress event, in this thread.
        stop: set it (from another thread or a signal handler) to end the job early.

    Raises:
        QuantcardError: the job's own error; MeasurementDiedError for a signal or the time limit.
        JobStopped: ``stop`` was set.
    """
    with tempfile.TemporaryDirectory(prefix="quantcard-job-") as home:
        process = subprocess.Popen(
            # -P: a folder called "jobs" where the operator happens to stand is not ours.
            [sys.executable, "-P", "-m", "jobs.run", "--die-with-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=scrubbed_environment(home),
            start_new_session=True,
        )
        ended = _Ended()
        tail: deque[str] = deque(maxlen=_TAIL)
        reader = threading.Thread(target=_drain, args=(process.stderr, tail), daemon=True)
        watchdog = threading.Thread(target=_watch, args=(process, timeout, stop, ended), daemon=True)
        reader.start()
        watchdog.start()
        try:
            last = _converse(process, spec, on_progress)
            process.wait()
        finally:
            _kill(process)
            ended.done.set()
            process.wait()
            reader.join(timeout=5)
            watchdog.join(timeout=5)
    return _outcome(last, process.returncode, ended.reason, tail)


class _Ended:
    """How a process came to its end, told by the watchdog."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reason: str | None = None


def _watch(process: subprocess.Popen[bytes], timeout: float, stop: Stop | None, ended: _Ended) -> None:
    """End the process at its time limit or when we are asked to stop."""
    started = time.monotonic()
    while not ended.done.wait(0.1):
        if stop is not None and stop.is_set():
            ended.reason = "stopped"
        elif time.monotonic() - started > timeout:
            ended.reason = f"it took longer than {timeout:.0f} s"
        if ended.reason:
            _kill(process)
            return


def _converse(
    process: subprocess.Popen[bytes], spec: BaseModel, on_progress: Callable[[ProgressEvent], None] | None
) -> ErrorEvent | ResultEvent | None:
    """Hand over the spec and read events; the last error or result is the outcome.

    Lines are read by a thread of their own: a process that the job left behind may hold the pipe open for ever.
    """
    assert process.stdin is not None and process.stdout is not None
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
    last: ErrorEvent | ResultEvent | None = None
    try:
        process.stdin.write(spec.model_dump_json().encode())
        process.stdin.close()
    except BrokenPipeError:
        pass
    while True:
        try:
            line = lines.get(timeout=_GRACE)
        except queue.Empty:
            if process.poll() is not None:
                return last
            continue
        if line is None:
            return last
        try:
            event = event_adapter.validate_python(json.loads(line))
        except (ValidationError, ValueError):
            continue
        if isinstance(event, ProgressEvent):
            if on_progress:
                on_progress(event)
        else:
            last = event


def _read_lines(pipe: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with pipe:
        while line := pipe.readline(_MAX_LINE):
            lines.put(line)
    lines.put(None)


def _outcome(last: ErrorEvent | ResultEvent | None, code: int, reason: str | None, tail: deque[str]) -> Result:
    if reason == "stopped":
        raise JobStopped
    if isinstance(last, ResultEvent) and code == 0:
        return last.result
    if isinstance(last, ErrorEvent):
        raise _rebuilt(last)
    said = last_words(tail)[:300] or "none"
    if reason:
        raise MeasurementDiedError(f"The measurement was stopped: {reason}.")
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise MeasurementDiedError(f"The measurement died: {name}{hint}. Last words: {said}.")
    raise JobProtocolError(
        f"The measuring process ended with code {code} and no result. Last words: {said[:300] or 'none'}."
    )


def last_words(tail: Iterable[str]) -> str:
    """What a process that died had to say: the assertion that ended it if there was one, else its last lines.

    An assertion of llama.cpp is followed by a backtrace, which says nothing to a user.
    """
    lines = [line.strip() for line in tail if line.strip()]
    said = ("GGML_ASSERT", "GGML_ABORT", "terminate called", "what():")
    asserted = [line for line in lines if any(word in line for word in said)]
    return " | ".join(asserted[-2:] or lines[-2:])


def _rebuilt(event: ErrorEvent) -> QuantcardError:
    return by_name(event.type)(" ".join(event.message[: 4 * _MAX_MESSAGE].split())[:_MAX_MESSAGE])


def _drain(pipe: IO[bytes], tail: deque[str]) -> None:
    with pipe:
        for line in iter(lambda: pipe.readline(8192), b""):
            tail.append(line.decode("utf-8", errors="replace").rstrip())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the job's whole process group: also what it left behind when it ended itself."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
