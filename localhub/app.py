"""The application: routes, errors and middleware put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from . import (
    pages,
    routes_buckets,
    routes_commit,
    routes_discussions,
    routes_files,
    routes_jobs,
    routes_manage,
    routes_repo,
    routes_social,
    routes_upload,
    routes_webhooks,
    routes_xet,
    web,
)
from .errors import HubError, RepoMoved
from .faults import FaultMiddleware, Faults
from .hub import DEFAULT_MAX_LFS, Hub
from .ratelimit import Quota, RateLimitMiddleware, Windows


def create_app(
    root: Path,
    *,
    base_url: str | None = None,
    faults: Faults | None = None,
    quota: Quota | None = None,
    remote_webhooks: bool = False,
    max_lfs_bytes: int = DEFAULT_MAX_LFS,
) -> FastAPI:
    """The hub over a folder.

    `base_url` is what links start with (without it: whatever address the caller used). `faults` is for
    tests. Webhooks go to loopback addresses only unless `remote_webhooks`. `app.state.hub` and
    `app.state.faults` lead to the parts.
    """
    faults = faults or Faults()
    hub = Hub(
        Path(root),
        base_url=base_url,
        remote_webhooks=remote_webhooks,
        max_lfs_bytes=max_lfs_bytes,
        job_faults=faults.jobs,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        hub.jobs.stop()
        hub.dispatcher.stop()

    app = FastAPI(
        title="localhub",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.hub = hub
    app.state.faults = faults
    # The fixed addresses come before the pages, whose `/{owner}/{name}` would match nearly anything.
    for module in (
        routes_repo, routes_manage, routes_files, routes_upload, routes_commit,
        routes_discussions, routes_webhooks, routes_social, routes_buckets, routes_xet, routes_jobs, pages,
    ):  # fmt: skip
        app.include_router(module.router)
    app.add_exception_handler(HubError, web.on_hub_error)
    app.add_exception_handler(RepoMoved, web.on_moved)
    app.add_exception_handler(HTTPException, web.on_http_error)
    # The last one added is the outermost.
    app.add_middleware(web.PathMiddleware)
    app.add_middleware(RateLimitMiddleware, windows=Windows(quota or Quota()))
    app.add_middleware(FaultMiddleware, faults=app.state.faults)
    app.add_middleware(web.DateMiddleware)
    return app
