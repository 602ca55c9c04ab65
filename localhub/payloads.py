"""What a webhook is told, in the Hub's version 3 shape. Pure but for reading the repo's head."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from .auth import user_id
from .errors import HubError
from .names import MAIN
from .pulls import RefChange
from .repos import Repo


def repo_json(repo: Repo, url: str, meta: dict[str, Any]) -> dict[str, Any]:
    """The repo of an event."""
    out: dict[str, Any] = {
        "type": repo.repo_type,
        "name": repo.repo_id,
        "id": meta["id"],
        "private": bool(meta.get("private")),
        "url": {"web": f"{url}/{repo.web_path}", "api": f"{url}/{repo.api_path}"},
        "owner": {"id": user_id(repo.owner)},
    }
    with suppress(HubError):  # just deleted
        out["headSha"] = repo.store.resolve(MAIN)
    return out


def discussion_json(repo: Repo, url: str, discussion: dict[str, Any]) -> dict[str, Any]:
    """The discussion of an event."""
    num = discussion["num"]
    out: dict[str, Any] = {
        "id": discussion["id"],
        "title": discussion["title"],
        "url": {
            "web": f"{url}/{repo.web_path}/discussions/{num}",
            "api": f"{url}/{repo.api_path}/discussions/{num}",
        },
        "status": discussion["status"],
        "author": {"id": user_id(discussion["author"])},
        "num": num,
        "isPullRequest": discussion["isPullRequest"],
        "pinned": False,
    }
    if discussion["isPullRequest"]:
        out["changes"] = {"base": discussion["base"]}
        if discussion["mergeOid"]:
            out["changes"]["mergeCommitId"] = discussion["mergeOid"]
    return out


def comment_json(repo: Repo, url: str, num: int, comment: dict[str, Any]) -> dict[str, Any]:
    """The comment of an event; a hidden one keeps its text to itself."""
    out: dict[str, Any] = {
        "id": comment["id"],
        "author": {"id": user_id(comment["author"])},
        "hidden": comment["data"]["hidden"],
        "url": {"web": f"{url}/{repo.web_path}/discussions/{num}#{comment['id']}"},
    }
    if not comment["data"]["hidden"]:
        out["content"] = comment["data"]["latest"]["raw"]
    return out


def event_payload(
    scope: str,
    action: str,
    repo: Repo,
    url: str,
    *,
    meta: dict[str, Any],
    discussion: dict[str, Any] | None = None,
    comment: dict[str, Any] | None = None,
    changes: tuple[RefChange, ...] = (),
) -> dict[str, Any]:
    """The payload, all but the part about the webhook itself."""
    out: dict[str, Any] = {"event": {"action": action, "scope": scope}, "repo": repo_json(repo, url, meta)}
    if discussion is not None:
        out["discussion"] = discussion_json(repo, url, discussion)
        if comment is not None:
            out["comment"] = comment_json(repo, url, discussion["num"], comment)
    if changes:
        out["updatedRefs"] = [change.json() for change in changes]
    return out
