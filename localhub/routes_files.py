"""Files: tree, paths-info and downloads with ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from . import auth, ranges
from .errors import BadRequest, EntryNotFound, InvalidName
from .gitobj import Entry
from .info import add_last_commits, tree_rows
from .names import check_path
from .repos import Repo
from .web import (
    Body,
    HubDep,
    RepoDep,
    Who,
    find_repo,
    form,
    is_true,
    next_link,
    split_revision,
    unmask,
)

router = APIRouter()
_PAGE, _EXPANDED_PAGE = 1000, 50
_MAX_PATHS = 2000
_CHUNK = 1024 * 1024


@router.get("/api/{kind:kind}/{owner}/{name}/tree/{rest:path}")
def tree(rest: str, request: Request, hub: HubDep, repo: RepoDep) -> Response:
    """What lies in a folder, or (recursive) below it."""
    auth.check_enabled(repo)
    revision, folder = split_revision(rest)
    folder = check_path(folder.rstrip("/")) if folder.strip("/") else ""
    recursive, expand = (is_true(request.query_params.get(key)) for key in ("recursive", "expand"))
    head = repo.store.resolve(revision)
    rows = tree_rows(repo.store.tree(head))
    if folder and rows.get(folder, {}).get("type") != "directory":
        raise EntryNotFound(f"{folder} does not exist on {revision}")
    prefix = f"{folder}/" if folder else ""
    inside = [row for path, row in rows.items() if path.startswith(prefix)]
    if not recursive:
        inside = [row for row in inside if "/" not in row["path"][len(prefix) :]]
    after = request.query_params.get("cursor")
    if after is not None:
        inside = [row for row in inside if row["path"] > after]
    size = _EXPANDED_PAGE if expand else _PAGE
    page = inside[:size]
    if expand:
        add_last_commits(repo.store, head, page)
    more = next_link(hub, request, cursor=page[-1]["path"]) if len(inside) > size else None
    return JSONResponse(page, headers=more)


@router.post("/api/{kind:kind}/{owner}/{name}/paths-info/{revision:path}")
def paths_info(revision: str, repo: RepoDep, body: Body) -> list[dict[str, Any]]:
    """The asked paths; those that do not exist are left out."""
    auth.check_enabled(repo)
    fields = form(body)
    paths = [value for key, value in fields if key in ("paths", "paths[]")]
    if len(paths) > _MAX_PATHS:
        raise BadRequest(f"At most {_MAX_PATHS} paths can be asked for at once")
    head = repo.store.resolve(unmask(revision))
    rows = tree_rows(repo.store.tree(head))
    found = [rows[path] for path in dict.fromkeys(path.rstrip("/") for path in paths) if path in rows]
    if any(key == "expand" and is_true(value) for key, value in fields):
        add_last_commits(repo.store, head, found)
    return found


# downloads


def _read(path: Path, part: ranges.Part) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(part.start)
        left = part.length
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk


def _headers(entry: Entry, commit: str, name: str) -> dict[str, str]:
    etag = f'"{entry.lfs or entry.oid}"'
    headers = {
        "ETag": etag,
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
        # strangers' files: never as a page of ours
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if entry.lfs:
        headers.update({"X-Linked-Etag": etag, "X-Linked-Size": str(entry.size)})
    return headers


def _download(request: Request, repo: Repo, who: auth.Identity, rest: str) -> Response:
    revision, path = split_revision(rest)
    auth.check_files(repo, who)
    commit = repo.store.resolve(revision)
    try:
        entry = repo.store.tree(commit).get(check_path(path))
    except InvalidName:
        entry = None
    content = repo.store.content_path(entry) if entry else None
    if entry is None or content is None or not content.exists():
        raise EntryNotFound("Entry not found")
    headers = _headers(entry, commit, path.rsplit("/", 1)[-1])
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if request.headers.get("if-range") not in (None, headers["ETag"]):
        wanted = None
    part = ranges.parse(wanted, entry.size)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{entry.size}"
    status = 200 if part is None else 206
    part = part or ranges.Part(0, entry.size)
    headers["Content-Length"] = str(part.length)
    media = "application/octet-stream" if entry.lfs else "text/plain; charset=utf-8"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media)
    if part.start == 0:
        repo.count_download()
    return StreamingResponse(_read(content, part), status_code=status, headers=headers, media_type=media)


@router.api_route("/{kind:kind}/{owner}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
@router.api_route("/{kind:kind}/{owner}/{name}/raw/{rest:path}", methods=["GET", "HEAD"])
def resolve(kind: str, owner: str, name: str, rest: str, request: Request, hub: HubDep, who: Who) -> Response:
    """A file of a dataset or space."""
    return _download(request, find_repo(hub, who, kind, f"{owner}/{name}"), who, rest)


@router.api_route("/{owner}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
@router.api_route("/{owner}/{name}/raw/{rest:path}", methods=["GET", "HEAD"])
def resolve_model(owner: str, name: str, rest: str, request: Request, hub: HubDep, who: Who) -> Response:
    """A file of a model."""
    return _download(request, find_repo(hub, who, "models", f"{owner}/{name}"), who, rest)
