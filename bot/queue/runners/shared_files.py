"""What runners share whose machines see the bot's data folder at the same path: the task told, the result line read."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from bot.queue.runners.base import FETCHING, Task
from core.canonical import storage_error
from core.contract import ErrorEvent, ProgressEvent, Result
from core.errors import JobProtocolError, RunnerUnavailableError
from core.frame import MAX_LINE, Ended, error_of, read_line
from core.remote_task import InputFile, RemoteTask, TaskLimits, packed

_GIB = 1 << 30
#: Seconds for which a result line is kept.
_LEFT_S = 7 * 24 * 3600.0
_TAIL = 64 << 10


def told(task: Task, *, end: Path, unsafe: bool = False) -> str:
    """The value of QUANTCARD_TASK for a task whose files lie where its spec says, there as here.

    Args:
        end: where the result line is to be written, beside the log; no job's process may write there.
        unsafe: measure also where no sandbox can be had.

    Raises:
        StorageError: the folder of ``end`` can't be made.
        RunnerUnavailableError: the task has too many files to be told of.
    """
    first = Path(task.spec.reference if task.spec.kind == "baseline" else task.spec.model)
    try:
        end.parent.mkdir(parents=True, exist_ok=True)
        return packed(
            RemoteTask(
                nonce=task.nonce,
                spec=task.spec,
                # Shards lie beside the first one, under their own names.
                model_files=[
                    InputFile(path=str(first.with_name(Path(file.path).name)), size=file.size, sha256=file.sha256)
                    for file in task.model.files
                    if file.sha256
                ],
                end=str(end),
                limits=limits_of(task),
                unsafe=unsafe,
            )
        )
    except OSError as error:
        raise storage_error(end, error) from error
    except ValueError as error:
        raise RunnerUnavailableError(f"The job can't be told what to measure: {error}.") from None


def limits_of(task: Task) -> TaskLimits:
    """What the job may take: half as much again as was estimated, since the estimate is not the file's fault."""
    need, seconds = task.need, task.stages.measuring
    if need is None:
        return TaskLimits(seconds=seconds)
    return TaskLimits(
        seconds=seconds,
        memory_bytes=max(need.peak, need.memory * 3 // 2) + 2 * _GIB,
        output_bytes=need.disk * 3 // 2 + _GIB,
    )


def ended_in(end: Path, task: Task) -> Ended | None:
    """How the job ended, as the file says; None where it says nothing.

    Raises:
        JobProtocolError: the line is not this job's.
    """
    try:
        with end.open(encoding="ascii", errors="replace") as file:
            found = read_line(file.read(MAX_LINE + 1), task.nonce)
    except OSError:
        return None
    return found if isinstance(found, Ended) else None


def last_step(log: Path, task: Task) -> ProgressEvent:
    """The last step in a job's log; that it begins, where there is none yet."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        for line in reversed(file.read(_TAIL).decode("utf-8", "replace").splitlines()):
            with suppress(JobProtocolError):
                event = read_line(line, task.nonce)
                if isinstance(event, ProgressEvent):
                    return event
    return ProgressEvent(stage=FETCHING, done=0, total=0)


def result_of(ended: Ended) -> Result:
    """The job's result.

    Raises:
        QuantcardError: the job's own error.
    """
    if isinstance(ended.event, ErrorEvent):
        raise error_of(ended.event)
    return ended.event.result


def sweep(folder: Path) -> None:
    """Remove result lines that nobody came back for."""
    for path in folder.glob("*.end"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_S:
                path.unlink()
