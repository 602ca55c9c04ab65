"""Jobs over HTTP: hardware, run, list, look, logs, cancel."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from . import auth, hardware
from .auth import Identity
from .errors import BadRequest, Forbidden, HubError
from .hub import Hub
from .job_sandbox import Mount
from .jobs import DEFAULT_TIMEOUT_S, ENDED, Job, VolumeError, events, matching
from .names import check_path
from .routes_buckets import find_bucket
from .web import Body, HubDep, Who, find_repo, json_object, next_link, number

router = APIRouter()
_PAGE = 100
_MAX_TIMEOUT_S = 7 * 24 * 3600
_MAX_ENVIRONMENT = 1 << 20
_LABEL = re.compile(r"[A-Za-z0-9._/-]{0,128}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOUNT = re.compile(r"(/[A-Za-z0-9._-]+)+")
_KEEP_ALIVE_S = 15.0


@router.get("/api/jobs/hardware")
def list_hardware() -> list[dict[str, Any]]:
    """What Jobs may run on, with prices."""
    return hardware.rows()


def _namespace(who: Identity, owner: str) -> None:
    who.require_user()
    if not who.is_member(owner):
        raise Forbidden(f'You don\'t have the rights to see the Jobs of "{owner}"')


def _row(hub: Hub, job: Job) -> dict[str, Any]:
    kind = hub.users.kind(job.owner) or "user"
    return job.row({"id": auth.user_id(job.owner), "name": job.owner, "type": kind})


@router.post("/api/jobs/{owner}")
def run(owner: str, hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """Take a Job on."""
    who.require_write("job.write", owner)
    _namespace(who, owner)
    data = json_object(body)
    asked, secrets = _asked(data)
    volumes = [_volume(one) for one in asked["volumes"]]

    def prepare(folder: Path) -> list[Mount]:
        return [_mounted(hub, who, one, folder / str(i)) for i, one in enumerate(volumes)]

    return _row(hub, hub.jobs.start(owner, asked, secrets, prepare))


def _asked(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a Job is to be, checked; and the values of its secrets, which are written nowhere."""
    command, arguments = _texts(data.get("command")), _texts(data.get("arguments", []))
    if not command:
        raise BadRequest("command must not be empty")
    environment, secrets = _variables(data.get("environment")), _variables(data.get("secrets"))
    if not isinstance(data.get("dockerImage") or data.get("spaceId"), str):
        raise BadRequest("dockerImage or spaceId is required")
    if data.get("flavor") not in hardware.NAMES:
        raise BadRequest(f"Invalid flavor: {str(data.get('flavor'))[:40]!r}")
    timeout = data.get("timeoutSeconds", DEFAULT_TIMEOUT_S)
    if type(timeout) is not int or not 0 < timeout <= _MAX_TIMEOUT_S:
        raise BadRequest("timeoutSeconds must be from 1 second to 7 days")
    labels = data.get("labels") or {}
    if not isinstance(labels, dict) or not all(
        isinstance(text, str) and _LABEL.fullmatch(text) for pair in labels.items() for text in pair
    ):
        raise BadRequest("Invalid labels")
    volumes = data.get("volumes") or []
    if not isinstance(volumes, list) or len(volumes) > 20:
        raise BadRequest("volumes must be a list of at most 20")
    asked = {
        **{name: data.get(name) for name in ("dockerImage", "spaceId", "flavor")},
        "command": command,
        "arguments": arguments,
        "environment": environment,
        "secrets": dict.fromkeys(secrets, ""),
        "timeoutSeconds": timeout,
        "labels": labels,
        "volumes": volumes,
    }
    return asked, secrets


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and "\0" not in one for one in value):
        raise BadRequest("command and arguments must be lists of strings")
    return value


def _variables(value: Any) -> dict[str, str]:
    value = value or {}
    if not isinstance(value, dict) or not all(_VARIABLE.fullmatch(str(name)) for name in value):
        raise BadRequest("Invalid names of environment variables")
    texts = {name: str(text) for name, text in value.items()}
    if sum(map(len, texts.values())) > _MAX_ENVIRONMENT or any("\0" in text for text in texts.values()):
        raise BadRequest("The environment is too large")
    return texts


