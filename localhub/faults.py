"""Faults on purpose, for tests, and the log of requests; neither can be reached over HTTP."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .job_faults import JobFaults

_MAX_LOGGED = 100_000
_MAX_WAITING_BODY = 64 * 1024 * 1024


@dataclass(frozen=True)
class Fault:
    """What happens to one request, in this order.

    `delay` seconds pass; then, with `status`, that is the answer (with these `headers`, and no work is done);
    or with `drop` the connection is cut: `"before"` the work is done, or `"after"` it, when the caller cannot
    know that it was; or with `cut_after` once that many bytes of the answer's body were sent.
    """

    status: int | None = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


Plan = Callable[[str, str], Fault | None]


class Request(NamedTuple):
    """A request that came in: the path decoded, the query as it was sent (without `?`)."""

    method: str
    path: str
    query: str


class RequestLog:
    """Every request since the start or the last `clear`: all are counted, the latest 100,000 are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Request] = deque(maxlen=_MAX_LOGGED)
        self._total = 0

    def add(self, request: Request) -> None:
        """Note one."""
        with self._lock:
            self._kept.append(request)
            self._total += 1

    def all(self) -> list[Request]:
        """Those that are kept, oldest first."""
        with self._lock:
            return list(self._kept)

    def count(self, path: str = "", *, method: str = "*") -> int:
        """How many of those kept have this method and this pattern in their path."""
        pattern = re.compile(path)
        return sum(method in ("*", item.method) and pattern.search(item.path) is not None for item in self.all())

    def clear(self) -> None:
        """Start over."""
        with self._lock:
            self._kept.clear()
            self._total = 0

    def __len__(self) -> int:
        return self._total


@dataclass
class _Waiting:
    method: str
    pattern: re.Pattern[str]
    times: int
    fault: Fault


class Faults:
    """The faults in waiting; none by default. Safe to change while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._plan: Plan | None = None
        #: The requests that met with a fault.
        self.seen: list[tuple[str, str]] = []
        #: All requests, with a fault or without.
        self.requests = RequestLog()
        #: What goes wrong with Jobs.
        self.jobs = JobFaults()

    def _add(self, method: str, path: str, times: int, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(_Waiting(method, re.compile(path), times, fault))

    def fail(
        self,
        path: str,
        *,
        status: int,
        times: int = 1,
        method: str = "*",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer this status, without doing the work."""
        self._add(method, path, times, Fault(status=status, headers=headers or {}))

    def drop(self, path: str, *, times: int = 1, method: str = "*", work: bool = True) -> None:
        """Do the work (unless `work` is False), then cut the connection: the caller cannot know whether it was done."""
        self._add(method, path, times, Fault(drop="after" if work else "before"))

    def cut(self, path: str, *, after: int, times: int = 1, method: str = "*") -> None:
        """Cut the connection once so many bytes of the answer were sent."""
        self._add(method, path, times, Fault(cut_after=after))

    def delay(self, path: str, *, seconds: float, times: int = 1, method: str = "*") -> None:
        """Wait before doing the work."""
        self._add(method, path, times, Fault(delay=seconds))

    def plan(self, decide: Plan | None) -> None:
        """Ask `decide(method, path)` about every request for which no other fault waits; None: no more of that.

        It runs in the server's thread, one request at a time, and must not block.
        """
        with self._lock:
            self._plan = decide

    def clear(self) -> None:
        """Forget what has not happened yet, and the plan."""
        with self._lock:
            self._waiting.clear()
            self._plan = None

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, used up by one."""
        with self._lock:
            found = self._next(method, path)
            if found is not None:
                self.seen.append((method, path))
            return found

    def _next(self, method: str, path: str) -> Fault | None:
        for item in self._waiting:
            if item.method in ("*", method) and item.pattern.search(path):
                item.times -= 1
                if item.times <= 0:
                    self._waiting.remove(item)
                return item.fault
        return self._plan(method, path) if self._plan else None


class FaultMiddleware:
    """Logs requests and applies the faults, outside of everything else."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        self._faults.requests.add(Request(scope["method"], scope["path"], query))
        fault = self._faults.take(scope["method"], scope["path"])
        if fault is not None and fault.delay:
            await anyio.sleep(fault.delay)
        if fault is not None and fault.cut_after is not None:
            await self._app(scope, receive, _Cut(send, fault.cut_after))
        elif fault is None or (fault.status is None and fault.drop is None):
            await self._app(scope, receive, send)
        elif fault.status is not None:
            await _answer(fault.status, fault.headers, send)
        else:
            await (self._app(scope, receive, _swallow) if fault.drop == "after" else _read_off(receive))
            # A length that never comes: the server sees an unfinished answer and closes the connection.
            never = [(b"content-length", b"1048576")]
            await send({"type": "http.response.start", "status": 200, "headers": never})


async def _answer(status: int, given: dict[str, str], send: Send) -> None:
    body = b'{"error":"fault on purpose"}'
    headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read_off(receive: Receive) -> None:
    """Take the body in, so that the caller meets the cut where it waits for the answer."""
    total, more = 0, True
    while more and total < _MAX_WAITING_BODY:
        message = await receive()
        total += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)


async def _swallow(message: Message) -> None:
    """A `send` that loses everything."""


class _Cut:
    """A `send` that passes on the beginning of an answer's body and loses the rest."""

    def __init__(self, send: Send, after: int) -> None:
        self._send = send
        self._left = after

    async def __call__(self, message: Message) -> None:
        """The ASGI call."""
        if message["type"] != "http.response.body":
            await self._send(message)
        elif self._left > 0:
            piece = message.get("body", b"")[: self._left]
            self._left -= len(piece)
            # The answer is never said to be whole: the server closes the connection when nothing more comes.
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
