"""The commit endpoint."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import commits, pulls
from .hub import Hub
from .pulls import Committed
from .repos import Repo
from .web import HubDep, RepoDep, Spooled, Who, base_url, is_true, lines_of, unmask

router = APIRouter()


def _announce(hub: Hub, url: str, repo: Repo, done: Committed) -> None:
    if done.opened is not None:
        first = done.opened["events"][0]
        hub.emit("discussion", "create", repo, url, discussion=done.opened, comment=first)
    hub.emit("repo.content", "update", repo, url, changes=(done.change,))


@router.post("/api/{kind:kind}/{owner}/{name}/commit/{revision:path}")
def commit(revision: str, request: Request, hub: HubDep, repo: RepoDep, who: Who, body: Spooled) -> dict[str, Any]:
    """Commit to a branch or a pull request, or open a pull request with `create_pr=1`."""
    who.require_write()
    create_pr = is_true(request.query_params.get("create_pr"))
    if not create_pr:
        pulls.check_may_commit(repo, who, unmask(revision))
    parsed = commits.parse(lines_of(body))
    act = pulls.commit_as_pull if create_pr else pulls.commit
    done = act(hub.locks, repo, who, unmask(revision), parsed)
    url = base_url(hub, request)
    _announce(hub, url, repo, done)
    answer: dict[str, Any] = {
        "success": True,
        "commitOid": done.commit.oid,
        "commitUrl": f"{url}/{repo.web_path}/commit/{done.commit.oid}",
        "hookOutput": "",
    }
    if done.opened is not None:
        answer["pullRequestUrl"] = f"{url}/{repo.web_path}/discussions/{done.opened['num']}"
    return answer
