"""Watches over a job while it runs: prolongs its lease, hears of its cancellation, holds each stage to its time."""

from __future__ import annotations

import logging
import threading
import time

from bot.clock import Clock
from bot.queue.runners.base import FETCHING, MEASURING, QUEUED, UPLOADING, Stages
from bot.settings import Settings
from bot.store import Store
from bot.store.jobs import Job
from core.contract import ProgressEvent
from core.sandbox.child import StopReason

logger = logging.getLogger(__name__)

#: Seconds between looks at whether a job was cancelled.
_LOOK_S = 2.0
#: Seconds that a worker has for clearing away after it ended its job.
_ENDING_S = 1.0


def group_of(stage: str) -> str:
    """The stage with a deadline that a reported one belongs to."""
    return stage if stage in (QUEUED, FETCHING, UPLOADING) else MEASURING


def overdue(stages: Stages, stage: str, seconds: float) -> float | None:
    """The limit (seconds) that a stage has passed, or None. Pure."""
    limit = {QUEUED: stages.queued, FETCHING: stages.fetching, UPLOADING: stages.uploading}
    allowed = limit.get(stage, stages.measuring)
    return allowed if seconds > allowed else None


class Halt:
    """A job's reasons to stop; the first one counts, but for a shutdown, which any other one outweighs."""

    def __init__(self, shutdown: threading.Event) -> None:
        self._shutdown = shutdown
        self._reason: StopReason | None = None
        #: The stage that took too long, and its limit in seconds.
        self.deadline: tuple[str, float] | None = None

    def give(self, reason: StopReason) -> None:
        """Stop the job for this reason."""
        self._reason = self._reason or reason

    @property
    def reason(self) -> StopReason:
        """Why the job is to stop."""
        return self._reason or "shutdown"

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._reason is not None or self._shutdown.is_set()


class Watch:
    """A thread beside a running job; use as a context manager."""

    def __init__(self, settings: Settings, clock: Clock, job: Job, worker: str, halt: Halt, stages: Stages) -> None:
        self._settings, self._clock, self._job, self._worker = settings, clock, job, worker
        self._halt, self._stages = halt, stages
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._stage, self._since = FETCHING, time.monotonic()
        self._latest: ProgressEvent | None = None
        self._thread = threading.Thread(target=self._beat, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def saw(self, event: ProgressEvent) -> None:
        """Note a job's progress; it is stored at the next beat."""
        group = group_of(event.stage)
        with self._lock:
            self._latest = event
            if group != self._stage:
                self._stage, self._since = group, time.monotonic()

    def _beat(self) -> None:
        lease = self._settings.lease_s
        every, beaten, told = min(_LOOK_S, lease / 4), 0.0, None
        store: Store | None = None
        while not self._done.wait(every):
            with self._lock:
                stage, seconds, latest = self._stage, time.monotonic() - self._since, self._latest
            limit = overdue(self._stages, stage, seconds)
            if limit is not None and self._halt.deadline is None:
                self._halt.deadline = (stage, limit)
                self._halt.give("deadline")
            if latest is told and time.monotonic() - beaten < lease / 4:
                due = False
            else:
                due, beaten, told = True, time.monotonic(), latest
            try:
                store = store or Store(self._settings.db)
                self._ask(store, latest, due=due)
            except Exception as error:
                # Hours of measuring are not given up for a lease that can't be prolonged just now.
                logger.warning("The lease of job %d could not be prolonged: %s", self._job.id, error)
                if store is not None:
                    store.close()
                store = None
        if store is not None:
            store.close()

    def _ask(self, store: Store, latest: ProgressEvent | None, *, due: bool) -> None:
        if store.leases.cancelled(self._job.id):
            self._halt.give("cancelled")
        if not due:
            return
        now, lease = self._clock.now(), self._settings.lease_s
        kept = store.leases.heartbeat(self._job.id, self._worker, now=now, lease=lease, progress=latest)
        # It may be our own end of it that was written down just now.
        if not kept and not self._halt.is_set() and not self._done.wait(_ENDING_S):
            logger.warning("Job %d was taken over by another worker; it is stopped here.", self._job.id)
            self._halt.give("lost")
