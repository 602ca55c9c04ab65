"""The benchmark's chaos run in short: the real service, killed (-9) again and again, and nothing lost or left."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import chaos_title, measure_chaos
from benchmarks.chaos_world import Plan
from benchmarks.table import render

PLAN = Plan(kills=7, variants=8, repos=2, waves=2, labels=("Q4_0",), seed=23, limit_s=200.0, pause_s=1.0)


@pytest.mark.timeout(300)
def test_what_is_killed_again_and_again_ends_once_and_leaves_nothing(tmp_path: Path) -> None:
    rows = measure_chaos(tmp_path, PLAN)
    assert all(row.met is not False for row in rows), f"{render(chaos_title(PLAN), rows)}\n" + "\n".join(
        str(row.samples) for row in rows if row.met is False
    )
    assert sum(row.met is True for row in rows) == 10
