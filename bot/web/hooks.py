"""``POST /webhooks/hub``: who may speak, how much and how fast; what it means is :mod:`bot.intake.webhook`'s."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from bot.clock import Clock, SystemClock
from bot.intake.webhook import Wake, act, read_payload
from bot.settings import Settings
from bot.status_report import WebhookCounts
from bot.store import Store
from core.errors import QuantcardError

logger = logging.getLogger(__name__)

#: A webhook's body is a few kilobytes.
MAX_BODY = 256 << 10
#: Seconds in which a body must have come.
BODY_S = 10.0
#: Webhooks taken a second; the Hub repeats what is refused, and polling finds what is not.
PER_SECOND = 50
#: Webhooks that may wait for the database at a time.
MAX_WAITING = 100


@dataclass
class Bucket:
    """Lets ``rate`` through a second, and as many at once.

    Args:
        clock: seconds that only go forward.
    """

    rate: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._left, self._at = self.rate, self.clock()

    def take(self) -> bool:
        """Whether one more may pass."""
        now = self.clock()
        self._left, self._at = min(self.rate, self._left + (now - self._at) * self.rate), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Refused(Exception):
    """A webhook that is not taken, with the status that says why."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class Webhooks:
    """The endpoint's state.

    Args:
        wake: called after each webhook that gave the worker something to do.
        bucket: what lets webhooks through, :data:`PER_SECOND` by default.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        wake: Callable[[], None],
        clock: Clock | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        self.settings, self._wake, self._clock = settings, wake, clock or SystemClock()
        self.counts = WebhookCounts(open=bool(settings.webhook_secret))
        self._bucket = bucket or Bucket(PER_SECOND)
        # One thread: the database takes one writer at a time, and a flood must not hold the page's threads.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="webhooks")
        self._waiting = 0

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter()

        @router.post("/webhooks/hub")
        async def webhook(request: Request) -> JSONResponse:
            return await self.answer(request)

        return router

    def close(self) -> None:
        """Take no more."""
        self._writer.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request) -> JSONResponse:
        """Take one webhook, or refuse it."""
        try:
            self._admit(request)
            wake = read_payload(_parsed(await _body(request)))
            taken = wake is not None and await self._act(wake)
        except Refused as refused:
            self.counts.refused += 1
            headers = {"Retry-After": "1"} if refused.status in (429, 503) else None
            return JSONResponse({"error": str(refused)}, status_code=refused.status, headers=headers)
        if taken:
            self.counts.taken += 1
            self.counts.last_at = self._clock.now()
            self._wake()
        else:
            self.counts.ignored += 1
        return JSONResponse({"taken": taken})

    def _admit(self, request: Request) -> None:
        """Refuse who does not know the secret, before anything of what they send is read."""
        secret = self.settings.webhook_secret.encode()
        # Closed when no secret is set: an open one would let anybody make us ask the Hub.
        if not secret:
            raise Refused(403, "No webhook secret is set.")
        # Headers come as Latin-1; these are the bytes that were sent.
        given = request.headers.get("X-Webhook-Secret", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, secret):
            raise Refused(403 if given else 401, "Wrong secret.")
        if not self._bucket.take():
            raise Refused(429, "Too many webhooks at once.")

    async def _act(self, wake: Wake) -> bool:
        if self._waiting >= MAX_WAITING:
            raise Refused(429, "Too many webhooks at once.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, wake)
        except QuantcardError as error:
            # It may tell a path; whoever called needs to know only that it may call again.
            logger.warning("A webhook could not be written down: %s", error)
            raise Refused(503, "The database can't be written now.") from None
        finally:
            self._waiting -= 1

    def _write(self, wake: Wake) -> bool:
        with Store(self.settings.db) as store:
            return act(store, wake, now=self._clock.now())


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY:
                    raise Refused(413, "Too large.")
    except TimeoutError:
        raise Refused(408, "The body came too slowly.") from None
    except ClientDisconnect:
        raise Refused(400, "The body did not come to its end.") from None
    return bytes(body)


def _parsed(body: bytes) -> dict[str, object]:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "Not JSON.") from None
    if not isinstance(payload, dict):
        raise Refused(400, "Not a JSON object.")
    return payload
