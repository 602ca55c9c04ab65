"""Discussions and pull requests."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import discussions, pulls
from .auth import check_discussions, check_enabled
from .errors import NotFound
from .hub import Hub
from .repos import Repo
from .web import Body, HubDep, RepoDep, Who, base_url, json_object, number

router = APIRouter()
_BASE = "/api/{kind:kind}/{owner}/{name}/discussions"


def _num(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NotFound(f"Discussion {text[:20]} not found")
    return int(text)


def _tell_comment(
    hub: Hub, url: str, repo: Repo, discussion: dict[str, Any], event: dict[str, Any], action: str
) -> None:
    hub.emit("discussion.comment", action, repo, url, discussion=discussion, comment=event)


@router.get(_BASE)
def list_discussions(request: Request, hub: HubDep, repo: RepoDep) -> dict[str, Any]:
    """A page of discussions, filtered by type, status and author."""
    check_discussions(repo)
    params = request.query_params
    return discussions.page(
        repo,
        hub.users.owner(repo.owner),
        index=number(params.get("p"), default=0, low=0, high=10**6),
        kind=params.get("type", "all"),
        status=params.get("status", "all"),
        author=params.get("author"),
    )


@router.get(_BASE + "/{num}")
def details(num: str, hub: HubDep, repo: RepoDep) -> dict[str, Any]:
    """One discussion with its events; a pull request with its diff and conflicts."""
    check_enabled(repo)
    return pulls.details_json(repo, discussions.load(repo, _num(num)), hub.users.owner(repo.owner))


@router.post(_BASE)
def create(request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """Open a discussion, or an empty pull request as a draft."""
    who.require_write("discussion.write", repo.repo_id)
    data = json_object(body)
    made = pulls.open_discussion(
        hub.locks,
        repo,
        who,
        title=discussions.check_title(data.get("title")),
        text=discussions.check_text(data.get("description") or "", empty=True),
        pull_request=bool(data.get("pullRequest")),
    )
    url = base_url(hub, request)
    hub.emit("discussion", "create", repo, url, discussion=made, comment=made["events"][0])
    row = discussions.summary_json(repo, made, hub.users.owner(repo.owner))
    return {**row, "url": f"{url}/{repo.web_path}/discussions/{made['num']}"}


@router.post(_BASE + "/{num}/comment")
def comment(num: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """Comment."""
    name = who.require_write("discussion.write", repo.repo_id)
    check_discussions(repo)
    event = discussions.comment_event(name, discussions.check_text(json_object(body).get("comment")))
    with hub.locks.hold(repo.lock):
        found = discussions.load(repo, _num(num))
        found["events"].append(event)
        discussions.save(repo, found)
    _tell_comment(hub, base_url(hub, request), repo, found, event, "create")
    return {"newMessage": discussions.event_json(event, hub.users.owner(repo.owner))}


@router.post(_BASE + "/{num}/comment/{comment_id}/edit")
def edit(
    num: str, comment_id: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body
) -> dict[str, Any]:
    """Change the text of one's own comment."""
    who.require_write("discussion.write", repo.repo_id)
    text = discussions.check_text(json_object(body).get("content"))
    with hub.locks.hold(repo.lock):
        found = discussions.load(repo, _num(num))
        event = discussions.edit_comment(found, comment_id, who, text)
        discussions.save(repo, found)
    _tell_comment(hub, base_url(hub, request), repo, found, event, "update")
    return {"updatedComment": discussions.event_json(event, hub.users.owner(repo.owner))}


@router.post(_BASE + "/{num}/comment/{comment_id}/hide")
def hide(num: str, comment_id: str, request: Request, hub: HubDep, repo: RepoDep, who: Who) -> dict[str, Any]:
    """Hide a comment for good."""
    who.require_write("discussion.write", repo.repo_id)
    with hub.locks.hold(repo.lock):
        found = discussions.load(repo, _num(num))
        event = discussions.hide_comment(found, comment_id, who, repo.owner)
        discussions.save(repo, found)
    _tell_comment(hub, base_url(hub, request), repo, found, event, "update")
    return {"updatedComment": discussions.event_json(event, hub.users.owner(repo.owner))}


@router.post(_BASE + "/{num}/title")
def title(num: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """Rename."""
    who.require_write("discussion.write", repo.repo_id)
    new = discussions.check_title(json_object(body).get("title"))
    with hub.locks.hold(repo.lock):
        found = discussions.load(repo, _num(num))
        name = discussions.check_may_moderate(repo, found, who)
        event = discussions.title_event(name, found["title"], new)
        found = {**found, "title": new, "events": [*found["events"], event]}
        discussions.save(repo, found)
    hub.emit("discussion", "update", repo, base_url(hub, request), discussion=found)
    return {"newTitle": discussions.event_json(event, hub.users.owner(repo.owner))}


def _optional_text(body: bytes) -> tuple[dict[str, Any], str | None]:
    data = json_object(body)
    text = data.get("comment")
    return data, discussions.check_text(text) if text else None


@router.post(_BASE + "/{num}/status")
def status(num: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """Close, reopen, or make a draft ready."""
    data, text = _optional_text(body)
    found, events = pulls.set_status(hub.locks, repo, who, _num(num), data.get("status"), text)
    url = base_url(hub, request)
    for event in events[:-1]:
        _tell_comment(hub, url, repo, found, event, "create")
    hub.emit("discussion", "update", repo, url, discussion=found)
    return {"newStatus": discussions.event_json(events[-1], hub.users.owner(repo.owner))}


@router.post(_BASE + "/{num}/merge")
def merge(num: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Body) -> dict[str, Any]:
    """Merge a pull request into main."""
    _, text = _optional_text(body)
    found, change, events = pulls.merge(hub.locks, repo, who, _num(num), text)
    url = base_url(hub, request)
    for event in events[:-1]:
        _tell_comment(hub, url, repo, found, event, "create")
    hub.emit("discussion", "update", repo, url, discussion=found)
    hub.emit("repo.content", "update", repo, url, changes=(change,))
    return {"newStatus": discussions.event_json(events[-1], hub.users.owner(repo.owner)), "mergeCommitId": change.new}
