"""The worker: claims a job, fetches what it needs, has a runner measure it, writes down what came of it."""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bot.clock import Clock
from bot.hub.door import HubDoor
from bot.queue.clearing import clear_away
from bot.queue.collect import checked, collect
from bot.queue.disk import touch
from bot.queue.fetch import corpus_path, fetched_bytes, model_folder, model_path
from bot.queue.needs import disk_of, remember_memory
from bot.queue.places import drop_work, work_folder
from bot.queue.plan import job_key
from bot.queue.recheck import compare_with_first, other_runners, recheck
from bot.queue.runners.base import FETCHING, JobStopped, ModelSource, Runner, Stages, Task
from bot.queue.runners.patiently import patiently
from bot.queue.specs import Asked, ask
from bot.queue.watch import Halt, Watch
from bot.settings import Settings
from bot.store import Store
from bot.store.db import immediate
from bot.store.jobs import Job
from bot.store.repos import Variant
from core.contract import BaselineResult, Machine, ProgressEvent, QualityResult, Result, SpeedResult
from core.errors import (
    BaselineError,
    BaselineGoneError,
    DeadlineError,
    JobProtocolError,
    MeasurementDiedError,
    QuantcardError,
    RunnerUnavailableError,
    StorageError,
)
from core.need import Capacity
from core.protocol import CORPUS_SOURCES
from core.retry import retry_class

logger = logging.getLogger(__name__)

#: What the system says where there is no room, or no place to write to.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EIO)
#: Seconds between tries to store a result.
_PAUSES = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What a worker tells whoever watches.

    ``state`` is running (with progress), done, todo (again), failed, cancelled or dead.
    """

    job: Job
    variant: Variant
    state: str
    progress: ProgressEvent | None = None
    error: str | None = None
    cause: QuantcardError | None = None


def machine_name() -> str:
    """This machine, or this container of it: processes can be looked for by number within it."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        space = "0"
    return f"{socket.gethostname()}:{space}"


def worker_name() -> str:
    """A name for this worker's leases that no other one has, nor a later one in a container of the same name."""
    return f"{machine_name()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def alive(worker: str) -> bool | None:
    """Whether a worker's process lives, if it is one of this machine's; None where that can't be known."""
    mine = f"{machine_name()}:"
    pid = worker.removeprefix(mine).split(":")[0]
    if not worker.startswith(mine) or not pid.isdigit():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return True


