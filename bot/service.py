"""The service: timers, webhooks, status page, worker and leaderboard in one process, ending cleanly on SIGTERM."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from bot import logs
from bot.bell import Bell
from bot.clock import SystemClock
from bot.cycle import Cycle, CycleReport
from bot.ending import Ending
from bot.health import Health
from bot.hub.door import HubDoor
from bot.leaderboard import queue_of, results_of, taker
from bot.lock import InstanceLock
from bot.measuring import Measuring
from bot.queue.worker import JobEvent
from bot.settings import Settings
from bot.status import WEBHOOKS, remember_cycle
from bot.status_report import scrub
from bot.steady import ClockWatch
from bot.store import Store
from bot.store.backup import back_up_into, newest_backup
from bot.store.counting import variants
from bot.store.overview import Overview
from bot.store.switch import paused
from bot.vitals import Vitals
from bot.voice import Voice
from bot.web import fragments, health, metrics, status
from bot.web.hooks import Webhooks
from bot.web.server import Server, listen
from core.errors import QuantcardError, StorageError

logger = logging.getLogger(__name__)

#: Seconds for the worker to put its jobs back; and after a second signal.
_WORKER_GRACE_S, _HURRIED_S = 20.0, 3.0
#: Seconds between the beginnings of cycles that webhooks and requests ask for.
_SPACING_S = 5.0
#: Seconds between looks at what is too slow to be looked at whenever somebody asks.
_WEIGH_S = 300.0


class Service:
    """Everything ``quantcard serve`` runs."""

    def __init__(self, settings: Settings, hub: HubDoor) -> None:
        self.settings, self.hub, self.clock = settings, hub, SystemClock()
        self.stop = threading.Event()
        self.bell = Bell(spacing=_SPACING_S)
        self.last: dict[str, Any] = {"cycles": 0}
        self.results = results_of(settings)
        self.webhooks = Webhooks(settings, wake=self._due)
        self.vitals = Vitals(started_at=self.clock.now())
        self.health = Health(settings, self.vitals)
        self.metrics = metrics.Metrics(
            settings, self.health, budget=hub.budget.told, webhooks=lambda: self.webhooks.counts
        )
        self._voice = Voice(settings.log_format)
        self._scheduler = BackgroundScheduler(timezone="UTC")
        self._clock_watch = ClockWatch(self._scheduler, jumped=self._clock_jumped)
        self._worker = threading.Thread(target=self._work, name="cycles", daemon=True)
        self._tell_job: Callable[[JobEvent], None] = lambda _: None
        self._measuring = Measuring(
            settings,
            hub,
            self.clock,
            tell_job=self._job_came_on,
            tell=self._voice.say,
            job_ended=self._job_ended,
            trouble=lambda said: self.vitals.note(trouble=scrub(said) if said else None),
            draining=lambda: self.vitals.seen.draining,
            stop=self.stop,
        )
        self._server: Server | None = None
        self._jobs_told = 0
        self._ending = Ending(
            drain_s=settings.drain_s,
            busy=self._is_busy,
            begin=self._drain,
            put_back=self._end,
            leave=self._leave,
            hurry=self._hurry,
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a running job is put back.

        Raises:
            QuantcardError: the settings, the token or the database can't be used at all, or another service has it.
        """
        settings = self.settings
        logs.serve(form=settings.log_format, level=settings.log_level)
        settings.protocol_in_force()
        with (
            InstanceLock(settings.db, now=self.clock.now()),
            listen(settings.host, settings.port) as sock,
            # Open as long as we run: on a full disk one that is not open can't even be read.
            Store(settings.db),
        ):
            self._server = server = Server(self.app())
            self.results.refresh()
            self._poll()
            self._start_timers()
            with self._ending.listening(), self._voice.jobs() as self._tell_job:
                self._worker.start()
                self._measuring.start()
                where = f"http://{settings.host}:{sock.getsockname()[1]}"
                self._voice.say(f"Serving at {where}  (leaderboard, /status, /healthz, /webhooks/hub)")
                try:
                    server.run(sockets=[sock])
                finally:
                    self._close()
        if self._ending.interrupted:
            raise KeyboardInterrupt

    def _start_timers(self) -> None:
        add, settings = self._scheduler.add_job, self.settings
        every: dict[str, Any] = {"trigger": "interval", "coalesce": True, "misfire_grace_time": None}
        now = datetime.now(UTC)
        add(self._poll, seconds=settings.poll_interval_s, **every)
        add(self._weigh, seconds=_WEIGH_S, next_run_time=now, **every)
        if settings.backup_dir is not None:
            # A service that is started again and again makes no more copies than one that runs.
            newest = newest_backup(settings.backup_dir, settings.db.stem)
            self.vitals.note(backup_at=newest)
            age = self.clock.now() - newest if newest is not None else settings.backup_interval_s
            wait = min(max(settings.backup_interval_s - age, 0.0), settings.backup_interval_s)
            first = now + timedelta(seconds=wait)
            add(self._back_up, seconds=settings.backup_interval_s, next_run_time=first, **every)
        self._scheduler.start()
        self._clock_watch.start()

    def _drain(self) -> None:
        """Begin no further job and no further cycle."""
        self.vitals.note(draining=True)
        self.bell.end()
        if self.settings.drain_s and self._is_busy():
            self._voice.say(f"Ending: running jobs have {self.settings.drain_s:.0f} s. A second signal ends at once.")

    def _end(self) -> None:
        """Have the worker put its jobs back and end."""
        self.stop.set()
        self.bell.end()

    def _leave(self) -> None:
        """Have the server end."""
        # Connections that a page keeps open are cut after a while; uvicorn would print a traceback for each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        if self._server is not None:
            self._server.should_exit = True

    def _hurry(self) -> None:
        if self._server is not None:
            self._server.force_exit = True

    def _close(self) -> None:
        """Wait for what ends, but not for long."""
        self.vitals.note(draining=True)
        self._end()
        self.webhooks.close()
        self._clock_watch.close()
        self._scheduler.shutdown(wait=False)
        began = time.monotonic()
        while self._is_busy():
            grace = _HURRIED_S if self._ending.hurried.is_set() else _WORKER_GRACE_S
            if time.monotonic() > began + grace:
                break
            self._worker.join(timeout=0.1)
            self._measuring.join(timeout=0.1)
        self._voice.say("Stopped.")
        if self._is_busy() and not self._ending.hurried.is_set():
            # It hangs; its jobs' leases run out. Threads of its own must not keep the process.
            threading.Thread(target=self._ending.at_once, daemon=True).start()

    def _is_busy(self) -> bool:
        """Whether a job or a cycle is under way."""
        return self._worker.is_alive() or self._measuring.is_alive()

    def _job_came_on(self, event: JobEvent) -> None:
        self.vitals.alive()
        self._tell_job(event)

    def _job_ended(self, event: JobEvent) -> None:
        """What came of it is to be told at once."""
        if event.state == "done":
            self.vitals.count("jobs_done")
        self._due()

    def _poll(self) -> None:
        """It is time for a whole cycle."""
        self.bell.ring(poll=True)

    def _due(self) -> None:
        """Something waits to be looked into; polling stays the truth, this only makes it sooner."""
        self.bell.ring(poll=False)

    def _clock_jumped(self, seconds: float) -> None:
        self.vitals.count("clock_jumps")
        way = "forward" if seconds > 0 else "back"
        logger.warning("This machine's clock was set %s by %.0f s; the timers keep their time.", way, abs(seconds))

    def _weigh(self) -> None:
        """Look at what takes long to look at: the data folder, wide tables, the jobs' history for the first time."""
        try:
            self.vitals.note(data_bytes=_bytes_by_folder(self.settings.data))
            with Store(self.settings.db) as store:
                self.vitals.note(variants=variants(store.db))
            if self.settings.metrics:
                self.metrics.stored()
        except (QuantcardError, OSError) as error:
            logger.warning("What is stored could not be weighed: %s", error)

    def _back_up(self) -> None:
        """Copy the database; that it fails is no reason to end."""
        assert self.settings.backup_dir is not None
        now = self.clock.now()
        try:
            made = back_up_into(self.settings.backup_dir, self.settings.db, now=now, keep=self.settings.backup_keep)
        except (QuantcardError, OSError) as error:
            self.vitals.count("backup_failures")
            self.vitals.note(backup_error=scrub(str(error), self.settings.secrets))
            logger.error("The database could not be copied: %s", error)
            return
        self.vitals.count("backups")
        self.vitals.note(backup_at=now, backup_error=None)
        logger.info("Copied the database to %s.", made)

    def app(self) -> FastAPI:
        """The HTTP side: health, webhooks, status, pull mode, leaderboard."""
        app = FastAPI(title="quantcard", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/healthz", self._health, methods=["GET"])
        app.include_router(health.router(self.health))
        if self.settings.metrics:
            app.include_router(metrics.router(self.metrics))
        app.include_router(self.webhooks.router())
        app.include_router(status.router(self.settings, live=self._live))
        app.include_router(fragments.router(self.settings))
        self._mount_leaderboard(app)
        return app

    def _health(self) -> JSONResponse:
        try:
            with Store(self.settings.db) as store:
                polled = Overview(store.db).last_poll()
                found = {
                    "ok": True,
                    "jobs": store.jobs.counts(),
                    "last_poll_age_s": None if polled is None else round(max(0.0, self.clock.now() - polled), 1),
                    "paused": paused(store) is not None,
                }
        except QuantcardError as error:
            return JSONResponse({"ok": False, "error": scrub(str(error))}, status_code=503)
        return JSONResponse({**found, "webhooks": self.webhooks.counts.model_dump(), **self.last})

    def _live(self) -> dict[str, Any]:
        """What this process knows besides the database."""
        return {
            "budget": self.hub.budget.told(),
            "webhooks": self.webhooks.counts,
            "unready": self.health.reasons(),
        }

    def _mount_leaderboard(self, app: FastAPI) -> None:
        import gradio

        from space.app import build
        from space.look import look

        blocks = build(
            self.results,
            # Whoever asks should see it in the queue at once, not after the next timer.
            submit=taker(self.settings, then=self._due),
            queue=queue_of(self.settings),
        )
        gradio.mount_gradio_app(
            app, blocks, path="/", footer_links=["api"], ssr_mode=False, max_file_size="1kb", **look()
        )

    def _work(self) -> None:
        """Run a cycle whenever the bell rings; an error ends the cycle, never the service."""
        try:
            while (poll := self.bell.wait()) is not None:
                started = time.monotonic()
                try:
                    self._cycle(poll=poll)
                except QuantcardError as error:
                    self._failed(scrub(str(error)), started)
                    self._voice.say(f"Error: {error}")
                except Exception:
                    self._failed("internal error, see the log", started)
                    logger.exception("A cycle failed; the next one tries again.")
        finally:
            self.vitals.note(worker_died=not self.vitals.seen.draining)

    def _failed(self, said: str, started: float) -> None:
        self.last["error"] = said
        self.vitals.cycle_failed(said, seconds=time.monotonic() - started)

    def _cycle(self, *, poll: bool) -> None:
        started, since = self.clock.now(), time.monotonic()
        with Store(self.settings.db) as store:
            cycle = Cycle(
                store,
                self.hub,
                self.settings,
                self.clock,
                tell_job=self._job_came_on,
                tell=self._voice.say,
                stop=self.stop,
            )
            try:
                report = cycle.run(poll=poll, work=False)
            except Exception as failure:
                # A token that is not known, say: the status has to tell it too.
                said = failure
                if not isinstance(said, QuantcardError):
                    said = QuantcardError(f"An internal error ({type(failure).__name__}); see the log.")
                self._remember(store, CycleReport(errors=[("the cycle", said)]), started=started)
                raise
            done = self.vitals.seen.jobs_done
            report.jobs_done, self._jobs_told = done - self._jobs_told, done
            self._remember(store, report, started=started)
        errors = _errors(report)
        self.last = {
            "cycles": self.last["cycles"] + 1,
            "repos_changed": len(report.poll.changed),
            "jobs_done": self.vitals.seen.jobs_done,
            "errors": len(errors),
        }
        self.vitals.cycle_ended(seconds=time.monotonic() - since, errors=len(errors))
        if report.poll.resume_in is not None and not self.stop.is_set():
            self._resume(report.poll.resume_in)
        self.results.refresh()
        for what, error in errors:
            self._voice.say(f"{what}: {error}")
        for outcome in report.outcomes:
            if outcome.decision.action in ("open", "update") and outcome.url:
                self._voice.say(f"Pull {outcome.decision.action}: {outcome.url}")

    def _remember(self, store: Store, report: CycleReport, *, started: float) -> None:
        try:
            remember_cycle(store, report, self.hub, started=started, now=self.clock.now())
            store.results.put(WEBHOOKS, self.webhooks.counts.model_dump_json())
        except StorageError as error:
            logger.warning("What the cycle did could not be noted: %s", error)

    def _resume(self, seconds: float) -> None:
        """Go on as soon as the Hub's budget is whole again, not only at the next poll."""
        when = datetime.now(UTC) + timedelta(seconds=seconds + 1)
        self._scheduler.add_job(
            self._poll, "date", run_date=when, id="resume", replace_existing=True, misfire_grace_time=None
        )


def _errors(report: CycleReport) -> list[tuple[str, QuantcardError]]:
    return [*report.poll.errors, *report.errors]


def _bytes_by_folder(data: Path) -> dict[str, int]:
    """Bytes of each folder in the data folder; what goes away meanwhile is not counted."""
    found: dict[str, int] = {}
    for folder, _, names in os.walk(data):
        here = Path(folder)
        top = next(iter(here.relative_to(data).parts), "other")
        for name in names:
            with suppress(OSError):
                found[top] = found.get(top, 0) + (here / name).lstat().st_size
    return found
