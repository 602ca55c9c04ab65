"""Fixed windows of five minutes for each token or address, told in `RateLimit` headers, enforced with 429."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Quota:
    """Requests a window, for the API and for downloads; very high unless a test or an operator lowers it."""

    api: int = 1_000_000
    resolvers: int = 5_000_000
    window_s: int = 300


@dataclass(frozen=True)
class Spent:
    """Where a caller stands in this window."""

    resource: str
    limit: int
    remaining: int
    reset_s: int
    exceeded: bool


class Windows:
    """Counts requests for each caller; only the current window is kept."""

    def __init__(self, quota: Quota, clock: Callable[[], float] = time.time) -> None:
        self.quota = quota
        self._clock = clock
        self._lock = threading.Lock()
        self._window = -1
        self._counts: dict[tuple[str, str], int] = {}

    def spend(self, caller: str, resource: str) -> Spent:
        """Count one request."""
        moment = self._clock()
        width = self.quota.window_s
        limit = self.quota.api if resource == "api" else self.quota.resolvers
        with self._lock:
            if int(moment // width) != self._window:
                self._window = int(moment // width)
                self._counts.clear()
            used = self._counts.get((caller, resource), 0) + 1
            self._counts[(caller, resource)] = used
        reset = max(1, int((self._window + 1) * width - moment))
        return Spent(resource, limit, max(0, limit - used), reset, used > limit)


def _headers(spent: Spent, window_s: int) -> list[tuple[bytes, bytes]]:
    now = f'"{spent.resource}";r={spent.remaining};t={spent.reset_s}'
    policy = f'"fixed window";"{spent.resource}";q={spent.limit};w={window_s}'
    return [(b"ratelimit", now.encode()), (b"ratelimit-policy", policy.encode())]


class RateLimitMiddleware:
    """Adds the headers to answers of the API and of downloads, and answers 429 once the quota is spent."""

    def __init__(self, app: ASGIApp, windows: Windows) -> None:
        self._app = app
        self._windows = windows

    @staticmethod
    def _resource(path: str) -> str | None:
        if path.startswith("/api/") or "/info/lfs/" in path:
            return "api"
        return "resolvers" if "/resolve/" in path else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        resource = self._resource(scope["path"]) if scope["type"] == "http" else None
        if resource is None:
            await self._app(scope, receive, send)
            return
        token = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        client = scope.get("client") or ("?", 0)
        spent = self._windows.spend(token or f"ip {client[0]}", resource)
        extra = _headers(spent, self._windows.quota.window_s)
        if spent.exceeded:
            message = f"We had to rate limit you: you hit the quota of {spent.limit} requests."
            body = json.dumps({"error": message}).encode()
            about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            retry = [(b"retry-after", str(spent.reset_s).encode()), (b"x-error-message", message.encode())]
            await send({"type": "http.response.start", "status": 429, "headers": about + retry + extra})
            await send({"type": "http.response.body", "body": body})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self._app(scope, receive, with_headers)
