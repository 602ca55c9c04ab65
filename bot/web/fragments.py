"""Pull mode over HTTP: a repo's section, figures and badges, for anyone, at little cost whoever asks how often.

Answers come from a small cache; one thread at a time fills it, and names that we know nothing of never reach the
database more than once in a while together.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from bot.publish.badge import UNKNOWN, render_badge, repo_badge, variant_badge
from bot.publish.fragments import HIDDEN, Links, RepoRows, figures, links_of, repo_rows, section, told
from bot.settings import Settings
from bot.store import Store
from core.dataset import DatasetRow
from core.errors import QuantcardError
from core.protocol import Protocol
from core.repo_names import is_repo_id

logger = logging.getLogger(__name__)

#: Seconds for which an answer, and the list of repos, is taken for current here; and for which others may keep one.
FRESH_S = 30.0
MAX_AGE_S, MAX_AGE_UNKNOWN_S = 300, 60
#: Repos kept in memory, and requests that may wait for the database at once.
_KEPT = 256
_MAX_WAITING = 64
_MAX_NAME = 1_000
_SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_JSON, _MARKDOWN, _SVG = "application/json", "text/markdown; charset=utf-8", "image/svg+xml; charset=utf-8"
_METHODS = ["GET", "HEAD"]

Kind = Literal["section", "section-bare", "figures"]


class _Busy(QuantcardError):
    """Too many ask at once."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is answered about one repo until ``until``; ``rows`` without the long results, for badges."""

    repo_id: str
    until: float
    texts: dict[Kind, bytes]
    rows: list[DatasetRow]


