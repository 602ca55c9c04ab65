"""``GET /status`` and ``/status.json``: how the bot stands, for anybody, without a script and without a secret."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bot.clock import Clock, SystemClock, iso
from bot.settings import Settings
from bot.status import public_report
from bot.status_report import StatusReport, ago
from bot.store import Store
from core.errors import QuantcardError

logger = logging.getLogger(__name__)

#: Seconds for which an answer is given again.
FRESH_S = 5.0
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
#: What the service knows besides the database: keyword arguments of :func:`bot.status.status_report`.
Live = Callable[[], dict[str, Any]]


def _load(name: str) -> str:
    return files("templates").joinpath(name).read_text(encoding="utf-8")


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    loader=FunctionLoader(_load), undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render(report: StatusReport, *, endpoint: str) -> str:
    """The page; every text in it is escaped.

    Args:
        endpoint: the Hub's address, for links.
    """
    return _ENVIRONMENT.get_template("status.html.j2").render(
        r=report,
        now=iso(report.at),
        iso=iso,
        ago=lambda moment: ago(moment, report.at),
        repo_url=lambda repo_id: f"{endpoint}/{quote(repo_id, safe='/')}",
    )


def policy(page: str) -> str:
    """The page's Content-Security-Policy: its own style and nothing else."""
    style = _STYLE.search(page)
    digest = base64.b64encode(hashlib.sha256((style[1] if style else "").encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class StatusPage:
    """Both answers, made at most once every :data:`FRESH_S` seconds however many ask."""

    def __init__(self, settings: Settings, *, live: Live = dict, clock: Clock | None = None) -> None:
        self._settings, self._live, self._clock = settings, live, clock or SystemClock()
        self._made: tuple[Response, Response] | None = None
        self._at = float("-inf")
        self._making = asyncio.Lock()

    async def get(self) -> tuple[Response, Response]:
        """(HTML, JSON)."""
        async with self._making:
            if self._made is None or time.monotonic() - self._at >= FRESH_S:
                self._made = await asyncio.to_thread(self._make)
                self._at = time.monotonic()
        return self._made

    def _make(self) -> tuple[Response, Response]:
        try:
            with Store(self._settings.db) as store:
                report = public_report(store, self._settings, self._clock.now(), **self._live())
        except QuantcardError as error:
            # Its sentence may tell a path.
            logger.warning("The status page could not be made: %s", error)
            said = "The database can't be read now."
            return (
                _answer(f"<!doctype html><title>quantcard status</title><p>{said}</p>", "text/html", status=503),
                _answer(json.dumps({"error": said}), "application/json", status=503),
            )
        page = render(report, endpoint=self._settings.hf_endpoint.rstrip("/"))
        return _answer(page, "text/html"), _answer(report.model_dump_json(indent=2), "application/json")


def _answer(body: str, kind: str, *, status: int = 200) -> Response:
    headers = {
        "Content-Security-Policy": policy(body) if kind == "text/html" else "default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": f"max-age={FRESH_S:.0f}",
    }
    return Response(body, status_code=status, media_type=kind, headers=headers)


def router(settings: Settings, *, live: Live = dict) -> APIRouter:
    """The routes.

    Args:
        live: called for each page that is made; what the service knows besides the database.
    """
    routes, page = APIRouter(), StatusPage(settings, live=live)

    @routes.get("/status", response_class=HTMLResponse)
    async def html() -> Response:
        return (await page.get())[0]

    @routes.get("/status.json")
    async def as_json() -> Response:
        return (await page.get())[1]

    return routes
