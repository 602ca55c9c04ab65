"""Runs code of ours where a stranger's file would run, to see what it can do there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.sandbox.launch import Launch, launched
from core.sandbox.levels import Level, Limits, probe
from core.sandbox.scratch import scratch_folder

HELD: tuple[Level, ...] = ("bubblewrap", "uid")
ALL: tuple[Level, ...] = (*HELD, "none")


def require(level: Level) -> None:
    """Skip where this machine does not have it, and say why."""
    if sys.platform != "linux":
        pytest.skip("the sandbox is Linux's")
    problem = probe(level)
    if problem is not None:
        pytest.skip(problem)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that other users can get to, as pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="quantcard-open-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def launch_of(
    level: Level,
    code: str,
    *,
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
    limits: Limits | None = None,
) -> Iterator[tuple[Launch, Path]]:
    """A launch that runs Python code in place of a job, and the job's own folder."""
    # timeit is the module that runs code from its command line; -m leads nowhere else in there.
    module = ["timeit", "-n", "1", "-r", "1", "-s", code, "pass"]
    with (
        scratch_folder() as scratch,
        launched(
            level, module, scratch=scratch, reads=reads, writes=writes, limits=limits or Limits(seconds=60)
        ) as launch,
    ):
        yield launch, scratch


def inside(
    level: Level, code: str, *, reads: Sequence[Path] = (), writes: Sequence[Path] = (), limits: Limits | None = None
) -> Any:
    """What ``code`` puts into ``found``, run where a stranger's file would run."""
    wrapped = f"import json\nfound = {{}}\n{code}\nprint('FOUND' + json.dumps(found))"
    with launch_of(level, wrapped, reads=reads, writes=writes, limits=limits) as (launch, _):
        done = subprocess.run(
            launch.argv, env=launch.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False, **launch.options,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, (done.returncode, done.stderr[-2000:])
    return json.loads(lines[-1].removeprefix("FOUND"))
