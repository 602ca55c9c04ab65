"""``GET /metrics``: counts for Prometheus. No repo, person or path is named, so anybody may read them."""

from __future__ import annotations

import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response

from bot.clock import Clock, SystemClock
from bot.health import Health
from bot.settings import Settings
from bot.status_report import WebhookCounts
from bot.store import Store
from bot.store.counting import BOUNDS, SQLITE_VERSION, Counts, Durations, History, Tally, counts, snapshot
from bot.store.switch import paused
from bot.vitals import Seen
from bot.web.fresh import Fresh
from bot.web.prometheus import CONTENT_TYPE, Family, by_label, counter, gauge, histogram, render
from core.errors import QuantcardError

logger = logging.getLogger(__name__)

#: Seconds for which an answer is given again.
FRESH_S = 5.0
#: Values of a label that comes from elsewhere; more are counted as "other".
_MOST = 40
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")


@dataclass(frozen=True, slots=True)
class Live:
    """What the process knows besides the database; ``budget`` as :meth:`bot.hub.budget.Budget.told` says it."""

    seen: Seen
    budget: Mapping[str, Any]
    webhooks: WebhookCounts
    ready: bool
    free: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database knows; ``sizes``: bytes of its files."""

    counts: Counts
    tally: Tally
    paused: bool
    queue_paused: bool
    sizes: Mapping[str, float]


class Metrics:
    """Makes the text; the jobs' history is added up in memory, so that each event is read once."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        budget: Callable[[], Mapping[str, Any]],
        webhooks: Callable[[], WebhookCounts],
        clock: Clock | None = None,
    ) -> None:
        self._settings, self._health, self._budget, self._webhooks = settings, health, budget, webhooks
        self._clock = clock or SystemClock()
        self._history, self._reading = History(), threading.Lock()

    def text(self) -> str:
        """All metrics; those of the database are left out while it can't be read."""
        live = Live(
            seen=self._health.vitals.seen,
            budget=self._budget(),
            webhooks=self._webhooks(),
            ready=not self._health.reasons(),
            free=self._health.disks(),
        )
        now, stored = self._clock.now(), None
        try:
            stored = self.stored()
        except QuantcardError as error:
            logger.warning("The metrics of the database could not be read: %s", error)
        families = [*of_process(live, now=now), *of_service(live)]
        return render([*families, *(of_database(stored, now=now) if stored else [])])

    def stored(self) -> Stored:
        """Ask the database.

        Raises:
            StorageError: it can't be read.
        """
        with self._reading, Store(self._settings.db) as store, snapshot(store.db):
            return Stored(
                counts=counts(store.db),
                tally=self._history.read(store.db),
                paused=paused(store) is not None,
                queue_paused=store.jobs.paused() is not None,
                sizes=_sizes(self._settings.db),
            )


def of_process(live: Live, *, now: float) -> list[Family]:
    """What every process tells. ``now``: seconds since the epoch."""
    memory, handles = _memory(), _handles()
    build = {(_version("quantcard"), platform.python_version(), _version("llama-cpp-python"), SQLITE_VERSION): 1.0}
    return [
        by_label("build_info", "gauge", "What runs here.", ("version", "python", "llama_cpp_python", "sqlite"), build),
        gauge("process_start_time_seconds", "When the service began, seconds since the epoch.", live.seen.started_at),
        gauge("process_resident_memory_bytes", "Memory that the process holds.", memory),
        counter("process_cpu_seconds_total", "Time that the process computed.", time.process_time()),
        gauge("process_open_fds", "Files and connections that the process has open.", handles),
        gauge("process_threads", "Threads of the process.", threading.active_count()),
        gauge("time_seconds", "This machine's clock, seconds since the epoch.", now),
    ]


