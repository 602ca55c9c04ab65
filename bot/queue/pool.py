"""Workers side by side: one for each slot of each runner, until nothing is left to do or they are told to stop."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from bot.clock import Clock
from bot.hub.door import HubDoor
from bot.queue.ahead import Ahead
from bot.queue.clearing import clear_away
from bot.queue.needs import disk_of
from bot.queue.runners.base import Runner
from bot.queue.worker import JobEvent, Worker, alive, most_memory
from bot.settings import Settings
from bot.store import Store
from bot.store.repos import Variant
from core.errors import HubRateLimitError, HubUnreachableError, QuantcardError
from core.sandbox.scratch import sweep

logger = logging.getLogger(__name__)

#: A waiting retry due within this many seconds is waited for.
PATIENCE = 60.0
#: Jobs in a row that could not start for want of the Hub, after which the queue waits for the next cycle.
_HUB_PATIENCE = 3
#: Times that a worker whose database can't be used begins again, and seconds between them.
_TRIES, _REST_S = 5, 5.0
#: Seconds after which jobs that are ready and that nobody takes are looked at.
_LOOK_S = 60.0


@dataclass
class Pool:
    """What its workers share.

    Args:
        tell_job: called with every job event, by one worker at a time.
        tell: called with a sentence for people.
        stop: when set, running jobs are put back.
        pause: asked between jobs; true lets no further job begin.
        forever: wait for new jobs instead of ending when there are none.
    """

    store: Store
    hub: HubDoor
    settings: Settings
    clock: Clock
    runners: Sequence[Runner]
    tell_job: Callable[[JobEvent], None]
    tell: Callable[[str], None]
    stop: threading.Event
    pause: Callable[[], bool] = lambda: False
    forever: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy: int = 0
    _hub_failures: int = 0
    _told: float | None = None
    _looked: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Work until nothing may start within :data:`PATIENCE`, or ``stop`` or ``pause`` say so.

        Jobs of workers that are known to have ended are taken back first.
        """
        if lost := self.store.leases.release_gone(alive, now=self.clock.now()):
            self.tell(f"{lost} jobs of a worker that is gone were put back.")
        # A process that was killed after its last job is followed by one that has none.
        clear_away(self.store, self.settings.data)
        sweep()
        with self._ahead():
            self._run_slots()
        if not self.stop.is_set():
            self._refuse_too_large(self.store)

    def _ahead(self) -> AbstractContextManager[object]:
        """Fetches what comes next, where files have to be here to be measured."""
        n_files, rate = self.settings.download_ahead, self.settings.download_ahead_mb_per_s
        if not n_files or not any(runner.local_files for runner in self.runners):
            return nullcontext()

        def upcoming() -> list[Variant]:
            with Store(self.settings.db) as store:
                if store.jobs.paused():
                    return []
                ids = dict.fromkeys(job.variant_id for job in store.standing.upcoming(4 * n_files))
                return [store.repos.variant(one) for one in list(ids)[:n_files]]

        disk, each = disk_of(self.settings), rate * 1e6 if rate else None
        return Ahead(self.settings.data, self.hub, disk, upcoming, bytes_per_s=each)

    def _run_slots(self) -> None:
        slots = [runner for runner in self.runners for _ in range(runner.slots)]
        if len(slots) == 1:
            self._work(self.store, slots[0])
        else:
            threads = [
                threading.Thread(target=self._alone, args=(one,), name=f"worker-{one.name}", daemon=True)
                for one in slots
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _alone(self, runner: Runner) -> None:
        """A worker with a connection of its own; one that fails leaves the others be, and comes back."""
        for _ in itertools.count() if self.forever else range(_TRIES):
            try:
                with Store(self.settings.db) as store:
                    self._work(store, runner)
                return
            except QuantcardError as error:
                self.tell(f"A worker ({runner.name}) failed: {error}")
            except Exception:
                logger.exception("A worker (%s) ended in an error of ours.", runner.name)
            if self.stop.wait(_REST_S):
                return

    def _work(self, store: Store, runner: Runner) -> None:
        worker = Worker(
            store, self.hub, self.settings, self.clock, runner=runner, tell=self._tell_event, stop=self.stop
        )
        while not self.stop.is_set():
            if not self.forever and self._hub_failures >= _HUB_PATIENCE:
                return
            if self.forever and self.pause():
                return
            with self._lock:
                self._busy += 1
            try:
                ran = worker.run_one()
            finally:
                with self._lock:
                    self._busy -= 1
            if self.pause() if ran else not self._wait(store):
                return

    def _wait(self, store: Store) -> bool:
        """Wait a moment for a job; False where there is nothing to be waited for."""
        if store.jobs.paused() and not self.forever:
            return False
        due = store.jobs.next_start()
        wait = (due or 0) - self.clock.now()
        if self.forever and due == 0:
            with self._lock:
                late, self._looked = time.monotonic() > self._looked + _LOOK_S, time.monotonic()
            if late:
                self._refuse_too_large(store)
        with self._lock:
            busy = self._busy > 0
        # What is ready and was not taken fits another runner only.
        if not self.forever and not busy and (not due or wait > PATIENCE):
            return False
        if due and 1 < wait <= PATIENCE and due != self._told and not busy:
            self._told = due
            self.tell(f"Waiting {wait:.0f} s for a job that may be tried again then …")
        self.clock.sleep(min(max(wait, 0.05), 1.0) if not busy and due else 0.5)
        return True

    def _tell_event(self, event: JobEvent) -> None:
        with self._lock:
            if event.state != "running":
                away = isinstance(event.cause, HubUnreachableError | HubRateLimitError)
                self._hub_failures = self._hub_failures + 1 if away else 0
            self.tell_job(event)

    def _refuse_too_large(self, store: Store) -> None:
        """End jobs that fit no runner, where every runner's size is known."""
        most = [most_memory(runner.capacity()) for runner in self.runners]
        known = [one for one in most if one is not None]
        if not known or len(known) < len(most):
            return
        largest = max(known)
        if ended := store.leases.refuse_larger(largest, now=self.clock.now()):
            self.tell(f"{ended} jobs need more memory than any runner has ({largest / 1e9:.0f} GB).")
