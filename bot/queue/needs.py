"""What jobs need of memory and disk, as the database knows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

from bot.queue.disk import Demand, Disk, OpenJob, demand_of
from bot.queue.places import baseline_name
from bot.settings import Settings
from bot.store import Store
from bot.store.db import immediate
from bot.store.jobs import Job
from core.contract import SpeedResult
from core.protocol import Protocol
from core.sizes import compare

#: Runs of an architecture that are remembered, and jobs whose needs on disk are looked at; later ones wait long.
_REMEMBERED, _LOOKED_AT = 20, 5000


def memory_ratios(store: Store, architecture: str) -> Sequence[float]:
    """How much of their estimates the last runs of an architecture took."""
    found: list[float] = json.loads(store.results.get(f"memory:{architecture}") or "[]")
    return found


def remember_memory(store: Store, job: Job, architecture: str | None, result: SpeedResult) -> None:
    """Note what a run took of its estimate."""
    peaks = [test.peak_memory_bytes or 0 for test in result.tests]
    vram = [test.peak_vram_bytes or 0 for test in result.tests]
    if job.need is None or not architecture or not peaks:
        return
    ratio = compare(job.need, memory=max(peaks) or None, vram=max(vram) or None)
    if ratio is not None:
        kept = [*memory_ratios(store, architecture), round(ratio, 3)][-_REMEMBERED:]
        store.results.put(f"memory:{architecture}", json.dumps(kept))


def disk_of(settings: Settings) -> Disk:
    """The data folder's share of the disk; what open jobs need is asked of the database."""
    return Disk(settings.data, limit=settings.disk_budget_bytes, demand=partial(_demand, settings))


@contextmanager
def _demand(settings: Settings) -> Iterator[Demand]:
    """What open jobs need; meanwhile none can be claimed. With a connection of its own: any thread may ask."""
    with Store(settings.db) as store, immediate(store.db):
        # The same few over and over; reading one takes longer than the row.
        protocol = cache(Protocol.model_validate_json)
        jobs = [
            OpenJob(key, baseline=baseline_name(reference, protocol(text)) if reference else None, running=running)
            for key, reference, text, running in store.standing.needs(_LOOKED_AT)
        ]
        yield demand_of(jobs)
