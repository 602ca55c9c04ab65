"""Delivers webhooks from a background thread, with bounded retries, to loopback addresses by default."""

from __future__ import annotations

import contextlib
import heapq
import http.client
import ipaddress
import itertools
import json
import socket
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

DEFAULT_WAITS_S = (0.5, 2.0, 10.0)
_MAX_QUEUE = 10_000
_TIMEOUT_S = 5.0


class UnsafeTarget(Exception):
    """A webhook points somewhere that this hub does not call."""


@dataclass(frozen=True)
class Outcome:
    """One attempt: its HTTP status, or the error's text."""

    webhook_id: str
    scope: str
    attempt: int
    status: int | None
    error: str | None


@dataclass(order=True)
class _Job:
    due: float
    order: int
    hook: dict[str, Any] = field(compare=False)
    payload: dict[str, Any] = field(compare=False)
    attempt: int = field(default=0, compare=False)


def resolve_target(host: str, port: int, *, allow_remote: bool) -> str:
    """The IP address to connect to: checked and then used, so that a name cannot change in between."""
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    local = all(ipaddress.ip_address(item.split("%")[0]).is_loopback for item in addresses)
    if not allow_remote and not local:
        raise UnsafeTarget(f"{host} is not a loopback address")
    return sorted(addresses)[0]


def post(url: str, body: bytes, headers: dict[str, str], *, allow_remote: bool) -> int:
    """POST without following redirects; the answer's status."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = resolve_target(host, port, allow_remote=allow_remote)
    sock = socket.create_connection((address, port), timeout=_TIMEOUT_S)
    with contextlib.closing(sock):
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        connection.sock = sock
        with contextlib.closing(connection):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body=body, headers=headers)
            response = connection.getresponse()
            response.read(65536)
            return response.status


class Dispatcher:
    """A queue and its thread. What waits is lost when the process ends: a receiver has to poll as well."""

    def __init__(self, *, allow_remote: bool = False, waits_s: tuple[float, ...] = DEFAULT_WAITS_S) -> None:
        self.allow_remote = allow_remote
        self.waits_s = waits_s
        self.outcomes: deque[Outcome] = deque(maxlen=1000)
        self._jobs: list[_Job] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._busy = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def enqueue(self, hook: dict[str, Any], payload: dict[str, Any]) -> None:
        """Deliver soon; the thread starts with the first one. A full queue drops the newest."""
        with self._wake:
            if len(self._jobs) >= _MAX_QUEUE or self._stopping:
                return
            heapq.heappush(self._jobs, _Job(time.monotonic(), next(self._order), hook, payload))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="localhub-webhooks", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is left to deliver, retries too; whether that came to pass."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._jobs and not self._busy, timeout_s)

    def stop(self) -> None:
        """Stop the thread after the delivery that it is at."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=_TIMEOUT_S * 2)

    def _next(self) -> _Job | None:
        with self._wake:
            self._busy = False
            self._wake.notify_all()
            while not self._stopping:
                pause = self._jobs[0].due - time.monotonic() if self._jobs else None
                if pause is not None and pause <= 0:
                    self._busy = True
                    return heapq.heappop(self._jobs)
                self._wake.wait(pause)
            return None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            status, error = self._attempt(job)
            scope = job.payload["event"]["scope"]
            self.outcomes.append(Outcome(job.hook["id"], scope, job.attempt + 1, status, error))
            retry = error != "unsafe" and (status is None or status == 429 or status >= 500)
            if retry and job.attempt < len(self.waits_s):
                job.due = time.monotonic() + self.waits_s[job.attempt]
                job.attempt += 1
                with self._wake:
                    heapq.heappush(self._jobs, job)

    def _attempt(self, job: _Job) -> tuple[int | None, str | None]:
        headers = {"Content-Type": "application/json", "User-Agent": "localhub-webhooks"}
        if job.hook.get("secret"):
            headers["X-Webhook-Secret"] = job.hook["secret"]
        try:
            body = json.dumps(job.payload).encode()
            return post(job.hook["url"], body, headers, allow_remote=self.allow_remote), None
        except UnsafeTarget:
            return None, "unsafe"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return None, f"{type(error).__name__}: {error}"