def _volume(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("type") not in ("model", "dataset", "space", "bucket"):
        raise BadRequest("A volume's type must be model, dataset, space or bucket")
    source, target = value.get("source"), value.get("mountPath")
    if not isinstance(source, str) or source.count("/") != 1:
        raise BadRequest("A volume's source must be 'owner/name'")
    if not isinstance(target, str) or not _MOUNT.fullmatch(target) or {".", ".."} & set(target.split("/")):
        raise BadRequest("A volume's mountPath must be an absolute path")
    path = value.get("path")
    if path is not None:
        if not isinstance(path, str):
            raise BadRequest("A volume's path must be a string")
        if path.strip("/"):
            check_path(path.strip("/"))
    return value


def _mounted(hub: Hub, who: Identity, volume: dict[str, Any], folder: Path) -> Mount:
    """A volume's folder; whatever stands in its way is the Job's error."""
    owner, name = volume["source"].split("/")
    inside = (volume.get("path") or "").strip("/")
    try:
        if volume["type"] == "bucket":
            read_only = volume.get("readOnly") is True
            found = find_bucket(hub, who, owner, name, write=not read_only).folder_of(inside)
            if found is None:
                raise VolumeError(f"there is no folder {inside!r} in the bucket {volume['source']}")
            return Mount(found, volume["mountPath"], read_only)
        repo = find_repo(hub, who, f"{volume['type']}s", volume["source"])
        auth.check_files(repo, who)
        _snapshot(repo.store, repo.store.resolve(volume.get("revision") or "main"), inside, folder)
    except HubError as error:
        raise VolumeError(f"{volume['source']}: {error.message}") from None
    return Mount(folder, volume["mountPath"], True)


def _snapshot(store: Any, commit: str, inside: str, folder: Path) -> None:
    """A commit's files by their names, hard-linked: the mount is read-only."""
    folder.mkdir(parents=True)
    prefix = f"{inside}/" if inside else ""
    for path, entry in store.tree(commit).items():
        if path.startswith(prefix):
            target = folder / path.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(store.content_path(entry), target)
            except OSError:
                shutil.copyfile(store.content_path(entry), target)


@router.get("/api/jobs/{owner}")
def list_jobs(owner: str, request: Request, hub: HubDep, who: Who) -> Response:
    """An owner's Jobs, newest first, by stages and labels."""
    _namespace(who, owner)
    params = request.query_params
    found = list(matching(hub.jobs.of(owner), stages=params.getlist("stage"), labels=params.getlist("label")))
    skip = number(params.get("skip"), default=0, low=0, high=10**9)
    more = next_link(hub, request, skip=skip + _PAGE) if len(found) > skip + _PAGE else None
    return JSONResponse([_row(hub, job) for job in found[skip : skip + _PAGE]], headers=more)


@router.get("/api/jobs/{owner}/{job_id}")
def look(owner: str, job_id: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """One Job."""
    _namespace(who, owner)
    return _row(hub, hub.jobs.get(owner, job_id))


@router.post("/api/jobs/{owner}/{job_id}/cancel")
def cancel(owner: str, job_id: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """End a Job."""
    who.require_write("job.write", owner)
    _namespace(who, owner)
    job = hub.jobs.get(owner, job_id)
    hub.jobs.cancel(job)
    return _row(hub, job)


@router.get("/api/jobs/{owner}/{job_id}/logs")
def logs(owner: str, job_id: str, request: Request, hub: HubDep, who: Who) -> Response:
    """What a Job says, as server-sent events from its first line (or the last `tail`) to its end."""
    _namespace(who, owner)
    job = hub.jobs.get(owner, job_id)
    tail = request.query_params.get("tail")
    last = None if tail is None else number(tail, default=0, low=0, high=100_000)
    headers = {"Cache-Control": "no-cache"}
    return StreamingResponse(
        _events(hub, job, last, hub.job_faults.take_cut()), media_type="text/event-stream", headers=headers
    )


async def _events(hub: Hub, job: Job, tail: int | None, cut: int | None) -> AsyncIterator[str]:
    offset, told, quiet = 0, 0, 0.0
    while True:
        # Asked before reading: what is written before the end is read after it.
        ended = job.stage in ENDED
        lines, offset = await anyio.to_thread.run_sync(events, job, offset)
        for line in lines if tail is None else list(_last(lines, tail)):
            if cut is not None and told >= cut:
                return
            told += 1
            yield f"data: {line}\n\n"
        tail = None
        quiet = 0.0 if lines else quiet + 0.05
        if (ended and not lines) or hub.jobs.stopping.is_set():
            return
        if quiet >= _KEEP_ALIVE_S:
            quiet = 0.0
            yield ": keep-alive\n\n"
        await anyio.sleep(0.05)


def _last(lines: list[str], tail: int) -> Iterator[str]:
    yield from lines[max(len(lines) - tail, 0) :]
