"""Runs one measured process: its time, its peak memory, the libraries it loaded, and when it said what."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ValidationError

from benchmarks.table import BenchError
from bot.queue.runners.local import scrubbed_environment
from core.contract import ErrorEvent, ProgressEvent, Result, ResultEvent, event_adapter

ROOT = Path(__file__).resolve().parents[1]
#: Seconds after which a single run is given up.
TIMEOUT = 4 * 3600.0
#: Seconds between looks at a child's memory.
_POLL = 0.02
#: Looks after which a child has loaded all the libraries that it will.
_SETTLED = 10
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_LIBRARY = re.compile(r"(/\S*/lib(?:llama|ggml[a-z0-9-]*)\.so[.0-9]*)$", re.MULTILINE)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that came to a good end.

    ``lines`` are its stdout's, each with its arrival (seconds since the start); ``libraries`` the files of libllama
    and libggml that it had mapped.
    """

    wall: float
    peak_bytes: int
    libraries: frozenset[str]
    lines: list[tuple[float, str]]
    errors: str

    @property
    def printed(self) -> str:
        """All of stdout."""
        return "\n".join(line for _, line in self.lines)


@dataclass(slots=True)
class _Watched:
    lines: list[tuple[float, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    peak: int = 0
    libraries: frozenset[str] = frozenset()
    overdue: bool = False


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def high_water(pid: int | str) -> int:
    """A process's VmHWM in bytes; 0 where it can't be read."""
    with suppress(OSError):
        found = _HIGH_WATER.search(Path(f"/proc/{pid}/status").read_text())
        if found:
            return int(found[1]) * 1024
    return 0


def mapped_libraries(maps: str) -> frozenset[str]:
    """The files of libllama and libggml in the text of ``/proc/PID/maps``, as they are on disk."""
    return frozenset(os.path.realpath(path) for path in _LIBRARY.findall(maps))


def _watch(pid: int, watched: _Watched, done: threading.Event, deadline: float) -> None:
    unchanged = 0
    while not done.is_set():
        watched.peak = max(watched.peak, high_water(pid))
        if unchanged < _SETTLED:
            # A look may fall into the middle of loading.
            with suppress(OSError):
                found = watched.libraries | mapped_libraries(Path(f"/proc/{pid}/maps").read_text())
                unchanged = unchanged + 1 if found and found == watched.libraries else 0
                watched.libraries = found
        if time.monotonic() > deadline:
            watched.overdue = True
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return
        done.wait(_POLL)


def _collect(pipe: IO[str], begin: float, watched: _Watched) -> None:
    for line in pipe:
        watched.lines.append((time.perf_counter() - begin, line.rstrip("\n")))


def _collect_errors(pipe: IO[str], watched: _Watched) -> None:
    watched.errors.extend(pipe)


def run(
    command: Sequence[str | Path],
    *,
    name: str,
    environment: Mapping[str, str],
    text: str = "",
    timeout: float = TIMEOUT,
    may_fail: bool = False,
) -> Ended:
    """Run a command to its end, with ``text`` on its stdin.

    Its peak memory is what the kernel says at its end (``ru_maxrss``), unless our own memory, which a child inherits
    in that count, is larger: then the largest VmHWM that was seen while it ran.

    Raises:
        BenchError: it failed, or took longer than ``timeout`` seconds.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=dict(environment),
        cwd=environment.get("TMPDIR"),
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    assert process.stdin and process.stdout and process.stderr
    watched, done = _Watched(), threading.Event()
    threads = [
        threading.Thread(target=_watch, args=(process.pid, watched, done, time.monotonic() + timeout), daemon=True),
        threading.Thread(target=_collect, args=(process.stdout, begin, watched), daemon=True),
        threading.Thread(target=_collect_errors, args=(process.stderr, watched), daemon=True),
    ]
    ended = False
    try:
        for thread in threads:
            thread.start()
        with suppress(BrokenPipeError):
            process.stdin.write(text)
            process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        wall, ended = time.perf_counter() - begin, True
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if not ended:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        done.set()
        for thread in threads:
            thread.join(timeout=5)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()
    errors = "".join(watched.errors)
    if watched.overdue:
        raise BenchError(f"{name} took longer than {timeout:.0f} s and was ended.")
    if process.returncode and not may_fail:
        raise BenchError(f"{name} failed (code {process.returncode}): {last_words(errors, watched.lines)}")
    own, at_end = high_water("self"), usage.ru_maxrss * 1024
    return Ended(wall, at_end if at_end > own else watched.peak, watched.libraries, watched.lines, errors)


def last_words(errors: str, lines: Sequence[tuple[float, str]] = ()) -> str:
    """The last lines that say something, for an error message."""
    said = [line.strip() for line in errors.splitlines() if line.strip()] or [line for _, line in lines[-3:]]
    return " | ".join(said[-3:])[-500:] or "it said nothing"


@dataclass(frozen=True, slots=True)
class Ours:
    """A job of ours that ended well. ``stages`` gives each stage's first and last progress line (seconds)."""

    result: Result
    wall: float
    peak_bytes: int
    libraries: frozenset[str]
    stages: dict[str, tuple[float, float]]


class Product:
    """Our side: the product's measuring process, and the limits measured with its parts, on given libraries.

    Args:
        libraries: the folder with libllama; None: llama-cpp-python's own.
        folder: where children may put temporary files.
    """

    def __init__(self, libraries: Path | None, folder: Path) -> None:
        self._environment = {**scrubbed_environment(str(folder)), "PYTHONPATH": str(ROOT)}
        self._environment.pop("LLAMA_CPP_LIB_PATH", None)
        if libraries is not None:
            self._environment |= {"LLAMA_CPP_LIB_PATH": str(libraries), "LD_LIBRARY_PATH": str(libraries)}

    def job(self, spec: BaseModel) -> Ours:
        """Run a job as the product does: ``python -m jobs.run``, its spec on stdin.

        Raises:
            BenchError: the job failed.
        """
        ended = run(
            [sys.executable, "-P", "-m", "jobs.run", "--die-with-parent"],
            name="jobs.run",
            environment=self._environment,
            text=spec.model_dump_json(),
            may_fail=True,
        )
        stages: dict[str, tuple[float, float]] = {}
        result: Result | None = None
        for arrival, line in ended.lines:
            try:
                event = event_adapter.validate_json(line)
            except ValidationError:
                continue
            if isinstance(event, ProgressEvent):
                stages[event.stage] = (stages.get(event.stage, (arrival, arrival))[0], arrival)
            elif isinstance(event, ErrorEvent):
                raise BenchError(f"jobs.run failed: {event.type}: {event.message}")
            elif isinstance(event, ResultEvent):
                result = event.result
        if result is None:
            raise BenchError(f"jobs.run gave no result: {last_words(ended.errors)}")
        return Ours(result, ended.wall, ended.peak_bytes, ended.libraries, stages)

    def limit(self, what: str, **arguments: Any) -> tuple[dict[str, Any], Ended]:
        """Run ``benchmarks.limits``; its answer (JSON).

        Raises:
            BenchError: it failed.
        """
        ended = run(
            [sys.executable, "-P", "-m", "benchmarks.limits", what],
            name=f"benchmarks.limits {what}",
            environment=self._environment,
            text=json.dumps(arguments, default=str),
        )
        try:
            answer: dict[str, Any] = json.loads(ended.lines[-1][1])
        except (IndexError, ValueError):
            raise BenchError(f"benchmarks.limits gave no answer: {last_words(ended.errors)}") from None
        return answer, ended
