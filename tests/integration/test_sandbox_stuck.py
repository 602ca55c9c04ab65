"""bubblewrap whose outer process is killed while it sets a sandbox up: its inner one would wait for it for ever."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from core.sandbox.launch import launched
from core.sandbox.levels import Limits, probe
from core.sandbox.scratch import end_stuck, scratch_folder


def test_nothing_is_left_of_a_sandbox_that_was_killed_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if problem := probe("bubblewrap"):
        pytest.skip(problem)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    chance, folders, ended = random.Random(1), [], 0
    for _ in range(400):
        if ended > 1:
            break
        with (
            scratch_folder() as scratch,
            launched("bubblewrap", ["-"], scratch=scratch, reads=[], writes=[], limits=Limits(seconds=60)) as launch,
        ):
            folders.append(str(scratch))
            process = subprocess.Popen(
                launch.argv,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **launch.options,
            )
            time.sleep(chance.uniform(0.0, 0.03))
            process.kill()
            process.wait()
            time.sleep(0.05)
            ended += end_stuck([str(scratch)])
    if not ended:
        pytest.skip("no kill fell into the moment that is meant")
    assert end_stuck(folders) == 0 and list(tmp_path.iterdir()) == []
