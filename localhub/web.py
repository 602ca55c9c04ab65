"""What every route needs: decoded paths, bounded bodies, who is asking, and errors as the Hub words them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode

import anyio.to_thread
from fastapi import Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import Identity, check_readable
from .commits import MAX_COMMIT_BODY
from .errors import BadRequest, HubError, NotFound, RepoMoved, RepoNotFound, TooLarge, Unauthorized
from .hub import Hub
from .names import repo_type_of
from .repos import Repo

MAX_JSON_BODY = 16 * 1024 * 1024
_SLASH = "\x1f"  # stands for a %2F in a path segment, so that `refs%2Fpr%2F7` stays one segment while routing
_PASSED = "&?=;+,:@!$'()*~"


class _KindConvertor(Convertor[str]):
    regex = "models|datasets|spaces"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("kind", _KindConvertor())


class PathMiddleware:
    """Decodes the path segment by segment, so that an encoded slash is told from a real one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] == "http":
            try:
                raw = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii").split("?")[0]
                parts = [unquote(part, errors="strict") for part in raw.split("/")]
                if any(ord(char) < 32 for part in parts for char in part):
                    raise ValueError("control character")
            except (UnicodeDecodeError, ValueError):
                response = JSONResponse({"error": "Invalid path"}, status_code=400)
                await response(scope, receive, send)
                return
            scope = {**scope, "path": "/".join(part.replace("/", _SLASH) for part in parts)}
        await self._app(scope, receive, send)


def unmask(value: str) -> str:
    """A path parameter as the caller meant it."""
    return value.replace(_SLASH, "/")


def split_revision(rest: str) -> tuple[str, str]:
    """`{revision}[/{path}]`: the revision is one segment, or `refs/pr/7` written with plain slashes."""
    parts = rest.split("/")
    if parts[0] == "refs" and len(parts) >= 3:
        return "/".join(parts[:3]), unmask("/".join(parts[3:]))
    return unmask(parts[0]), unmask("/".join(parts[1:]))


class DateMiddleware:
    """Says when each answer was given. The server's own date may be a second old, and by it the client cuts logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = (b"date", formatdate(usegmt=True).encode())
                message = {**message, "headers": [*message["headers"], date]}
            await send(message)

        await self._app(scope, receive, dated if scope["type"] == "http" else send)


# dependencies


def get_hub(request: Request) -> Hub:
    """The hub behind this app."""
    return cast(Hub, request.app.state.hub)


HubDep = Annotated[Hub, Depends(get_hub)]


def get_identity(request: Request, hub: HubDep) -> Identity:
    """Who is asking; 401 for an unknown token."""
    return hub.users.identify(request.headers.get("authorization"))


Who = Annotated[Identity, Depends(get_identity)]


def get_repo(kind: str, owner: str, name: str, hub: HubDep, who: Who) -> Repo:
    """The repo of an API path, if the caller may see it."""
    return find_repo(hub, who, kind, f"{owner}/{name}")


RepoDep = Annotated[Repo, Depends(get_repo)]


def find_repo(hub: Hub, who: Identity, kind: str, repo_id: str) -> Repo:
    """The repo, if the caller may see it; ids that no repo can have are simply not found."""
    try:
        repo = hub.repos.get(repo_type_of(kind), repo_id)
    except BadRequest:
        raise NotFound("Not found") from None
    except RepoMoved as moved:
        # a private repo's new name is a secret too
        check_readable(hub.repos.get(repo_type_of(kind), moved.new_id), who)
        raise
    check_readable(repo, who)
    return repo


def base_url(hub: Hub, request: Request) -> str:
    """What links start with: the configured address, or the one the caller used."""
    return hub.base_url or str(request.base_url).rstrip("/")


async def _chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge("The request's body is too large")
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise TooLarge("The request's body is too large")
        yield chunk


async def read_body(request: Request) -> bytes:
    """A small body, whole."""
    return b"".join([chunk async for chunk in _chunks(request, MAX_JSON_BODY)])


Body = Annotated[bytes, Depends(read_body)]


async def spool_body(request: Request) -> AsyncIterator[IO[bytes]]:
    """A commit's body: in memory while small, on disk beyond that."""
    with SpooledTemporaryFile(max_size=8 * 1024 * 1024) as file:
        async for chunk in _chunks(request, MAX_COMMIT_BODY):
            await anyio.to_thread.run_sync(file.write, chunk)
        file.seek(0)
        yield cast(IO[bytes], file)


Spooled = Annotated[IO[bytes], Depends(spool_body)]


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object."""
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object")
    return value


def form(body: bytes) -> list[tuple[str, str]]:
    """A form-encoded body; a JSON one of the same content is taken too."""
    if body.lstrip()[:1] == b"{":
        data = json_object(body)
        lists = ((key, value if isinstance(value, list) else [value]) for key, value in data.items())
        return [(key, str(item)) for key, items in lists for item in items]
    try:
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=10_000)
    except (UnicodeDecodeError, ValueError):
        raise BadRequest("The form cannot be read") from None


def is_true(value: object) -> bool:
    """`True`, `true`, `1`: however a client writes it."""
    return str(value).lower() in ("true", "1", "on", "yes")


def number(value: str | None, *, default: int, low: int, high: int) -> int:
    """A bounded integer parameter."""
    if value is None or value == "":
        return default
    if not re.fullmatch(r"-?\d{1,9}", value):
        raise BadRequest(f"Not a number: {value[:40]!r}")
    return min(max(int(value), low), high)


def next_link(hub: Hub, request: Request, **changes: str | int) -> dict[str, str]:
    """The `Link` header to the next page: this request with these parameters changed."""
    kept = [(key, value) for key, value in request.query_params.multi_items() if key not in changes]
    query = urlencode([*kept, *((key, str(value)) for key, value in changes.items())])
    raw = request.scope.get("raw_path", b"").decode("ascii", "replace").split("?")[0]
    return {"Link": f'<{base_url(hub, request)}{raw}?{query}>; rel="next"'}


# errors


def error_response(error: HubError) -> Response:
    """The Hub's way of saying no: a status, two headers and a JSON body."""
    # headers are latin-1 and one line; the body says it in full
    message = error.message.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")[:500]
    headers = {"X-Error-Message": message, **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="localhub"'
    return JSONResponse({"error": error.message, **error.extra}, status_code=error.status, headers=headers)


def on_hub_error(_request: Request, error: Exception) -> Response:
    """Handler of `HubError`."""
    assert isinstance(error, HubError)
    return error_response(error)


def on_http_error(_request: Request, error: Exception) -> Response:
    """Unknown addresses and methods: JSON, like everything else."""
    assert isinstance(error, HTTPException)
    missing = "Sorry, we can't find the page you are looking for."
    message = missing if error.status_code == 404 else error.detail
    return JSONResponse({"error": message}, status_code=error.status_code, headers=error.headers)


def on_moved(request: Request, error: Exception) -> Response:
    """A renamed repo: 307, which keeps method and body."""
    assert isinstance(error, RepoMoved)
    raw = request.scope.get("raw_path", b"").decode("ascii", "replace").split("?")[0]
    target = raw.replace(f"/{error.old_id}", f"/{error.new_id}", 1)
    if target == raw:  # the old name stands in the body: there is no address to send the caller to
        return error_response(RepoNotFound())
    query = request.url.query
    return RedirectResponse(f"{target}?{query}" if query else target, status_code=307)


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a spooled body."""
    yield from file
