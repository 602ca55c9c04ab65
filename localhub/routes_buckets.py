"""Buckets: make, list, put, delete, and the keys to Xet's own API (`routes_xet`)."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from .auth import Identity
from .buckets import Bucket
from .errors import BadRequest, Conflict, Forbidden, HubError, NotFound, RepoNotFound, Unprocessable
from .hub import Hub
from .names import check_owner, check_path, is_sha256
from .web import Body, HubDep, Who, base_url, is_true, json_object, next_link, unmask

router = APIRouter()
_PAGE = 1000
_TOKEN_VALID_S = 6 * 3600
_MAX_OPERATIONS = 10_000


def find_bucket(hub: Hub, who: Identity, owner: str, name: str, *, write: bool = False) -> Bucket:
    """The bucket, if the caller may see it, and (`write`) change it."""
    try:
        bucket = hub.buckets.get(f"{owner}/{name}")
    except BadRequest:
        raise NotFound("Not found") from None
    if bucket.meta()["private"] and not who.is_member(bucket.owner):
        raise RepoNotFound("Bucket not found")
    if write:
        who.require_write("repo.write", bucket.bucket_id)
        if not who.is_member(bucket.owner):
            raise Forbidden("You don't have the rights to change this bucket")
    return bucket


@router.get("/api/buckets/{owner}")
def list_buckets(owner: str, request: Request, hub: HubDep, who: Who) -> list[dict[str, Any]]:
    """The buckets of an owner that the caller may see."""
    owner = who.require_user() if owner == "me" else check_owner(owner)
    search = request.query_params.get("search", "")
    seen = [one for one in hub.buckets.of(owner) if who.is_member(owner) or not one.meta()["private"]]
    return [_info(one) for one in seen if search in one.bucket_id]


@router.post("/api/buckets/{owner}/{name}")
def create(owner: str, name: str, request: Request, hub: HubDep, who: Who, body: Body) -> dict[str, str]:
    """Make a bucket in the caller's own namespace or in one of their organisations."""
    owner = who.require_user() if owner == "me" else owner
    who.require_write("repo.write", f"{owner}/{name}")
    if not who.is_member(owner):
        raise Forbidden(f'You don\'t have the rights to create a bucket under the namespace "{owner}"')
    data = json_object(body)
    private = data.get("visibility") == "private" or data.get("private") is True
    url = f"{base_url(hub, request)}/buckets/{owner}/{name}"
    try:
        hub.buckets.create(f"{owner}/{name}", private=private)
    except Conflict as error:
        raise Conflict(error.message, url=url) from None
    return {"url": url}


