"""Xet's own API, as far as buckets need it: xorbs and shards come in, reconstructions and made-up xorbs go out.

What newer clients try first (`/v2/...`, grants, global chunks) is not here: they take 404 and go on with this.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from . import ranges
from .buckets import Bucket
from .errors import BadRequest, NotFound, TooLarge, Unauthorized
from .names import is_sha256
from .web import Body, HubDep, base_url
from .xet import MAX_XORB, n_xorbs, pieces, reconstruction, xorb_size

#: The folder's own name is in the address: the client remembers, by address, which xorbs it has uploaded.
router = APIRouter(prefix="/xet/{_folder}")


def _key(request: Request, hub: HubDep) -> tuple[str, str]:
    """The bucket and the mode that the caller's key is for."""
    _scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return hub.read_xet_token(token)


Key = Annotated[tuple[str, str], Depends(_key)]


def _writing(key: tuple[str, str]) -> None:
    if key[1] != "write":
        raise Unauthorized("This key is for reading")


@router.post("/v1/xorbs/default/{name}")
async def put_xorb(name: str, request: Request, hub: HubDep, key: Key) -> dict[str, bool]:
    """A xorb, streamed to disk."""
    _writing(key)
    if not is_sha256(name):
        raise BadRequest("Not a xorb's name")
    folder = hub.root / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    path, size = folder / f"xorb-{uuid.uuid4().hex}", 0
    try:
        with path.open("xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_XORB:
                    raise TooLarge("The xorb is too large")
                await anyio.to_thread.run_sync(file.write, chunk)
        new = not hub.buckets.has_xorb(name)
        await anyio.to_thread.run_sync(hub.buckets.keep_xorb, name, path)
    finally:
        path.unlink(missing_ok=True)
    return {"was_inserted": new}


@router.post("/v1/shards")
def put_shard(hub: HubDep, key: Key, body: Body) -> dict[str, int]:
    """How files are made of xorbs."""
    _writing(key)
    hub.buckets.keep_shard(body)
    return {"result": 1}


@router.get("/v1/reconstructions/{file_id}")
def reconstruct(file_id: str, request: Request, hub: HubDep, key: Key) -> dict[str, Any]:
    """Where the bytes of a file are."""
    bucket = hub.buckets.get(key[0])
    row = bucket.by_id(file_id)
    if row is None:
        raise NotFound("There is no such file")
    part = ranges.parse(request.headers.get("range"), row.size) or ranges.Part(0, row.size)
    # The address carries its own key: the client sends none there.
    token = hub.xet_token(key[0], f"read {file_id}", hub.xet_expiry())
    url = f"{base_url(hub, request)}/xet/{hub.buckets.name}/read/{token}"
    return reconstruction(file_id, row.size, part.start, part.end, url)


@router.get("/read/{token}/{number}")
def read(token: str, number: int, request: Request, hub: HubDep) -> Response:
    """Bytes of the `number`-th xorb of the file that the key is for."""
    bucket_id, mode = hub.read_xet_token(token)
    bucket = hub.buckets.get(bucket_id)
    row = bucket.by_id(mode.removeprefix("read "))
    if row is None or not 0 <= number < n_xorbs(row.size):
        raise NotFound("There is no such xorb")
    size = xorb_size(row.size, number)
    part = ranges.parse(request.headers.get("range"), size)
    headers = {"Accept-Ranges": "bytes"}
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    status, part = (200, ranges.Part(0, size)) if part is None else (206, part)
    headers["Content-Length"] = str(part.length)
    return StreamingResponse(_xorb(bucket, row.path, row.size, number, part), status, headers)


def _xorb(bucket: Bucket, path: str, size: int, number: int, part: ranges.Part) -> Iterator[bytes]:
    at = 0
    with bucket.open(path) as file:
        for piece in pieces(size, number):
            length = len(piece.head) + piece.length
            low, high = max(part.start - at, 0), min(part.end - at, length)
            at += length
            if low < high:
                file.seek(piece.offset)
                yield (piece.head + file.read(piece.length))[low:high]
            if at >= part.end:
                return
