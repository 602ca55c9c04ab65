"""What a measurement takes for real: a job run in a process of its own, with its peak resident memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from core.contract import BaselineSpec, QualitySpec, Result, SpeedSpec, result_adapter

ROOT = Path(__file__).resolve().parents[1]
_CODE = """
import sys
from core.contract import job_spec_adapter
from jobs.memory import peak_rss_bytes
from jobs.run import _Reporter, execute
spec = job_spec_adapter.validate_json(sys.stdin.buffer.read())
result = execute(spec, _Reporter(sys.stderr))
peaks = [test.peak_memory_bytes for test in getattr(result, "tests", [])]
print(max([peak_rss_bytes(), *peaks]), result.model_dump_json())
"""


def peak_of(spec: BaselineSpec | QualitySpec | SpeedSpec, *, seconds: float = 300) -> tuple[Result, int]:
    """A job's result, and the most bytes that its process had resident."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        input=spec.model_dump_json(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, result = done.stdout.split(" ", 1)
    return result_adapter.validate_json(result), int(peak)
