"""The worker: claims a job, fetches what it needs, has it measured, writes down what came of it."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.clock import Clock
from bot.hub.door import HubDoor
from bot.queue.fetch import corpus_path, evict, fetched_bytes, model_path, set_aside
from bot.queue.places import baseline_path, checkpoint_path, evict_unfinished, fallback_path, tokens_path
from bot.queue.plan import job_key
from bot.queue.runners.local import JobStopped, run_job
from bot.settings import Settings
from bot.store import Store
from bot.store.db import immediate
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
    result_adapter,
)
from core.errors import (
    BaselineError,
    BaselineGoneError,
    HubRateLimitError,
    HubUnreachableError,
    JobProtocolError,
    MeasurementDiedError,
    QuantcardError,
    StorageError,
)
from core.protocol import CORPUS_SOURCES

logger = logging.getLogger(__name__)

#: Seconds between tries to store a result.
_PAUSES = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What a worker tells whoever watches: ``state`` is running (with progress), done, todo (again) or dead."""

    job: Job
    variant: Variant
    state: str
    progress: ProgressEvent | None = None
    error: str | None = None
    cause: QuantcardError | None = None


def worker_name() -> str:
    """A name for this worker's leases that no other one has, nor a later one in a container of the same name."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class _Halt:
    """A job's reasons to stop: we were asked to, or its lease went to another worker."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self.lost = stop, threading.Event()

    def is_set(self) -> bool:
        return self._stop.is_set() or self.lost.is_set()


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
        halt = _Halt(self._stop)
        with _Heartbeat(self._settings, self._clock, job, self.name, halt.lost):
            try:
                self._run(job, variant, halt)
            except (JobStopped, KeyboardInterrupt) as stopped:
                # Nothing happens here when the lease is another worker's by now.
                self._store.jobs.release(job.id, self.name, reason="the worker was stopped", now=self._clock.now())
                if isinstance(stopped, KeyboardInterrupt):
                    raise
        self._clear_away()
        return True

    def _run(self, job: Job, variant: Variant, halt: _Halt) -> None:
        """Measure and write down what came of it; every error but a stop is the job's."""
        progress = self._reporter(job, variant)
        try:
            self._tell(JobEvent(job, variant, "running"))
            try:
                spec = self._spec(job, variant, halt, progress)
            except (HubUnreachableError, HubRateLimitError, StorageError) as error:
                # Nobody's fault in this job: the Hub is away, or our disk is full.
                self._fail(job, variant, error, deferred=True)
                return
            result = run_job(spec, timeout=self._settings.job_timeout_s, on_progress=progress, stop=halt)
            self._keep_patiently(job, variant, _checked(result, spec))
        except JobStopped:
            raise
        except QuantcardError as error:
            if type(error) is BaselineError and job.kind == "quality":
                self._record_again(job, reason="a measurement found it damaged")
                error = BaselineGoneError(str(error))
            self._fail(job, variant, error)
        except OSError as error:
            why = error.strerror or type(error).__name__
            self._fail(job, variant, MeasurementDiedError(f"The measurement could not be run ({why})."))
        except Exception as error:
            logger.exception("Job %d ended in an error of ours.", job.id)
            said = f"An error inside quantcard ({type(error).__name__}); its log has more."
            self._fail(job, variant, JobProtocolError(said))

    def _reporter(self, job: Job, variant: Variant) -> Callable[[ProgressEvent], None]:
        told = [0.0]

        def on_progress(event: ProgressEvent) -> None:
            self._tell(JobEvent(job, variant, "running", progress=event))
            now = self._clock.now()
            if now - told[0] >= 1.0:
                told[0] = now
                try:
                    self._store.jobs.heartbeat(job.id, self.name, now=now, lease=self._settings.lease_s, progress=event)
                except StorageError as error:
                    # Hours of measuring are not given up for a bar that stands still.
                    logger.warning("The progress of job %d could not be noted: %s", job.id, error)

        return on_progress

    def _fetch(
        self, variant: Variant, halt: _Halt, progress: Callable[[ProgressEvent], None], fetch: Callable[[], Path]
    ) -> Path:
        """Run ``fetch`` in a thread that a stop leaves behind: a download can't be interrupted, and may take hours."""
        done: queue.SimpleQueue[Path | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                done.put(fetch())
            except BaseException as error:
                done.put(error)

        threading.Thread(target=work, name="fetch", daemon=True).start()
        told = time.monotonic()
        while True:
            try:
                found = done.get(timeout=0.2)
            except queue.Empty:
                if halt.is_set():
                    raise JobStopped from None
                if time.monotonic() - told >= 1.0:
                    told = time.monotonic()
                    so_far = fetched_bytes(self._settings.data, variant)
                    progress(ProgressEvent(stage="fetching", done=so_far, total=variant.size_bytes))
                continue
            if isinstance(found, BaseException):
                raise found
            return found

    def _record_again(self, job: Job, *, reason: str) -> None:
        assert job.reference_id is not None
        reference = self._store.repos.variant(job.reference_id)
        key = job_key("baseline", variant_key=reference.key, protocol=job.protocol, reference_key=None)
        self._store.jobs.redo(key, reason=reason, now=self._clock.now())

    def _spec(
        self, job: Job, variant: Variant, halt: _Halt, progress: Callable[[ProgressEvent], None]
    ) -> BaselineSpec | QualitySpec | SpeedSpec:
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
                self._record_again(job, reason="its file is gone")
                raise BaselineGoneError(f"The baseline of {reference.name} is gone; it is recorded again.")
            baseline = Path(recorded.path)
        model = self._fetch(variant, halt, progress, lambda: model_path(data, variant, self._hub))
        if job.kind == "baseline":
            given = self._settings.corpus
            known = protocol.corpus.sha256 in CORPUS_SOURCES
            # The operator's own file of protocols is only looked into where it is needed.
            sources = CORPUS_SOURCES if known else self._settings.corpus_sources()
            corpus = self._fetch(
                variant,
                halt,
                progress,
                lambda: corpus_path(data, protocol, given=given, hub=self._hub, sources=sources),
            )
            kind = "states" if protocol.scoring == "unclipped" else self._settings.baseline_format
            return BaselineSpec(
                reference=str(model),
                corpus=str(corpus),
                out=str(baseline_path(data, variant.key, protocol, kind)),
                format=kind,
                fallback=protocol.scoring == "llama-cpp",
                n_ctx=protocol.n_ctx,
                chunks=protocol.chunks,
                # The reference with f16 always: what another KV cache does is what is measured.
                **{**shared, "type_k": "f16", "type_v": "f16"},
            )
        if baseline is not None:
            return QualitySpec(
                model=str(model),
                baseline=str(baseline),
                as_llama_cpp=protocol.scoring == "llama-cpp",
                tokens_out=str(tokens_path(data, variant.key, protocol)),
                checkpoint=str(checkpoint_path(data, job.key)),
                model_sha256=variant.key,
                protocol=protocol,
                **shared,
            )
        return SpeedSpec(
            model=str(model),
            n_prompt=[protocol.n_prompt],
            n_gen=[protocol.n_gen],
            n_depth=[protocol.n_depth],
            repetitions=protocol.repetitions,
            **shared,
        )

    def _keep_patiently(self, job: Job, variant: Variant, result: Result) -> None:
        """Hours of measuring are not given up because the disk is full or the database busy at this moment."""
        for pause in _PAUSES:
            try:
                self._keep(job, variant, result)
                return
            except StorageError as error:
                logger.warning("The result of job %d could not be stored yet: %s", job.id, error)
                self._clock.sleep(pause)
        self._keep(job, variant, result)

    def _keep(self, job: Job, variant: Variant, result: Result) -> None:
        """Write the result and the job's end in one transaction; nothing if the job was taken over meanwhile."""
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

    def _fail(self, job: Job, variant: Variant, error: QuantcardError, *, deferred: bool = False) -> None:
        # The reason may stand on a card: where our folders are is nobody's business.
        reason = str(error).replace(f"{self._settings.data}{os.sep}", "")
        state = self._store.jobs.fail(
            job.id,
            self.name,
            error_type=type(error).__name__,
            reason=reason,
            retryable=error.retryable,
            now=self._clock.now(),
            deferred=deferred,
        )
        if state:
            self._tell(JobEvent(job, variant, state, error=reason, cause=error))

    def _clear_away(self) -> None:
        """Remove model files that no open job needs."""
        # No job can be claimed while we look: a file that somebody is about to use is not taken away.
        with immediate(self._store.db):
            needed = {self._store.repos.variant(i).key for i in self._store.jobs.open_files()}
            set_aside(self._settings.data, keep=needed)
        evict(self._settings.data)
        evict_unfinished(self._settings.data)


_RESULT_OF = {"baseline": BaselineResult, "quality": QualityResult, "speed": SpeedResult}


def _checked(result: Result, spec: BaselineSpec | QualitySpec | SpeedSpec) -> Result:
    """The result, if it is of the kind that was asked for and can be stored and read again.

    It comes from a process that read a stranger's file: a figure that is NaN would be stored as null and stop
    every later reader, and a path would be used as ours.
    """
    if not isinstance(result, _RESULT_OF[spec.kind]):
        raise JobProtocolError(f"The measuring process answered a {spec.kind} job with something else.")
    try:
        found: Result = result_adapter.validate_json(result.model_dump_json())
    except ValueError:
        raise JobProtocolError("The measuring process gave figures that are no numbers.") from None
    if isinstance(found, BaselineResult) and isinstance(spec, BaselineSpec):
        out = Path(spec.out)
        return found.model_copy(
            update={"path": str(out if found.format == spec.format else fallback_path(out)), "head_path": None}
        )
    if isinstance(found, QualityResult) and isinstance(spec, QualitySpec):
        name = Path(spec.tokens_out).name if spec.tokens_out and found.tokens_sha256 else None
        if found.scoring != ("llama-cpp" if spec.as_llama_cpp else found.scoring):
            raise JobProtocolError("The measuring process answered with figures of another scoring.")
        return found.model_copy(update={"tokens_path": name, "imported": None})
    if isinstance(found, SpeedResult):
        return found.model_copy(update={"imported": None})
    return found


class _Heartbeat:
    """Prolongs a job's lease from a thread of its own while the job runs; ``lost`` is set when it is gone."""

    def __init__(self, settings: Settings, clock: Clock, job: Job, worker: str, lost: threading.Event) -> None:
        self._settings, self._clock, self._job, self._worker, self._lost = settings, clock, job, worker, lost
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
                    kept = store.jobs.heartbeat(self._job.id, self._worker, now=self._clock.now(), lease=lease)
            except QuantcardError as error:
                logger.warning("The lease of job %d could not be prolonged: %s", self._job.id, error)
                continue
            if not kept and not self._done.is_set() and not self._lost.is_set():
                logger.warning("Job %d was taken over by another worker; it is stopped here.", self._job.id)
                self._lost.set()