@router.get("/api/buckets/{owner}/{name}")
def info(owner: str, name: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """One bucket."""
    return _info(find_bucket(hub, who, owner, name))


def _info(bucket: Bucket) -> dict[str, Any]:
    meta, sizes = bucket.meta(), [row.size for row in bucket.rows()]
    about = {"id": bucket.bucket_id, "private": meta["private"], "createdAt": meta["createdAt"]}
    return {**about, "size": sum(sizes), "totalFiles": len(sizes)}


@router.delete("/api/buckets/{owner}/{name}")
def delete(owner: str, name: str, hub: HubDep, who: Who) -> dict[str, bool]:
    """Delete a bucket for good."""
    hub.buckets.delete(find_bucket(hub, who, owner, name, write=True))
    return {"ok": True}


@router.put("/api/buckets/{owner}/{name}/settings")
def settings(owner: str, name: str, hub: HubDep, who: Who, body: Body) -> dict[str, bool]:
    """Make it private or public."""
    bucket = find_bucket(hub, who, owner, name, write=True)
    with hub.locks.hold(bucket.lock):
        bucket.set_private(json_object(body).get("private") is True)
    return {"ok": True}


@router.get("/api/buckets/{owner}/{name}/tree")
def tree_of_all(owner: str, name: str, request: Request, hub: HubDep, who: Who) -> Response:
    """What lies in a bucket."""
    return _tree(find_bucket(hub, who, owner, name), "", request, hub)


@router.get("/api/buckets/{owner}/{name}/tree/{prefix:path}")
def tree(owner: str, name: str, prefix: str, request: Request, hub: HubDep, who: Who) -> Response:
    """What begins with a prefix (of the text, not of folders)."""
    return _tree(find_bucket(hub, who, owner, name), unmask(prefix), request, hub)


def _tree(bucket: Bucket, prefix: str, request: Request, hub: Hub) -> Response:
    rows: dict[str, dict[str, Any]] = {}
    recursive = is_true(request.query_params.get("recursive"))
    for row in bucket.rows():
        if not row.path.startswith(prefix):
            continue
        folder, inside, _rest = row.path[len(prefix) :].partition("/")
        if inside and not recursive:
            path = f"{prefix}{folder}"
            rows.setdefault(path, {"type": "directory", "path": path, "uploadedAt": row.row()["uploadedAt"]})
        else:
            rows[row.path] = row.row()
    after = request.query_params.get("cursor")
    names = sorted(name for name in rows if after is None or name > after)
    page = names[:_PAGE]
    more = next_link(hub, request, cursor=page[-1]) if len(names) > _PAGE else None
    return JSONResponse([rows[name] for name in page], headers=more)


@router.post("/api/buckets/{owner}/{name}/paths-info")
def paths_info(owner: str, name: str, hub: HubDep, who: Who, body: Body) -> list[dict[str, Any]]:
    """The asked files; those that do not exist are left out."""
    bucket = find_bucket(hub, who, owner, name)
    paths = json_object(body).get("paths")
    if not isinstance(paths, list) or len(paths) > _PAGE:
        raise BadRequest(f"paths must be a list of at most {_PAGE}")
    found = (bucket.row(check_path(path)) for path in paths)
    return [row.row() for row in found if row is not None]


@router.post("/api/buckets/{owner}/{name}/batch")
def batch(owner: str, name: str, hub: HubDep, who: Who, body: Body) -> Response:
    """Put and delete files, each for itself: those that failed are told, with 422 where all did."""
    bucket = find_bucket(hub, who, owner, name, write=True)
    lines = [line for line in body.splitlines() if line.strip()]
    if len(lines) > _MAX_OPERATIONS:
        raise BadRequest(f"At most {_MAX_OPERATIONS} operations at once")
    failed = []
    for line in lines:
        data = _operation(line)
        try:
            _apply(hub, bucket, data)
        except HubError as error:
            failed.append({"path": str(data.get("path")), "error": error.message})
    done = {"processed": len(lines), "succeeded": len(lines) - len(failed), "failed": failed}
    return JSONResponse(
        {"success": not failed, **done}, status_code=422 if lines and len(failed) == len(lines) else 200
    )


def _operation(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("A line is not valid JSON") from None
    if not isinstance(data, dict):
        raise BadRequest("Every line must be a JSON object")
    return data


def _apply(hub: Hub, bucket: Bucket, data: dict[str, Any]) -> None:
    kind, path = data.get("type"), check_path(data.get("path"))
    if kind == "deleteFile":
        bucket.delete(path)
        return
    name, mtime = data.get("xetHash"), data.get("mtime")
    if kind != "addFile" or not isinstance(name, str) or not is_sha256(name):
        raise Unprocessable("Only addFile, with the hash of an uploaded file, and deleteFile can be done here")
    made = hub.buckets.assemble(name)
    try:
        bucket.put(path, made, mtime_ms=mtime if isinstance(mtime, int) and 0 <= mtime < 1 << 43 else None)
    finally:
        made.unlink(missing_ok=True)


# the way to the bytes


@router.get("/api/buckets/{owner}/{name}/xet-write-token")
def write_token(owner: str, name: str, request: Request, hub: HubDep, who: Who) -> Response:
    """A key for uploads to a bucket."""
    return _token(find_bucket(hub, who, owner, name, write=True), "write", request, hub)


@router.get("/api/buckets/{owner}/{name}/xet-read-token")
def read_token(owner: str, name: str, request: Request, hub: HubDep, who: Who) -> Response:
    """A key for downloads from a bucket."""
    return _token(find_bucket(hub, who, owner, name), "read", request, hub)


def _token(bucket: Bucket, mode: str, request: Request, hub: Hub) -> Response:
    expires = int(time.time()) + _TOKEN_VALID_S
    token, url = hub.xet_token(bucket.bucket_id, mode, expires), f"{base_url(hub, request)}/xet/{hub.buckets.name}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


@router.head("/buckets/{owner}/{name}/resolve/{path:path}")
def resolve(owner: str, name: str, path: str, request: Request, hub: HubDep, who: Who) -> Response:
    """A file's size, and where the key for its download is."""
    bucket = find_bucket(hub, who, owner, name)
    row = bucket.row(unmask(path))
    if row is None:
        raise NotFound("Entry not found")
    link = f"{base_url(hub, request)}/api/buckets/{quote(bucket.bucket_id)}/xet-read-token"
    headers = {"X-Xet-Hash": row.id, "X-Linked-Size": str(row.size), "Link": f'<{link}>; rel="xet-auth"'}
    return Response(status_code=200, headers=headers)
