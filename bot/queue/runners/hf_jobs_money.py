"""What Jobs cost: reserved at the worst before one is started, settled by what it ran, held to a monthly limit.

The ledger is a value in the store for each month (UTC) in which a Job was started, so that a restart forgets nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.store import Store
from bot.store.db import immediate
from core.errors import RunnerUnavailableError


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a Job that has not ended may cost at most, and the Hub's id of it once it is known."""

    run: str
    job: str | None
    usd_per_minute: float
    worst_usd: float
    at: float


@dataclass(frozen=True, slots=True)
class Spending:
    """A month's money in USD: ``spent`` by Jobs that ended, ``reserved`` by those that may still cost as much."""

    month: str
    spent: float
    n_jobs: int
    open: tuple[Reserved, ...]

    @property
    def reserved(self) -> float:
        """What the open ones may cost at most."""
        return math.fsum(one.worst_usd for one in self.open)


def cost(usd_per_minute: float, seconds: float) -> float:
    """USD of so many seconds; a minute that was begun counts whole."""
    return usd_per_minute * math.ceil(max(seconds, 0.0) / 60)


def month_of(now: float) -> str:
    """``2026-11`` for a moment, in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def spending(store: Store, now: float) -> Spending:
    """What this month's Jobs have cost and may still cost."""
    return _read(store, month_of(now))


class Ledger:
    """The ledger of one database. Safe to use from several threads and processes.

    Args:
        open_store: a connection of its own for each use.
        limit_usd: what a month's Jobs may cost at most.
    """

    def __init__(self, open_store: Callable[[], Store], *, limit_usd: float) -> None:
        self._open, self._limit = open_store, limit_usd

    def reserve(self, run: str, *, usd_per_minute: float, worst_s: float, now: float) -> Spending:
        """Put a run's worst case aside; a run that is in the ledger already replaces itself.

        Raises:
            RunnerUnavailableError: the month's limit does not leave as much.
        """
        worst = cost(usd_per_minute, worst_s)

        def change(was: Spending) -> Spending:
            others = tuple(one for one in was.open if one.run != run)
            left = self._limit - was.spent - math.fsum(one.worst_usd for one in others)
            # A cent's thousandth is rounding.
            if worst > left + 1e-5:
                raise RunnerUnavailableError(
                    f"A Job that may cost {worst:.2f} USD is not started: of this month's {self._limit:.2f} USD "
                    f"(QUANTCARD_HF_JOBS_MONTHLY_USD) {was.spent:.2f} are spent and "
                    f"{math.fsum(one.worst_usd for one in others):.2f} kept for Jobs that run."
                )
            mine = Reserved(run, None, usd_per_minute, worst, now)
            return Spending(was.month, was.spent, was.n_jobs, (*others, mine))

        return self._change(month_of(now), change)

    def started(self, run: str, job: str, *, now: float) -> None:
        """Note the Hub's id of a run that was reserved."""
        for month in self._months(now):
            self._change(month, lambda was: _replaced(was, run, lambda one: (_with_job(one, job), 0.0, 0)))

    def settle(self, run: str, *, seconds: float | None, now: float) -> None:
        """Write down what a run cost, None: nothing, as it never began. Doing it twice changes nothing."""

        def ended(one: Reserved) -> tuple[Reserved | None, float, int]:
            return None, 0.0 if seconds is None else cost(one.usd_per_minute, seconds), int(seconds is not None)

        for month in self._months(now):
            self._change(month, lambda was: _replaced(was, run, ended))

    def open(self, now: float) -> list[Reserved]:
        """What is put aside for runs that have not ended, this month's and the last one's."""
        with self._open() as store:
            return [one for month in self._months(now) for one in _read(store, month).open]

    @staticmethod
    def _months(now: float) -> list[str]:
        """This month and the one before: a Job counts for the month in which it was started."""
        first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return [month_of(first.timestamp() - 1), month_of(now)]

    def _change(self, month: str, change: Callable[[Spending], Spending]) -> Spending:
        with self._open() as store, immediate(store.db):
            was = _read(store, month)
            found = change(was)
            if found != was:
                store.results.put(_name(month), _text(found))
            return found


def _name(month: str) -> str:
    return f"hf-jobs:spending:{month}"


def _with_job(one: Reserved, job: str) -> Reserved:
    return Reserved(one.run, job, one.usd_per_minute, one.worst_usd, one.at)


def _replaced(was: Spending, run: str, change: Callable[[Reserved], tuple[Reserved | None, float, int]]) -> Spending:
    kept, spent, n_jobs = [], was.spent, was.n_jobs
    for one in was.open:
        if one.run != run:
            kept.append(one)
            continue
        left, usd, more = change(one)
        spent, n_jobs = spent + usd, n_jobs + more
        if left is not None:
            kept.append(left)
    return Spending(was.month, spent, n_jobs, tuple(kept))


def _read(store: Store, month: str) -> Spending:
    data = json.loads(store.results.get(_name(month)) or "{}")
    return Spending(
        month=month,
        spent=float(data.get("spent", 0.0)),
        n_jobs=int(data.get("n_jobs", 0)),
        open=tuple(Reserved(**one) for one in data.get("open", [])),
    )


def _text(found: Spending) -> str:
    rows = [
        {"run": one.run, "job": one.job, "usd_per_minute": one.usd_per_minute, "worst_usd": one.worst_usd, "at": one.at}
        for one in found.open
    ]
    return json.dumps({"spent": found.spent, "n_jobs": found.n_jobs, "open": rows})