def of_service(live: Live) -> list[Family]:
    """What the service knows of itself."""
    seen, hooks = live.seen, live.webhooks
    windows = live.budget.get("windows") or {}
    limits = {name: window["limit"] for name, window in windows.items()}
    left = {name: window["remaining"] for name, window in windows.items()}
    found = [
        gauge("ready", "Whether the service can do its work (/readyz says why not).", live.ready),
        gauge("draining", "Whether the service is ending.", seen.draining),
        counter("cycles_total", "Cycles that ended.", seen.cycles),
        counter("cycle_failures_total", "Cycles that failed as a whole.", seen.failures),
        counter("cycle_errors_total", "Errors in cycles.", seen.errors),
        gauge("last_cycle_seconds", "How long the last cycle took.", seen.cycle_seconds if seen.cycles else None),
        counter("clock_jumps_total", "Times that this machine's clock was set to another time.", seen.clock_jumps),
        by_label("hub_budget_limit", "gauge", "Requests in a window.", ["resource"], _few(limits)),
        by_label("hub_budget_remaining", "gauge", "Requests left in the window.", ["resource"], _few(left)),
        by_label(
            "hub_requests_total", "counter", "Requests to the Hub.", ["resource"],
            _few(live.budget.get("requests") or {}),
        ),
        by_label(
            "webhooks_total", "counter", "Webhooks that came.", ["outcome"],
            {"taken": hooks.taken, "ignored": hooks.ignored, "refused": hooks.refused},
        ),
        counter("backups_total", "Copies of the database that were made.", seen.backups),
        counter("backup_failures_total", "Copies of the database that could not be made.", seen.backup_failures),
        gauge("last_backup_timestamp_seconds", "When the newest copy was made.", seen.backup_at),
        by_label("disk_free_bytes", "gauge", "Room on the disks.", ["of"], live.free),
        by_label("data_bytes", "gauge", "What the data folder holds.", ["folder"], _few(seen.data_bytes)),
        by_label("variants", "gauge", "Variants that are known.", ["state"], _few(seen.variants)),
    ]  # fmt: skip
    return found


def of_database(stored: Stored, *, now: float) -> list[Family]:
    """What the database tells. ``now``: seconds since the epoch."""
    seen, tally = stored.counts, stored.tally
    waiting = 0.0 if seen.oldest_waiting is None else max(0.0, now - seen.oldest_waiting)
    polled = None if seen.last_poll is None else max(0.0, now - seen.last_poll)
    return [
        by_label("jobs", "gauge", "Jobs in the queue's table.", ("state", "kind"), seen.jobs),
        by_label("jobs_running", "gauge", "Jobs that a runner has.", ("runner", "kind"), _plainly(seen.running, 0)),
        gauge("oldest_waiting_job_seconds", "How long the job waits that was put into the queue first.", waiting),
        by_label("job_events_total", "counter", "Changes of jobs' states.", ("kind", "state"), tally.events),
        by_label(
            "jobs_undone_total", "counter", "Jobs that ended without a result, by the error they have now.",
            ("kind", "state", "error"), _plainly(tally.undone, 2),
        ),
        histogram("job_seconds", "From a runner's beginning to the result.", "kind", BOUNDS, _classes(tally.runs)),
        histogram("job_wait_seconds", "From the queue to a worker.", "kind", BOUNDS, _classes(tally.waits)),
        gauge("last_poll_age_seconds", "Since a list was last read.", polled),
        gauge("follows", "Owners, repos and collections that are followed.", seen.follows),
        by_label("repos", "gauge", "Repos that are known.", ["state"], seen.repos),
        gauge("repos_due", "Repos that wait to be looked into.", seen.repos_due),
        gauge("requests_waiting", "Requests from the page that wait.", seen.requests_waiting),
        by_label("pulls", "gauge", "Our pull requests.", ["state"], seen.pulls),
        gauge("paused", "Whether writing to the Hub is paused.", stored.paused),
        gauge("queue_paused", "Whether the queue is paused.", stored.queue_paused),
        by_label("database_bytes", "gauge", "The database's files.", ["file"], stored.sizes),
    ]  # fmt: skip


def router(metrics: Metrics) -> APIRouter:
    """The route."""
    routes, fresh = APIRouter(), Fresh(metrics.text, seconds=FRESH_S)

    @routes.get("/metrics")
    async def answer() -> Response:
        return Response(await fresh.get(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})

    return routes


def _classes(found: Mapping[str, Durations]) -> dict[str, tuple[list[int], float]]:
    return {kind: (one.classes, one.seconds) for kind, one in found.items()}


def _few(found: Mapping[str, float]) -> dict[str, float]:
    """Values under names that others gave: plain ones, and not many."""
    kept: dict[str, float] = {}
    for name, value in sorted(found.items()):
        plain = _plain(name) if len(kept) < _MOST else "other"
        kept[plain] = kept.get(plain, 0) + value
    return kept


def _plainly(found: Mapping[tuple[str, ...], int], which: int) -> dict[tuple[str, ...], float]:
    """Values by several labels, of which one may hold anything."""
    kept: dict[tuple[str, ...], float] = {}
    for key, value in sorted(found.items()):
        plain = tuple(_plain(one) if n == which else one for n, one in enumerate(key))
        kept[plain] = kept.get(plain, 0) + value
    return kept


def _plain(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else "other"


def _sizes(db: Path) -> dict[str, float]:
    real = db.resolve()
    files = {"database": real, "wal": real.with_name(f"{real.name}-wal")}
    return {name: path.stat().st_size for name, path in files.items() if path.exists()}


def _memory() -> float | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _handles() -> float | None:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