class Worker:
    """Runs jobs one after another.

    Args:
        store: its own connection (a heartbeat opens another one).
        hub: where files are fetched from.
        runner: where they are measured.
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
        runner: Runner,
        tell: Callable[[JobEvent], None],
        stop: threading.Event,
    ) -> None:
        self._store, self._hub, self._settings, self._clock = store, hub, settings, clock
        self._runner, self._tell, self._stop = runner, tell, stop
        self.name = worker_name()
        self._stages, self._disk = stages_of(settings), disk_of(settings)

    def run_one(self) -> bool:
        """Run the next job, if one may start now. False when there was none."""
        capacity = self._runner.capacity()
        job = self._store.leases.claim(
            self.name,
            now=self._clock.now(),
            lease=self._settings.lease_s,
            runner=self._runner.name,
            memory=most_memory(capacity),
            alive=alive,
        )
        if job is None:
            return False
        variant = self._store.repos.variant(job.variant_id)
        halt = Halt(self._stop)
        with Watch(self._settings, self._clock, job, self.name, halt, self._stages) as watch:
            try:
                self._run(job, variant, halt, watch, capacity)
            except (JobStopped, KeyboardInterrupt) as stopped:
                self._stopped(job, variant, halt)
                if isinstance(stopped, KeyboardInterrupt):
                    raise
            except StorageError as error:
                # Nothing can be written down: its lease will run out, and what was measured is in its checkpoint.
                logger.error("How job %d ended could not be stored: %s", job.id, error)
                self._clock.sleep(_PAUSES[-1])
        clear_away(self._store, self._settings.data)
        return True

    def _stopped(self, job: Job, variant: Variant, halt: Halt) -> None:
        """Put down why a job was stopped. Nothing happens here when the lease is another worker's by now."""
        if halt.reason == "deadline" and halt.deadline:
            stage, limit = halt.deadline
            said = f"It was {stage} for longer than {limit:.0f} s."
            # A machine that does not come is nobody's fault in the job.
            self._fail(job, variant, DeadlineError(said) if stage != "queued" else RunnerUnavailableError(said))
            return
        reason = "it was cancelled" if halt.reason == "cancelled" else "the worker was stopped"
        kept = self._store.leases.release(job.id, self.name, reason=reason, now=self._clock.now())
        if kept and halt.reason == "cancelled":
            drop_work(self._settings.data, job.key)
            self._tell(JobEvent(job, variant, "cancelled"))

    def _run(self, job: Job, variant: Variant, halt: Halt, watch: Watch, capacity: Capacity) -> None:
        """Measure and write down what came of it; every error but a stop is the job's."""

        def progress(event: ProgressEvent) -> None:
            watch.saw(event)
            self._tell(JobEvent(job, variant, "running", progress=event))

        try:
            self._tell(JobEvent(job, variant, "running"))
            asked = self._ask(job, variant, halt, progress, capacity)
            if not self._store.leases.began(job.id, self.name, runner=self._runner.name, now=self._clock.now()):
                return
            begun = time.monotonic()
            result = self._runner.run(self._task(job, variant, asked), report=progress, stop=halt)
            seconds = time.monotonic() - begun
            found = collect(checked(result, asked.spec), asked.spec, to=asked.to)
            self._keep_patiently(job, variant, found, seconds)
            drop_work(self._settings.data, job.key)
        except JobStopped:
            raise
        except QuantcardError as error:
            if type(error) is BaselineError and job.kind == "quality":
                self._record_again(job, reason="a measurement found it damaged")
                error = BaselineGoneError(str(error))
            self._fail(job, variant, error)
        except OSError as error:
            why = error.strerror or type(error).__name__
            kind = StorageError if error.errno in _OF_THE_DISK else MeasurementDiedError
            self._fail(job, variant, kind(f"The measurement could not be run ({why})."))
        except Exception as error:
            logger.exception("Job %d ended in an error of ours.", job.id)
            said = f"An error inside quantcard ({type(error).__name__}); its log has more."
            self._fail(job, variant, JobProtocolError(said))

    def _task(self, job: Job, variant: Variant, asked: Asked) -> Task:
        source = ModelSource(variant.repo_id, variant.revision, tuple(variant.files))
        return Task(job.run_id, nonce(self._store, job.run_id), asked.spec, source, job.need, self._stages)

    def _fetch(
        self, variant: Variant, halt: Halt, progress: Callable[[ProgressEvent], None], fetch: Callable[[], Path]
    ) -> Path:
        """Run ``fetch``, which may take hours; a stop leaves it behind."""
        told = time.monotonic()

        def meanwhile() -> None:
            nonlocal told
            if time.monotonic() - told >= 1.0:
                told = time.monotonic()
                so_far = fetched_bytes(self._settings.data, variant)
                progress(ProgressEvent(stage=FETCHING, done=so_far, total=variant.size_bytes))

        return patiently(fetch, halt, name="fetch", meanwhile=meanwhile)

    def _record_again(self, job: Job, *, reason: str) -> None:
        assert job.reference_id is not None
        reference = self._store.repos.variant(job.reference_id)
        key = job_key("baseline", variant_key=reference.key, protocol=job.protocol, reference_key=None)
        self._store.jobs.redo(key, reason=reason, now=self._clock.now())

    def _ask(
        self, job: Job, variant: Variant, halt: Halt, progress: Callable[[ProgressEvent], None], capacity: Capacity
    ) -> Asked:
        """The job's spec with real paths; fetches what is not there yet."""
        settings, data, protocol = self._settings, self._settings.data, job.protocol
        machine = self._machine(job, capacity)
        baseline: Path | None = None
        corpus: Path | None = None
        if job.kind == "quality":
            assert job.reference_id is not None
            reference = self._store.repos.variant(job.reference_id)
            recorded = self._store.results.baseline(reference.key, protocol.fingerprint)
            if recorded is None or not Path(recorded.path).exists():
                self._record_again(job, reason="its file is gone")
                raise BaselineGoneError(f"The baseline of {reference.name} is gone; it is recorded again.")
            baseline = Path(recorded.path)
            if baseline.parent.name != "baselines":
                touch(baseline.parent)
        if self._runner.local_files:
            model = self._fetch(
                variant,
                halt,
                progress,
                lambda: model_path(data, variant, self._hub, disk=self._disk, stop=halt.is_set),
            )
        else:
            model = model_folder(data, variant) / Path(variant.files[0].path).name
        if job.kind == "baseline":
            given = settings.corpus
            known = protocol.corpus.sha256 in CORPUS_SOURCES
            # The operator's own file of protocols is only looked into where it is needed.
            sources = CORPUS_SOURCES if known else settings.corpus_sources()
            corpus = self._fetch(
                variant,
                halt,
                progress,
                lambda: corpus_path(data, protocol, given=given, hub=self._hub, sources=sources),
            )
        try:
            work_folder(data, job.key).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"The data folder can't be written ({error.strerror}). Check it.") from None
        return ask(job, variant, settings, model=model, machine=machine, corpus=corpus, baseline=baseline)

    def _machine(self, job: Job, capacity: Capacity) -> Machine:
        """How the job may use its machine: as the operator says, else as the model fits.

        Raises:
            TooLargeError: it does not fit.
        """
        return self._settings.machine

    def _keep_patiently(self, job: Job, variant: Variant, result: Result, seconds: float) -> None:
        """Hours of measuring are not given up because the disk is full or the database busy at this moment."""
        for pause in _PAUSES:
            try:
                self._keep(job, variant, result, seconds)
                return
            except StorageError as error:
                logger.warning("The result of job %d could not be stored yet: %s", job.id, error)
                self._clock.sleep(pause)
        self._keep(job, variant, result, seconds)

    def _keep(self, job: Job, variant: Variant, result: Result, seconds: float) -> None:
        """Write the result and the job's end in one transaction; nothing if the job was taken over meanwhile."""
        now = self._clock.now()
        with immediate(self._store.db):
            if not self._store.leases.finish(job.id, self.name, now=now, seconds=seconds):
                logger.warning("Job %d was taken over; its result is left to the other worker.", job.id)
                return
            if isinstance(result, BaselineResult):
                self._store.results.save_baseline(variant.key, job.protocol.fingerprint, result, now=now)
            elif isinstance(result, QualityResult | SpeedResult):
                reference = self._store.repos.variant(job.reference_id).key if job.reference_id else None
                if isinstance(result, QualityResult):
                    compare_with_first(self._store, job, variant, result, now=now)
                self._store.results.save_measurement(
                    variant.key, job.protocol.fingerprint, result, reference_key=reference, job_id=job.id, now=now
                )
                if isinstance(result, SpeedResult) and variant.inspection:
                    remember_memory(self._store, job, variant.inspection.architecture, result)
                if isinstance(result, QualityResult) and other_runners(self._settings, self._runner.name):
                    recheck(self._store, job, variant, result, runner=self._runner.name, now=now)
        self._tell(JobEvent(job, variant, "done"))

    def _fail(self, job: Job, variant: Variant, error: QuantcardError) -> None:
        # The reason may stand on a card: where our folders are is nobody's business.
        reason = str(error).replace(f"{self._settings.data}{os.sep}", "")
        state = self._store.leases.fail(
            job.id,
            self.name,
            error_type=type(error).__name__,
            reason=reason,
            retry=retry_class(error),
            now=self._clock.now(),
        )
        if state is None:
            return
        if state != "todo":
            drop_work(self._settings.data, job.key)
        self._tell(JobEvent(job, variant, state, error=reason, cause=error))


def most_memory(capacity: Capacity) -> int | None:
    """The most bytes that a job may need to fit a runner's machine; None: any."""
    return None if capacity.memory is None else capacity.memory + sum(capacity.vram)


def stages_of(settings: Settings) -> Stages:
    """How long each stage may take."""
    return Stages(
        queued=settings.queue_timeout_s,
        fetching=settings.fetch_timeout_s,
        measuring=settings.job_timeout_s,
        uploading=settings.upload_timeout_s,
    )


def nonce(store: Store, run_id: str) -> str:
    """What a run's result has to come with: the same after a restart, and known to nobody who has not our database."""
    secret = store.results.get("queue:secret")
    if not secret:
        with immediate(store.db):
            secret = store.results.get("queue:secret") or secrets.token_hex(32)
            store.results.put("queue:secret", secret)
    return hmac.new(bytes.fromhex(secret), run_id.encode(), hashlib.sha256).hexdigest()[:32]
