"""What a Job's log says, and why there is no result where there is none. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bot.hub.jobs_api import HubJob
from core.contract import ProgressEvent
from core.errors import JobProtocolError, MachineLostError, MeasurementDiedError, QuantcardError
from core.frame import Ended, read_line

_WORDS = 300
_EXIT = re.compile(r"exit code:? (\d{1,3})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Said:
    """A log: the job's end if it is in it, its last step, and the last words that are not ours."""

    ended: Ended | None
    progress: ProgressEvent | None
    words: str


def read_log(lines: Iterable[str], nonce: str) -> Said:
    """What a log says.

    Raises:
        JobProtocolError: a result line is not this job's, cut, or there are two that differ.
    """
    ended: Ended | None = None
    progress: ProgressEvent | None = None
    words: list[str] = []
    for line in lines:
        found = read_line(line, nonce)
        if isinstance(found, Ended):
            if ended is not None and found != ended:
                raise JobProtocolError("The Job's log holds two results that differ: one of them is made up.")
            ended = found
        elif found is not None:
            progress = found
        elif text := " ".join(line.split()):
            words = [*words[-1:], text]
    return Said(ended, progress, " | ".join(words)[-_WORDS:])


def by_itself(job: HubJob) -> bool:
    """Whether the Job's process came to an end of its own, so that its last lines are to be expected."""
    return job.stage == "COMPLETED" or (job.stage == "ERROR" and _EXIT.search(job.message) is not None)


def without_result(job: HubJob, words: str) -> QuantcardError:
    """The error of a Job that ended without a result line."""
    said = f" ({job.message})" if job.message else ""
    last = f" Last words: {words or 'none'}."
    if job.stage == "COMPLETED":
        return JobProtocolError(f"The Job says that it is done, but its log holds no result.{last}")
    if job.stage != "ERROR":
        return MachineLostError(f"The Job was ended on the Hub ({job.stage.lower()}){said}, and not by us.")
    message = job.message.lower()
    code = _EXIT.search(message)
    if "oom" in message or "out of memory" in message or (code and code.group(1) == "137"):
        return MeasurementDiedError(f"The Job ran out of memory{said}.{last}")
    if "timeout" in message or "timed out" in message:
        return MeasurementDiedError(f"The Job took longer than it may (QUANTCARD_HF_JOBS_TIMEOUT_S){said}.")
    if code and code.group(1) == "143":
        return MachineLostError(f"The machine was told to end the Job{said}.")
    if code:
        return JobProtocolError(f"The Job ended without a result{said}.{last}")
    return MachineLostError(f"The machine went away under the Job{said}.")
