"""The measuring process: ``python -m jobs.run`` reads a job's spec on stdin and prints events, one JSON a line.

Its stdout carries nothing but the contract's events: whatever a library prints goes to stderr. It exits 0 after a
result, else with the error's exit code; a crash has no last event, and the parent says so.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from typing import TextIO

from pydantic import ValidationError

from core.contract import (
    BaselineSpec,
    BaselineToolSpec,
    ErrorEvent,
    ProgressEvent,
    QualityManySpec,
    QualitySpec,
    QuantizeSpec,
    Result,
    ResultEvent,
    SpeedSpec,
    job_spec_adapter,
)
from core.errors import JobProtocolError, QuantcardError
from jobs import llama

#: Seconds between progress lines of one stage.
PROGRESS_INTERVAL = 0.2
_PR_SET_PDEATHSIG = 1
#: Some 0.1 ms: long enough for the barriers inside a decode.
_SPIN_COUNT = "10000"


class _Reporter:
    """Prints events; progress at most every :data:`PROGRESS_INTERVAL` seconds, first and last always."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = 0.0

    def emit(self, event: ProgressEvent | ErrorEvent | ResultEvent) -> None:
        self._out.write(event.model_dump_json() + "\n")
        self._out.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done in (0, total) or now - self._last >= PROGRESS_INTERVAL:
            self._last = now
            self.emit(ProgressEvent(stage=stage, done=done, total=total))


def execute(
    spec: BaselineSpec | BaselineToolSpec | QualitySpec | QualityManySpec | SpeedSpec | QuantizeSpec,
    reporter: _Reporter,
) -> Result:
    """Run one job here and now."""
    match spec:
        case BaselineSpec():
            from jobs.baseline.record import record

            return record(spec, reporter.progress)
        case BaselineToolSpec():
            from jobs.baseline.tools import run_tool

            return run_tool(spec, reporter.progress)
        case QualitySpec():
            from jobs.quality import measure

            return measure(spec, reporter.progress)
        case QualityManySpec():
            from jobs.quality import measure_many

            return measure_many(spec, reporter.progress)
        case SpeedSpec():
            from jobs.speed import measure as measure_speed

            return measure_speed(spec, reporter.progress)
        case QuantizeSpec():
            from jobs.quantize import quantize

            return quantize(spec)


def _settle(*, die_with_parent: bool) -> None:
    """No core dumps of strangers' files; and if asked, an end when the parent ends, however it does (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if die_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """Entry point of the measuring process."""
    _settle(die_with_parent="--die-with-parent" in sys.argv[1:])
    # Keep the real stdout to ourselves: libraries (C ones too) that print get stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reporter = _Reporter(out)
    llama.echo_log = True
    try:
        spec = job_spec_adapter.validate_json(sys.stdin.buffer.read())
        if not isinstance(spec, SpeedSpec):
            # libgomp reads this when llama.cpp is loaded. Its idle threads would else spin for milliseconds after each
            # decode, on the very cores that are to score. A speed test is left as llama-bench runs it.
            os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
        reporter.emit(ResultEvent(result=execute(spec, reporter)))
    except ValidationError as error:
        first = error.errors()[0]
        message = f"The job's spec is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        reporter.emit(ErrorEvent(type=JobProtocolError.__name__, message=message))
        return JobProtocolError.exit_code
    except QuantcardError as error:
        reporter.emit(ErrorEvent(type=type(error).__name__, message=str(error)))
        return error.exit_code
    except MemoryError:
        reporter.emit(
            ErrorEvent(type="MeasurementDiedError", message="The machine has too little memory for this measurement.")
        )
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
