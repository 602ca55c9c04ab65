"""Faults on purpose, for tests: answer a status, or do the work and lose the response; never over HTTP."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match."""

    method: str
    pattern: re.Pattern[str]
    times: int
    status: int | None = None
    drop: bool = False
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class Faults:
    """The faults in waiting; none by default. Safe to change while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self.seen: list[tuple[str, str]] = []

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)

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
        self._add(Fault(method, re.compile(path), times, status=status, headers=headers or {}))

    def drop(self, path: str, *, times: int = 1, method: str = "*") -> None:
        """Do the work, then cut the connection: the caller cannot know that it was done."""
        self._add(Fault(method, re.compile(path), times, drop=True))

    def delay(self, path: str, *, seconds: float, times: int = 1, method: str = "*") -> None:
        """Wait before doing the work."""
        self._add(Fault(method, re.compile(path), times, delay=seconds))

    def clear(self) -> None:
        """Forget what has not happened yet."""
        with self._lock:
            self._waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, used up by one."""
        with self._lock:
            for fault in self._waiting:
                if fault.method in ("*", method) and fault.pattern.search(path):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._waiting.remove(fault)
                    self.seen.append((method, path))
                    return fault
        return None


class FaultMiddleware:
    """Applies the faults, outside of everything else."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        fault = self._faults.take(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault.delay:
            await anyio.to_thread.run_sync(time.sleep, fault.delay)
            await self._app(scope, receive, send)
        elif fault.drop:
            await self._app(scope, receive, _swallow)
            # A length that never comes: the server sees an unfinished answer and closes the connection.
            never = [(b"content-length", b"1048576")]
            await send({"type": "http.response.start", "status": 200, "headers": never})
        else:
            body = b'{"error":"fault on purpose"}'
            headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": fault.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})


async def _swallow(message: Message) -> None:
    """A `send` that loses everything."""
