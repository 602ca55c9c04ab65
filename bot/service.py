"""The service: timers, webhook endpoint, worker and leaderboard in one process, ending cleanly on SIGTERM."""

from __future__ import annotations

import hmac
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from bot.clock import SystemClock
from bot.cycle import Cycle, CycleReport
from bot.hub.door import HubDoor
from bot.leaderboard import queue_of, results_of, taker
from bot.progress import Bars, say
from bot.settings import Settings
from bot.store import Store
from core.errors import QuantcardError, SettingsError

logger = logging.getLogger(__name__)

#: A webhook's body is a few kilobytes.
_MAX_BODY = 256 << 10
_PULL_EVENTS = ("discussion", "discussion.comment")
#: Seconds for open connections (pages that listen for events never close theirs), and for the worker, to end.
_GRACE_S = 3
_WORKER_GRACE_S = 20.0


def wakes(payload: dict[str, Any]) -> bool:
    """Whether a webhook's payload is a reason to poll: a push to main of a model repo, or news of a pull. Pure.

    A push to ``refs/pr/N`` is not: our own pulls cause those, and the bot would wake itself.
    """
    event, repo = payload.get("event"), payload.get("repo")
    scope = event.get("scope") if isinstance(event, dict) else None
    if not isinstance(repo, dict) or repo.get("type") != "model" or not isinstance(scope, str):
        return False
    if scope == "repo.content":
        refs = payload.get("updatedRefs")
        return isinstance(refs, list) and any(
            isinstance(ref, dict) and ref.get("ref") == "refs/heads/main" for ref in refs
        )
    return scope in ("repo", *_PULL_EVENTS)


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
        self.settings, self.hub = settings, hub
        self.stop = threading.Event()
        self.wake = threading.Event()
        self.last: dict[str, Any] = {"cycles": 0}
        self.results = results_of(settings)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a running job is put back.

        Raises:
            QuantcardError: the settings, the token or the database can't be used at all.
        """
        self.settings.protocol_in_force()
        with Store(self.settings.db):
            pass
        with _listen(self.settings.host, self.settings.port) as sock:
            scheduler = BackgroundScheduler(timezone="UTC")
            scheduler.add_job(
                self.wake.set, "interval", seconds=self.settings.poll_interval_s, coalesce=True, misfire_grace_time=None
            )
            # A daemon: a Hub that hangs at the wrong moment must not keep the process from ending.
            worker = threading.Thread(target=self._work, name="worker", daemon=True)
            server = _Server(
                uvicorn.Config(self.app(), log_level="warning", timeout_graceful_shutdown=_GRACE_S), self._end
            )
            self.results.refresh()
            self.wake.set()
            scheduler.start()
            worker.start()
            where = f"http://{self.settings.host}:{sock.getsockname()[1]}"
            say(f"Serving at {where}  (leaderboard, /healthz, /webhooks/hub)")
            try:
                server.run(sockets=[sock])
            finally:
                self._end()
                scheduler.shutdown(wait=False)
                worker.join(timeout=_WORKER_GRACE_S)
                say("Stopped.")
        if server.interrupted:
            raise KeyboardInterrupt

    def _end(self) -> None:
        """Have the worker put its job back and end."""
        self.stop.set()
        self.wake.set()

    def app(self) -> FastAPI:
        """The HTTP side: health, webhook, leaderboard."""
        app = FastAPI(title="quantcard", docs_url=None, redoc_url=None, openapi_url=None)

        @app.get("/healthz")
        def health() -> JSONResponse:
            try:
                with Store(self.settings.db) as store:
                    return JSONResponse({"ok": True, "jobs": store.jobs.counts(), **self.last})
            except QuantcardError as error:
                return JSONResponse({"ok": False, "error": str(error)}, status_code=503)

        @app.post("/webhooks/hub")
        async def webhook(request: Request) -> JSONResponse:
            return await self._webhook(request)

        self._mount_leaderboard(app)
        return app

    async def _webhook(self, request: Request) -> JSONResponse:
        secret = self.settings.webhook_secret
        given = request.headers.get("X-Webhook-Secret", "")
        # Closed when no secret is set: an open one would let anybody make us poll.
        if not secret:
            return JSONResponse({"error": "No webhook secret is set."}, status_code=403)
        if not hmac.compare_digest(given.encode(), secret.encode()):
            return JSONResponse({"error": "Wrong secret."}, status_code=403 if given else 401)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY:
                return JSONResponse({"error": "Too large."}, status_code=413)
        try:
            payload = json.loads(body)
        except ValueError:
            return JSONResponse({"error": "Not JSON."}, status_code=400)
        taken = isinstance(payload, dict) and wakes(payload)
        if taken:
            # However many webhooks come, they make one poll.
            self.wake.set()
        return JSONResponse({"taken": taken})

    def _mount_leaderboard(self, app: FastAPI) -> None:
        import gradio

        from space.app import build
        from space.look import look

        blocks = build(
            self.results,
            # Whoever asks should see it in the queue at once, not after the next timer.
            submit=taker(self.settings, then=self.wake.set),
            queue=queue_of(self.settings),
        )
        gradio.mount_gradio_app(
            app, blocks, path="/", footer_links=["api"], ssr_mode=False, max_file_size="1kb", **look()
        )

    def _work(self) -> None:
        """Run a cycle at every wake-up; an error ends the cycle, never the service."""
        while not self.stop.is_set():
            self.wake.wait()
            self.wake.clear()
            if self.stop.is_set():
                return
            try:
                self._cycle()
            except QuantcardError as error:
                say(f"Error: {error}")
                self.last["error"] = str(error)
            except Exception:
                logger.exception("A cycle failed; the next one tries again.")
                self.last["error"] = "internal error, see the log"

    def _cycle(self) -> None:
        with Store(self.settings.db) as store, Bars() as bars:
            cycle = Cycle(
                store,
                self.hub,
                self.settings,
                SystemClock(),
                tell_job=bars.job,
                tell=say,
                stop=self.stop,
                pause=self.wake.is_set,
            )
            report = cycle.run()
        self.last = {
            "cycles": self.last["cycles"] + 1,
            "repos_changed": len(report.poll.changed),
            "jobs_done": report.jobs_done,
            "errors": [f"{what}: {error}" for what, error in _errors(report)],
        }
        self.results.refresh()
        for what, error in _errors(report):
            say(f"{what}: {error}")
        for outcome in report.outcomes:
            if outcome.decision.action in ("open", "update") and outcome.url:
                say(f"Pull {outcome.decision.action}: {outcome.url}")


def _errors(report: CycleReport) -> list[tuple[str, QuantcardError]]:
    return [*report.poll.errors, *report.errors]
