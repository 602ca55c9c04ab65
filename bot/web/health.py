"""``GET /livez`` and ``/readyz``: whether the process lives, and whether it can do its work, for who restarts it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from bot.health import Health
from bot.vitals import ENDING
from bot.web.fresh import Fresh

#: Seconds for which an answer is given again.
FRESH_S = 1.0
_HEADERS = {"Cache-Control": "no-store"}


def router(health: Health) -> APIRouter:
    """The routes."""
    routes, ready = APIRouter(), Fresh(health.reasons, seconds=FRESH_S)

    @routes.get("/livez")
    async def livez() -> JSONResponse:
        # A service whose worker died answers for ever and does nothing: only a restart helps.
        alive = not health.vitals.seen.worker_died
        return JSONResponse({"ok": alive}, status_code=200 if alive else 503, headers=_HEADERS)

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        # That it ends is known at once, and has to be: whoever shares out requests should ask another.
        reasons = [ENDING] if health.vitals.seen.draining else await ready.get()
        body: dict[str, Any] = {"ready": not reasons, "reasons": reasons}
        return JSONResponse(body, status_code=503 if reasons else 200, headers=_HEADERS)

    return routes
