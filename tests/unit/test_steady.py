"""Timers keep their time when the machine's clock is set by hours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from bot.steady import ClockWatch

HOUR = 3600.0


class Clocks:
    """A wall clock that can be set, and one that only goes forward."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_800_000_000.0, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def scheduler() -> Iterator[BackgroundScheduler]:
    found = BackgroundScheduler(timezone="UTC")
    found.start(paused=True)
    yield found
    found.shutdown(wait=False)


@pytest.mark.parametrize("jump", [-5 * HOUR, -60.0, 60.0, 48 * HOUR])
def test_what_is_planned_moves_with_the_clock(scheduler: BackgroundScheduler, jump: float) -> None:
    clocks, told = Clocks(), list[float]()
    watch = ClockWatch(scheduler, jumped=told.append, wall=lambda: clocks.wall, steady=lambda: clocks.steady)
    poll = scheduler.add_job(print, "interval", seconds=900)
    resume = scheduler.add_job(print, "date", run_date=datetime.now(UTC) + timedelta(seconds=300))
    planned = [poll.next_run_time, resume.next_run_time]
    clocks.pass_by(100)
    assert watch.look() == 0.0 and [poll.next_run_time, resume.next_run_time] == planned
    clocks.wall += jump
    clocks.pass_by(5)
    assert watch.look() == pytest.approx(jump) and told == [pytest.approx(jump)]
    moved = [job.next_run_time for job in (poll, resume)]
    assert [(now - then).total_seconds() for now, then in zip(moved, planned, strict=True)] == pytest.approx([jump] * 2)
    assert watch.look() == 0.0


def test_a_drift_is_no_jump(scheduler: BackgroundScheduler) -> None:
    clocks, told = Clocks(), list[float]()
    watch = ClockWatch(scheduler, jumped=told.append, wall=lambda: clocks.wall, steady=lambda: clocks.steady)
    for _ in range(100):
        clocks.wall += 0.5
        clocks.pass_by(5)
        assert watch.look() == 0.0
    assert told == []
