"""Uploads: preupload, the LFS batch API, the upload itself, verify."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from .auth import Identity
from .errors import BadRequest, NotFound, RepoNotFound, TooLarge, Unprocessable
from .hub import Hub
from .names import check_path, is_sha256, repo_type_of
from .pulls import check_may_commit
from .repos import Repo
from .uploads import Incoming, lfs_patterns, upload_mode
from .web import Body, HubDep, RepoDep, Who, base_url, find_repo, is_true, json_object, unmask

router = APIRouter()
_MAX_OBJECTS = 1000
_BUFFER = 1024 * 1024


@router.post("/api/{kind:kind}/{owner}/{name}/preupload/{revision:path}")
def preupload(revision: str, request: Request, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """For each file: regular or LFS, and what the repo has at its path already."""
    revision = unmask(revision)
    who.require_write()
    if not is_true(request.query_params.get("create_pr")):
        check_may_commit(repo, who, revision)
    tree = repo.store.tree(repo.store.resolve(revision))
    attributes = tree.get(".gitattributes")
    rules = repo.store.read(attributes, limit=_BUFFER) if attributes else b""
    patterns = lfs_patterns(rules.decode("utf-8", "replace"))
    files = json_object(body).get("files")
    if not isinstance(files, list) or len(files) > _MAX_OBJECTS:
        raise BadRequest(f"files must be a list of at most {_MAX_OBJECTS}")
    out = []
    for item in files:
        path, size, sample = _preupload_item(item)
        mode = upload_mode(path, size=size, sample=sample, patterns=patterns)
        entry = tree.get(path)
        row: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if entry is not None and (entry.lfs is not None) == (mode == "lfs"):
            row["oid"] = entry.lfs or entry.oid
        out.append(row)
    return {"files": out, "commitOid": repo.store.resolve(revision)}


def _preupload_item(item: Any) -> tuple[str, int, bytes]:
    if not isinstance(item, dict) or not isinstance(item.get("size"), int) or item["size"] < 0:
        raise BadRequest("Every file needs a path, a size and a sample")
    try:
        sample = base64.b64decode(item.get("sample") or "", validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise BadRequest("The sample is not valid base64") from None
    return check_path(item.get("path")), item["size"], sample


# the LFS batch API


def _object(item: Any) -> tuple[str, int]:
    oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
    if not isinstance(oid, str) or not is_sha256(oid) or type(size) is not int or size < 0:
        raise Unprocessable("Every object needs a sha256 oid and a size")
    return oid, size


def _batch(request: Request, hub: Hub, who: Identity, repo: Repo, data: dict[str, Any]) -> Response:
    who.require_write()
    if data.get("operation") != "upload":
        raise Unprocessable("Only uploads go through here; download with /resolve/")
    ref = data.get("ref")
    if isinstance(ref, dict) and isinstance(ref.get("name"), str):
        check_may_commit(repo, who, ref["name"])
    items = data.get("objects")
    if not isinstance(items, list) or len(items) > _MAX_OBJECTS:
        raise Unprocessable(f"objects must be a list of at most {_MAX_OBJECTS}")
    url, out = base_url(hub, request), []
    for oid, size in map(_object, items):
        row: dict[str, Any] = {"oid": oid, "size": size}
        if size > hub.max_lfs_bytes:
            row["error"] = {"code": 413, "message": f"At most {hub.max_lfs_bytes} bytes a file"}
        elif repo.store.lfs_size(oid) != size:
            expires, signature = hub.sign_upload(repo, oid, size)
            query = f"size={size}&expires={expires}&signature={signature}"
            row["actions"] = {
                "upload": {"href": f"{url}/lfs-upload/{repo.repo_type}s/{repo.repo_id}/{oid}?{query}"},
                "verify": {"href": f"{url}/{repo.web_path}.git/info/lfs/verify"},
            }
        out.append(row)
    answer = {"transfer": "basic", "objects": out, "hash_algo": "sha256"}
    return JSONResponse(answer, media_type="application/vnd.git-lfs+json")


def _verify(who: Identity, repo: Repo, data: dict[str, Any]) -> dict[str, bool]:
    who.require_write()
    oid, size = _object(data)
    if repo.store.lfs_size(oid) != size:
        raise NotFound("The object is missing, or has another size")
    return {"success": True}


@router.post("/{owner}/{name}.git/info/lfs/objects/batch")
def batch_model(owner: str, name: str, request: Request, hub: HubDep, who: Who, body: Body) -> Response:
    """Which objects of a model are missing, and where to put them."""
    return _batch(request, hub, who, find_repo(hub, who, "models", f"{owner}/{name}"), json_object(body))


@router.post("/{kind:kind}/{owner}/{name}.git/info/lfs/objects/batch")
def batch(kind: str, owner: str, name: str, request: Request, hub: HubDep, who: Who, body: Body) -> Response:
    """The same for a dataset or space."""
    return _batch(request, hub, who, find_repo(hub, who, kind, f"{owner}/{name}"), json_object(body))


@router.post("/{owner}/{name}.git/info/lfs/verify")
def verify_model(owner: str, name: str, hub: HubDep, who: Who, body: Body) -> dict[str, bool]:
    """Whether an object of a model arrived."""
    return _verify(who, find_repo(hub, who, "models", f"{owner}/{name}"), json_object(body))


@router.post("/{kind:kind}/{owner}/{name}.git/info/lfs/verify")
def verify(kind: str, owner: str, name: str, hub: HubDep, who: Who, body: Body) -> dict[str, bool]:
    """The same for a dataset or space."""
    return _verify(who, find_repo(hub, who, kind, f"{owner}/{name}"), json_object(body))


@router.put("/lfs-upload/{kind:kind}/{owner}/{name}/{oid}")
async def upload(
    kind: str,
    owner: str,
    name: str,
    oid: str,
    size: int,
    expires: int,
    signature: str,
    request: Request,
    hub: HubDep,
) -> dict[str, bool]:
    """The bytes, streamed to disk; all file work happens in threads."""
    repo = await anyio.to_thread.run_sync(lambda: hub.repos.get(repo_type_of(kind), f"{owner}/{name}"))
    hub.check_upload(repo, oid, size, expires, signature)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) != size:
        raise TooLarge("The body has another size than was announced")
    incoming = await anyio.to_thread.run_sync(lambda: Incoming(hub.root / "tmp", sha256=oid, size=size))
    try:
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= _BUFFER:
                await anyio.to_thread.run_sync(incoming.write, bytes(pending))
                pending.clear()
        await anyio.to_thread.run_sync(incoming.write, bytes(pending))
        await anyio.to_thread.run_sync(_keep, hub, repo, incoming)
    finally:
        await anyio.to_thread.run_sync(incoming.discard)
    return {"success": True}


def _keep(hub: Hub, repo: Repo, incoming: Incoming) -> None:
    with hub.locks.hold(repo.lock):
        if not repo.path.exists():  # deleted while it came in
            raise RepoNotFound()
        incoming.finish(repo.store)
