"""The service: timers, webhooks, status page, worker and leaderboard in one process, ending cleanly on SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from bot.bell import Bell
from bot.clock import SystemClock
from bot.cycle import Cycle, CycleReport
from bot.hub.door import HubDoor
from bot.leaderboard import queue_of, results_of, taker
from bot.progress import Bars, say
from bot.settings import Settings
from bot.status import WEBHOOKS, remember_cycle
from bot.status_report import scrub
from bot.store import Store
from bot.store.overview import Overview
from bot.store.switch import paused
from bot.web import fragments, status
from bot.web.hooks import Webhooks
from core.errors import QuantcardError, SettingsError, StorageError

logger = logging.getLogger(__name__)

#: Seconds for open connections (pages that listen for events never close theirs), and for the worker, to end.
_GRACE_S = 3
_WORKER_GRACE_S = 20.0
#: Seconds between the beginnings of cycles that webhooks and requests ask for.
_SPACING_S = 5.0


class _Server(uvicorn.Server):
    """uvicorn that tells us at once when a signal ends it, and does not raise that signal again.

    Raised again, SIGTERM would kill the process before the running job is put back.
    """

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self.interrupted = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = number == signal.SIGINT
        # Connections that a page keeps open are cut after a while; uvicorn would print a traceback for each.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._on_signal()
        self.handle_exit(number, frame)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address that was set; refused in a sentence, before anything else is started."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise SettingsError(f"The address {host} can't be used ({error.strerror}). Set another with --host.") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(512)
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"Port {port} of {host} can't be used ({error.strerror}). Set another with --port."
        ) from None
    return sock


class Service:
    """Everything ``quantcard serve`` runs."""

    def __init__(self, settings: Settings, hub: HubDoor) -> None:
        self.settings, self.hub, self.clock = settings, hub, SystemClock()
        self.stop = threading.Event()
        self.bell = Bell(spacing=_SPACING_S)
        self.last: dict[str, Any] = {"cycles": 0}
        self.results = results_of(settings)
        self.webhooks = Webhooks(settings, wake=self._due)
        self._scheduler = BackgroundScheduler(timezone="UTC")

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a running job is put back.

        Raises:
            QuantcardError: the settings, the token or the database can't be used at all.
        """
        self.settings.protocol_in_force()
        with Store(self.settings.db):
            pass
        with _listen(self.settings.host, self.settings.port) as sock:
            self._scheduler.add_job(
                self._poll, "interval", seconds=self.settings.poll_interval_s, coalesce=True, misfire_grace_time=None
            )
            # A daemon: a Hub that hangs at the wrong moment must not keep the process from ending.
            worker = threading.Thread(target=self._work, name="worker", daemon=True)
            server = _Server(
                uvicorn.Config(self.app(), log_level="warning", timeout_graceful_shutdown=_GRACE_S), self._end
            )
            self.results.refresh()
            self._poll()
            self._scheduler.start()
            worker.start()
            where = f"http://{self.settings.host}:{sock.getsockname()[1]}"
            say(f"Serving at {where}  (leaderboard, /status, /healthz, /webhooks/hub)")
            try:
                server.run(sockets=[sock])
            finally:
                self._end()
                self.webhooks.close()
                self._scheduler.shutdown(wait=False)
                worker.join(timeout=_WORKER_GRACE_S)
                say("Stopped.")
        if server.interrupted:
            raise KeyboardInterrupt

    def _end(self) -> None:
        """Have the worker put its job back and end."""
        self.stop.set()
        self.bell.end()

    def _poll(self) -> None:
        """It is time for a whole cycle."""
        self.bell.ring(poll=True)

    def _due(self) -> None:
        """Something waits to be looked into; polling stays the truth, this only makes it sooner."""
        self.bell.ring(poll=False)

    def app(self) -> FastAPI:
        """The HTTP side: health, webhooks, status, pull mode, leaderboard."""
        app = FastAPI(title="quantcard", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/healthz", self._health, methods=["GET"])
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
        return {"budget": self.hub.budget.told(), "webhooks": self.webhooks.counts}

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
        while (poll := self.bell.wait()) is not None:
            try:
                self._cycle(poll=poll)
            except QuantcardError as error:
                say(f"Error: {error}")
                self.last["error"] = scrub(str(error))
            except Exception:
                logger.exception("A cycle failed; the next one tries again.")
                self.last["error"] = "internal error, see the log"

    def _cycle(self, *, poll: bool) -> None:
        started = self.clock.now()
        with Store(self.settings.db) as store, Bars() as bars:
            cycle = Cycle(
                store,
                self.hub,
                self.settings,
                self.clock,
                tell_job=bars.job,
                tell=say,
                stop=self.stop,
                pause=self.bell.rung,
            )
            try:
                report = cycle.run(poll=poll)
            except Exception as failure:
                # A token that is not known, say: the status has to tell it too.
                said = failure
                if not isinstance(said, QuantcardError):
                    said = QuantcardError(f"An internal error ({type(failure).__name__}); see the log.")
                self._remember(store, CycleReport(errors=[("the cycle", said)]), started=started)
                raise
            self._remember(store, report, started=started)
        self.last = {
            "cycles": self.last["cycles"] + 1,
            "repos_changed": len(report.poll.changed),
            "jobs_done": report.jobs_done,
            "errors": len(_errors(report)),
        }
        if report.poll.resume_in is not None and not self.stop.is_set():
            self._resume(report.poll.resume_in)
        self.results.refresh()
        for what, error in _errors(report):
            say(f"{what}: {error}")
        for outcome in report.outcomes:
            if outcome.decision.action in ("open", "update") and outcome.url:
                say(f"Pull {outcome.decision.action}: {outcome.url}")

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