class Fragments:
    """The cache between requests and the database. ``load`` gives a repo's rows; ``ids`` all names that may be told."""

    def __init__(
        self,
        *,
        ids: Callable[[], Sequence[str]],
        load: Callable[[str], RepoRows | None],
        links: Links,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ids, self._load, self._links, self._now = ids, load, links, now
        self._names: dict[str, str] = {}
        self._names_until = float("-inf")
        self._kept: OrderedDict[str, _Known] = OrderedDict()
        self._one = asyncio.Lock()
        self._waiting = 0

    async def of(self, repo_id: str) -> _Known | None:
        """What is known of a repo, whatever the case of its name; None where nothing is, or nothing for others.

        Raises:
            QuantcardError: too many ask at once, or the database can't be read.
        """
        if not is_repo_id(repo_id):
            return None
        name = repo_id.lower()
        if self._fresh(name):
            return self._kept.get(name)
        if self._waiting >= _MAX_WAITING:
            raise _Busy("Too many ask at once. Try again in a moment.")
        self._waiting += 1
        try:
            # One at a time: work is never doubled, and a flood holds one thread.
            async with self._one:
                return self._kept.get(name) if self._fresh(name) else await self._look(name)
        finally:
            self._waiting -= 1

    def _fresh(self, name: str) -> bool:
        """Whether what is kept of a name, or that there is no such, can be answered as it is."""
        now = self._now()
        if now >= self._names_until:
            return False
        if name not in self._names:
            self._kept.pop(name, None)
            return True
        known = self._kept.get(name)
        if known is None or now >= known.until:
            return False
        self._kept.move_to_end(name)
        return True

    async def _look(self, name: str) -> _Known | None:
        """Read what is not fresh any more. Only the reading leaves the event loop, so that nothing here has to lock."""
        now = self._now()
        if now >= self._names_until:
            names = await asyncio.to_thread(self._ids)
            self._names, self._names_until = {repo_id.lower(): repo_id for repo_id in names}, now + FRESH_S
            if self._fresh(name):
                return self._kept.get(name)
        made = await asyncio.to_thread(self._read, self._names[name], now)
        if made is None:
            self._kept.pop(name, None)
            return None
        self._kept[name] = made
        self._kept.move_to_end(name)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made

    def _read(self, repo_id: str, now: float) -> _Known | None:
        found = self._load(repo_id)
        if found is None:
            return None
        texts: dict[Kind, bytes] = {}
        if told(found.rows):
            whole, bare = (
                section(found.rows, self._links, config=found.config, markers=markers).encode("utf-8", "replace")
                for markers in (True, False)
            )
            texts = {"section": whole, "section-bare": bare, "figures": figures(found.rows, config=found.config)}
        slim = [row.model_copy(update={"quality_json": None, "speed_json": None}) for row in found.rows]
        return _Known(found.repo_id, now + FRESH_S, texts, slim)


def router(settings: Settings) -> APIRouter:
    """The routes under ``/repos/OWNER/NAME/``, reading the database that the settings name."""
    protocols: list[Protocol] = []

    def load(repo_id: str) -> RepoRows | None:
        if not protocols:
            protocols.append(settings.protocol_in_force())
        with Store(settings.db) as store:
            return repo_rows(store, settings, protocols[0], repo_id)

    def ids() -> list[str]:
        with Store(settings.db) as store:
            return [repo.id for repo in store.repos.repos() if repo.state not in HIDDEN]

    return routes(Fragments(ids=ids, load=load, links=links_of(settings)))


def routes(cache: Fragments) -> APIRouter:
    """The same over any cache."""
    router = APIRouter(prefix="/repos/{owner}/{name}")

    @router.api_route("/section.md", methods=_METHODS)
    async def section_text(request: Request, owner: str, name: str, markers: bool = True) -> Response:
        return await _text(request, f"{owner}/{name}", "section" if markers else "section-bare", _MARKDOWN)

    @router.api_route("/quantcard.json", methods=_METHODS)
    async def figures_file(request: Request, owner: str, name: str) -> Response:
        return await _text(request, f"{owner}/{name}", "figures", _JSON)

    @router.api_route("/badge.svg", methods=_METHODS)
    async def repo_svg(request: Request, owner: str, name: str, variant: str | None = None) -> Response:
        return await _badge(request, f"{owner}/{name}", variant)

    @router.api_route("/{variant:path}/badge.svg", methods=_METHODS)
    async def variant_svg(request: Request, owner: str, name: str, variant: str) -> Response:
        return await _badge(request, f"{owner}/{name}", variant)

    async def _text(request: Request, repo_id: str, kind: Kind, media_type: str) -> Response:
        try:
            known = await cache.of(repo_id)
        except QuantcardError as error:
            return _unavailable(error)
        if known is None:
            return _missing("This repo is not known here, or nothing of it was looked into yet.", kind)
        if kind not in known.texts:
            return _missing(f"Nothing is measured in {known.repo_id} yet.", kind)
        return _answer(request, known.texts[kind], media_type=media_type, max_age=MAX_AGE_S)

    async def _badge(request: Request, repo_id: str, variant: str | None) -> Response:
        # An image in a README is shown by proxies that make a broken one of every error: unknown is an answer too.
        try:
            known = await cache.of(repo_id)
        except QuantcardError as error:
            return _unavailable(error)
        rows = known.rows if known else []
        found = repo_badge(rows) if variant is None else variant_badge(rows, variant[:_MAX_NAME])
        headers = {"Content-Security-Policy": _SVG_POLICY, "Cross-Origin-Resource-Policy": "cross-origin"}
        max_age = MAX_AGE_UNKNOWN_S if found is UNKNOWN else MAX_AGE_S
        return _answer(request, render_badge(found).encode(), media_type=_SVG, max_age=max_age, headers=headers)

    return router


def _answer(
    request: Request, content: bytes, *, media_type: str, max_age: int, headers: dict[str, str] | None = None
) -> Response:
    """200 with its ETag, or 304 where the asker has these very bytes."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    told = {
        "ETag": etag,
        "Cache-Control": f"public, max-age={max_age}",
        "Access-Control-Allow-Origin": "*",
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }
    given = [one.strip().removeprefix("W/") for one in request.headers.get("If-None-Match", "")[:4096].split(",")]
    if etag in given or "*" in given:
        return Response(status_code=304, headers=told)
    return Response(content, media_type=media_type, headers=told)


def _missing(sentence: str, kind: Kind) -> Response:
    return _refusal(sentence, 404, kind == "figures", {"Cache-Control": f"public, max-age={MAX_AGE_UNKNOWN_S}"})


def _unavailable(error: QuantcardError) -> Response:
    """What is wrong is for the operator's log; a path or a table's name is nobody else's business."""
    said = str(error) if isinstance(error, _Busy) else "The figures can't be read just now. Try again in a minute."
    if not isinstance(error, _Busy):
        logger.error("Fragments: %s", error)
    return _refusal(said, 503, True, {"Retry-After": "30", "Cache-Control": "no-store"})


def _refusal(sentence: str, status: int, as_json: bool, headers: dict[str, Any]) -> Response:
    headers = {**headers, "Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff"}
    if as_json:
        return JSONResponse({"error": sentence}, status_code=status, headers=headers)
    return PlainTextResponse(sentence + "\n", status_code=status, headers=headers)
