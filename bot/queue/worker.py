"""The worker: claims a job, fetches what it needs, has it measured, writes down what came of it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.clock import Clock
from bot.hub.door import HubDoor
from bot.queue.fetch import corpus_path, evict, model_path
from bot.queue.plan import job_key
from bot.queue.runners.local import JobStopped, run_job
from bot.settings import Settings
from bot.store import Store
from bot.store.jobs import Job
from bot.store.repos import Variant
from core.contract import (
    BaselineResult,
    BaselineSpec,
    ProgressEvent,
    QualityResult,
    QualitySpec,
    Result,
    SpeedResult,
    SpeedSpec,
)
from core.errors import BaselineGoneError, JobError, QuantcardError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What a worker tells whoever watches: ``state`` is running (with progress), done, todo (again) or dead."""

    job: Job
    variant: Variant
    state: str
    progress: ProgressEvent | None = None
    error: str | None = None


def worker_name() -> str:
    """A name for this worker's leases that no other one has."""
    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident() % 10_000}"


class Worker:
    """Runs jobs one after another.

    Args:
        store: its own connection (a heartbeat opens another one).
        hub: where files are fetched from.
        tell: called with every event, in this thread.
        stop: when set, the running job is put back and :meth:`run_one` returns.
    """

    def __init__(
        self,
        store: Store,
        hub: HubDoor,
        settings: Settings,
        clock: Clock,
        *,
        tell: Callable[[JobEvent], None],
        stop: threading.Event,
    ) -> None:
        self._store, self._hub, self._settings, self._clock = store, hub, settings, clock
        self._tell, self._stop = tell, stop
        self.name = worker_name()

    def run_one(self) -> bool:
        """Run the next job, if one may start now. False when there was none."""
        job = self._store.jobs.claim(self.name, now=self._clock.now(), lease=self._settings.lease_s)
        if job is None:
            return False
        variant = self._store.repos.variant(job.variant_id)
        with _Heartbeat(self._settings, self._clock, job, self.name):
            try:
                self._tell(JobEvent(job, variant, "running"))
                result = self._measure(job, variant)
                self._keep(job, variant, result)
            except (JobStopped, KeyboardInterrupt) as stopped:
                self._store.jobs.release(job.id, self.name, reason="the worker was stopped", now=self._clock.now())
                if isinstance(stopped, KeyboardInterrupt):
                    raise
            except QuantcardError as error:
                self._fail(job, variant, error)
            except OSError as error:
                self._fail(job, variant, JobError(f"The worker could not do it: {error}."))
        self._clear_away()
        return True

    def _measure(self, job: Job, variant: Variant) -> Result:
        spec = self._spec(job, variant)
        told = [0.0]

        def on_progress(event: ProgressEvent) -> None:
            self._tell(JobEvent(job, variant, "running", progress=event))
            now = self._clock.now()
            if now - told[0] >= 1.0:
                told[0] = now
                self._store.jobs.heartbeat(job.id, self.name, now=now, lease=self._settings.lease_s, progress=event)

        return run_job(spec, timeout=self._settings.job_timeout_s, on_progress=on_progress, stop=self._stop)

    def _spec(self, job: Job, variant: Variant) -> BaselineSpec | QualitySpec | SpeedSpec:
        """The job's spec with real paths; fetches what is not there yet."""
        data, protocol = self._settings.data, job.protocol
        shared: dict[str, Any] = {
            "n_batch": protocol.n_batch,
            "n_ubatch": protocol.n_ubatch,
            "type_k": protocol.type_k,
            "type_v": protocol.type_v,
            "flash_attn": protocol.flash_attn,
            "machine": self._settings.machine,
        }
        baseline: Path | None = None
        if job.kind == "quality":
            assert job.reference_id is not None
            reference = self._store.repos.variant(job.reference_id)
            recorded = self._store.results.baseline(reference.key, protocol.fingerprint)
            if recorded is None or not Path(recorded.path).exists():
                key = job_key("baseline", variant_key=reference.key, protocol=protocol, reference_key=None)
                self._store.jobs.redo(key, reason="its file is gone", now=self._clock.now())
                raise BaselineGoneError(f"The baseline of {reference.name} is gone; it is recorded again.")
            baseline = Path(recorded.path)
        model = model_path(data, variant, self._hub)
        if job.kind == "baseline":
            corpus = corpus_path(data, protocol, given=self._settings.corpus, hub=self._hub)
            out = data / "baselines" / f"{variant.key[:16]}-{protocol.fingerprint[:16]}.kld"
            return BaselineSpec(
                reference=str(model),
                corpus=str(corpus),
                out=str(out),
                n_ctx=protocol.n_ctx,
                chunks=protocol.chunks,
                **shared,
            )
        if baseline is not None:
            return QualitySpec(model=str(model), baseline=str(baseline), protocol=protocol, **shared)
        return SpeedSpec(
            model=str(model),
            n_prompt=[protocol.n_prompt],
            n_gen=[protocol.n_gen],
            repetitions=protocol.repetitions,
            **shared,
        )

    def _keep(self, job: Job, variant: Variant, result: Result) -> None:
        """Write the result and the job's end in one transaction; nothing if the job was taken over meanwhile."""
        from bot.store.db import immediate

        now = self._clock.now()
        with immediate(self._store.db):
            if not self._store.jobs.finish(job.id, self.name, now=now):
                logger.warning("Job %d was taken over; its result is left to the other worker.", job.id)
                return
            if isinstance(result, BaselineResult):
                self._store.results.save_baseline(variant.key, job.protocol.fingerprint, result, now=now)
            elif isinstance(result, QualityResult | SpeedResult):
                reference = self._store.repos.variant(job.reference_id).key if job.reference_id else None
                self._store.results.save_measurement(
                    variant.key, job.protocol.fingerprint, result, reference_key=reference, job_id=job.id, now=now
                )
        self._tell(JobEvent(job, variant, "done"))

    def _fail(self, job: Job, variant: Variant, error: QuantcardError) -> None:
        state = self._store.jobs.fail(
            job.id,
            self.name,
            error_type=type(error).__name__,
            reason=str(error),
            retryable=error.retryable,
            now=self._clock.now(),
        )
        if state:
            self._tell(JobEvent(job, variant, state, error=str(error)))

    def _clear_away(self) -> None:
        """Remove model files that no open job needs."""
        needed = {self._store.repos.variant(i).key for i in self._store.jobs.open_files()}
        evict(self._settings.data, keep=needed)


class _Heartbeat:
    """Prolongs a job's lease from a thread of its own while the job runs."""

    def __init__(self, settings: Settings, clock: Clock, job: Job, worker: str) -> None:
        self._settings, self._clock, self._job, self._worker = settings, clock, job, worker
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        lease = self._settings.lease_s
        while not self._done.wait(lease / 4):
            try:
                with Store(self._settings.db) as store:
                    store.jobs.heartbeat(self._job.id, self._worker, now=self._clock.now(), lease=lease)
            except QuantcardError as error:
                logger.warning("The lease of job %d could not be prolonged: %s", self._job.id, error)
