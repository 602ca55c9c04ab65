"""The hub as a server: in a thread for tests and demos, or blocking for the command line."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from .app import create_app
from .delivery import Dispatcher
from .faults import Faults, RequestLog
from .jobs import Jobs
from .ratelimit import Quota

DEFAULT_PORT = 8790
_START_TIMEOUT_S = 15.0


class ServerDied(RuntimeError):
    """The server did not come up."""


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where it sees the protocol: without it every answer takes 40 ms more
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(512)  # callers can connect as soon as they know the address
    except OSError:
        sock.close()
        raise
    return sock


def _url(sock: socket.socket, host: str) -> str:
    port = sock.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(app: FastAPI) -> uvicorn.Server:
    # h11: it closes the connection on an unfinished answer, which the lost-response fault relies on
    config = uvicorn.Config(
        app, http="h11", log_level="warning", access_log=False, server_header=False, date_header=False
    )
    config.timeout_graceful_shutdown = 5
    return uvicorn.Server(config)


class HubServer:
    """`with HubServer(folder) as hub: HfApi(endpoint=hub.url)`. Port 0 takes a free one."""

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults | None = None,
        quota: Quota | None = None,
        remote_webhooks: bool = False,
    ) -> None:
        self.root = Path(root)
        self.faults = faults or Faults()
        self._host = host
        self._port = port
        self._quota = quota
        self._remote_webhooks = remote_webhooks
        self._url: str | None = None
        self._app: FastAPI | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address, without a slash at the end."""
        if self._url is None:
            raise RuntimeError("The server was not started")
        return self._url

    @property
    def requests(self) -> RequestLog:
        """Every request that came in."""
        return self.faults.requests

    @property
    def dispatcher(self) -> Dispatcher:
        """The webhook deliveries of the running server."""
        if self._app is None:
            raise RuntimeError("The server was not started")
        dispatcher: Dispatcher = self._app.state.hub.dispatcher
        return dispatcher

    @property
    def jobs(self) -> Jobs:
        """The Jobs of the running server."""
        if self._app is None:
            raise RuntimeError("The server was not started")
        jobs: Jobs = self._app.state.hub.jobs
        return jobs

    def start(self) -> HubServer:
        """Start, and return once it answers."""
        sock = _listen(self._host, self._port)
        self._url = _url(sock, self._host)
        self._app = create_app(
            self.root,
            base_url=self._url,
            faults=self.faults,
            quota=self._quota,
            remote_webhooks=self._remote_webhooks,
        )
        server = self._server = _server(self._app)
        thread = self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [sock]}, name="localhub", daemon=True
        )
        thread.start()
        waiting = threading.Event()
        for _ in range(int(_START_TIMEOUT_S / 0.01)):
            if server.started:
                return self
            if not thread.is_alive():
                break
            waiting.wait(0.01)
        self.stop()
        raise ServerDied("The hub did not start")

    def stop(self) -> None:
        """Stop; harmless when it is stopped already."""
        if self._server is not None and self._thread is not None:
            # First, since whoever follows a Job's logs holds a connection.
            self.jobs.stop()
            self._server.should_exit = True
            self._thread.join(timeout=15)
        self._server = self._thread = None

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(root: Path, host: str = "127.0.0.1", port: int = DEFAULT_PORT, *, remote_webhooks: bool = False) -> None:
    """Serve the folder until interrupted; the address is printed once the port is ours."""
    sock = _listen(host, port)
    url = _url(sock, host)
    # Bound to every interface there is no one address: links then follow the one that the caller used.
    base_url = None if host in ("0.0.0.0", "::") else url
    app = create_app(Path(root), base_url=base_url, remote_webhooks=remote_webhooks)
    print(f"localhub serves {root} at {url}", flush=True)
    _server(app).run(sockets=[sock])
