"""Changing repos: make, delete, rename, settings, access, branches and tags."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import auth
from .errors import BadRequest, Conflict, Forbidden, NotFound, RevisionNotFound
from .hub import Hub
from .names import MAIN, check_branch, check_owner, check_repo_id, check_repo_type
from .pulls import RefChange
from .repos import Repo
from .web import Body, HubDep, RepoDep, Who, base_url, json_object, unmask

router = APIRouter()


# branches and tags


@router.post("/api/{kind:kind}/{owner}/{name}/branch/{branch:path}")
def create_branch(branch: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """A new branch, from main or `startingPoint`."""
    auth.check_admin(repo, who)
    start = json_object(body).get("startingPoint")
    ref = f"refs/heads/{check_branch(unmask(branch))}"
    return _create_ref(hub, request, repo, ref, start if isinstance(start, str) else None)


@router.post("/api/{kind:kind}/{owner}/{name}/tag/{revision:path}")
def create_tag(revision: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """A new tag on a revision."""
    auth.check_admin(repo, who)
    ref = f"refs/tags/{check_branch(json_object(body).get('tag'))}"
    return _create_ref(hub, request, repo, ref, unmask(revision))


def _create_ref(hub: Hub, request: Request, repo: Repo, ref: str, start: str | None) -> dict[str, Any]:
    with hub.locks.hold(repo.lock):
        if ref in repo.store.refs():
            raise Conflict(f"Reference already exists: {ref}")
        oid = repo.store.resolve(start)
        repo.store.set_refs({ref: oid})
    change = RefChange(ref, None, oid)
    hub.emit("repo.content", "update", repo, base_url(hub, request), changes=(change,))
    return {"ref": ref, "targetCommit": oid}


@router.delete("/api/{kind:kind}/{owner}/{name}/branch/{branch:path}")
def delete_branch(branch: str, request: Request, hub: HubDep, repo: RepoDep, who: Who) -> dict[str, bool]:
    """Delete a branch; main stays."""
    auth.check_admin(repo, who)
    ref = f"refs/heads/{unmask(branch)}"
    if ref == MAIN:
        raise Forbidden("Forbidden: the main branch cannot be deleted")
    return _delete_ref(hub, request, repo, ref)


@router.delete("/api/{kind:kind}/{owner}/{name}/tag/{tag:path}")
def delete_tag(tag: str, request: Request, hub: HubDep, repo: RepoDep, who: Who) -> dict[str, bool]:
    """Delete a tag."""
    auth.check_admin(repo, who)
    return _delete_ref(hub, request, repo, f"refs/tags/{unmask(tag)}")


def _delete_ref(hub: Hub, request: Request, repo: Repo, ref: str) -> dict[str, bool]:
    with hub.locks.hold(repo.lock):
        old = repo.store.refs().get(ref)
        if old is None:
            raise RevisionNotFound(ref)
        repo.store.set_refs({ref: None})
    hub.emit("repo.content", "update", repo, base_url(hub, request), changes=(RefChange(ref, old, None),))
    return {"ok": True}


# making, deleting, moving, settings


def _visibility(data: dict[str, Any]) -> bool | None:
    visibility = data.get("visibility")
    if visibility not in (None, "public", "private", "protected"):
        raise BadRequest("Invalid visibility")
    if visibility is not None:
        return bool(visibility == "private")
    private = data.get("private")
    return private if isinstance(private, bool) else None


def _named(who: auth.Identity, data: dict[str, Any]) -> str:
    owner = data.get("organization") or who.require_user()
    return check_repo_id(f"{check_owner(owner)}/{data.get('name')}")


@router.post("/api/repos/create")
def create_repo(request: Request, hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """Make a repo in the caller's own namespace or in one of their organisations."""
    name = who.require_write()
    data = json_object(body)
    repo_type, repo_id = check_repo_type(data.get("type")), _named(who, data)
    owner = repo_id.split("/")[0]
    who.require_write("repo.write", repo_id)
    if not who.is_member(owner):
        raise Forbidden(f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}"')
    settings: dict[str, Any] = {"private": bool(_visibility(data))}
    if repo_type == "space":
        settings["sdk"] = str(data.get("sdk") or "static")[:40]
    prefix = "" if repo_type == "model" else f"{repo_type}s/"
    url = f"{base_url(hub, request)}/{prefix}{repo_id}"
    try:
        repo = hub.repos.create(repo_type, repo_id, author=name, settings=settings)
    except Conflict as error:
        raise Conflict(error.message, url=url) from None
    hub.emit("repo", "create", repo, base_url(hub, request))
    return {"url": url, "name": repo_id, "id": repo.meta()["id"]}


@router.delete("/api/repos/delete")
def delete_repo(request: Request, hub: HubDep, who: Who, body: Body) -> dict[str, bool]:
    """Delete a repo for good."""
    data = json_object(body)
    repo = hub.repos.get(check_repo_type(data.get("type")), _named(who, data))
    auth.check_readable(repo, who)
    auth.check_admin(repo, who)
    meta = repo.meta()
    hub.repos.delete(repo)
    hub.emit("repo", "delete", repo, base_url(hub, request), meta=meta)
    return {"ok": True}


@router.post("/api/repos/move")
def move_repo(request: Request, hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """Rename or transfer; the caller must own both names."""
    data = json_object(body)
    repo = hub.repos.get(check_repo_type(data.get("type")), check_repo_id(data.get("fromRepo")))
    auth.check_readable(repo, who)
    auth.check_admin(repo, who)
    new_id = check_repo_id(data.get("toRepo"))
    if not who.is_member(new_id.split("/")[0]):
        raise Forbidden(f'You don\'t have the rights to move it to the namespace "{new_id.split("/")[0]}"')
    moved = hub.repos.move(repo, new_id)
    target = {"movedTo": {"name": new_id, "owner": {"id": auth.user_id(moved.owner)}}}
    hub.emit("repo", "move", repo, base_url(hub, request), meta=moved.meta(), extra=target)
    return {"url": f"{base_url(hub, request)}/{moved.web_path}"}


@router.put("/api/{kind:kind}/{owner}/{name}/settings")
def settings(request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """Visibility, gating, and whether discussions are on."""
    auth.check_admin(repo, who)
    data = json_object(body)
    changes: dict[str, Any] = {}
    if (private := _visibility(data)) is not None:
        changes["private"] = private
    if "gated" in data:
        if data["gated"] not in (False, "auto", "manual"):
            raise BadRequest("gated must be 'auto', 'manual' or false")
        changes["gated"] = data["gated"]
    if "discussionsDisabled" in data:
        changes["discussionsDisabled"] = bool(data["discussionsDisabled"])
    if not changes:
        raise BadRequest("At least one setting must be given")
    with hub.locks.hold(repo.lock):
        repo.update_meta(changes)
    hub.emit("repo.config", "update", repo, base_url(hub, request), extra={"updatedConfig": changes})
    return changes


@router.post("/api/{kind:kind}/{owner}/{name}/user-access-request/grant")
def grant_access(hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, bool]:
    """Let a user read the files of a gated repo."""
    auth.check_admin(repo, who)
    user = json_object(body).get("user")
    if not isinstance(user, str) or hub.users.kind(user) != "user":
        raise NotFound("User not found")
    with hub.locks.hold(repo.lock):
        meta = repo.meta()
        if not meta.get("gated") or user in meta.get("access", []):
            raise BadRequest("The repo is not gated, or the user has access already")
        repo.update_meta({"access": sorted([*meta.get("access", []), user])})
    return {"ok": True}
