"""The service's workers: they measure for as long as the service lives, whatever polling and publishing do meanwhile.

A job may take hours; an owner's word on a pull, or a new upload, is not to wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from bot.clock import Clock
from bot.hub.door import HubDoor
from bot.queue.pool import Pool
from bot.queue.runners.base import Runner
from bot.queue.runners.registry import runners_of
from bot.queue.worker import JobEvent
from bot.settings import Settings
from bot.store import Store
from core.errors import QuantcardError

logger = logging.getLogger(__name__)

#: Seconds after which runners that can't be had, or a database that can't be used, are tried again.
_AGAIN_S = 30.0


class Measuring:
    """A thread that has the queue worked on.

    Args:
        tell_job: called with every job event, by one worker at a time.
        tell: called with a sentence for people.
        job_ended: called after each try at a job.
        trouble: called with the reason where nothing can be measured, and with None where it can again.
        draining: once true, no further job is begun.
        stop: when set, running jobs are put back.
    """

    def __init__(
        self,
        settings: Settings,
        hub: HubDoor,
        clock: Clock,
        *,
        tell_job: Callable[[JobEvent], None],
        tell: Callable[[str], None],
        job_ended: Callable[[JobEvent], None],
        trouble: Callable[[str | None], None],
        draining: Callable[[], bool],
        stop: threading.Event,
    ) -> None:
        self._settings, self._hub, self._clock = settings, hub, clock
        self._tell_job, self._tell = tell_job, tell
        self._job_ended, self._trouble = job_ended, trouble
        self._draining, self._stop = draining, stop
        self._thread = threading.Thread(target=self._run, name="measuring", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether a job may still be under way."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        told: str | None = None
        while not self._stop.is_set() and not self._draining():
            try:
                runners = runners_of(self._settings, self._hub)
                self._trouble(None)
                self._work(runners)
                told = None
            except QuantcardError as error:
                self._trouble(str(error))
                if told != str(error):
                    self._tell(f"Nothing can be measured: {error}")
                told = str(error)
            except Exception:
                logger.exception("Measuring failed; it begins again.")
                self._trouble("An internal error; see the log.")
            if self._stop.wait(_AGAIN_S if not self._draining() else 0):
                return

    def _work(self, runners: list[Runner]) -> None:
        def told(event: JobEvent) -> None:
            self._tell_job(event)
            if event.state != "running":
                self._job_ended(event)

        with Store(self._settings.db) as store:
            Pool(
                store,
                self._hub,
                self._settings,
                self._clock,
                runners,
                tell_job=told,
                tell=self._tell,
                stop=self._stop,
                pause=self._draining,
                forever=True,
            ).run()
