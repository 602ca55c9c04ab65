"""Looking at repos: lists, one repo, its refs and commits; and whoami and validate-yaml."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from . import auth, card
from .errors import BadRequest, DisabledRepo
from .info import INFO_FIELDS, RepoInfo, commit_json, sibling
from .listing import Query, check_expand, find
from .names import check_repo_type, repo_type_of
from .repos import Repo
from .web import Body, HubDep, RepoDep, Who, is_true, json_object, next_link, number, unmask

router = APIRouter()
_COMMITS_PAGE = 50


@router.get("/api/whoami-v2")
def whoami(hub: HubDep, who: Who, request: Request) -> dict[str, Any]:
    """Who the token belongs to."""
    name = who.require_user()
    token = hub.users.token_facts(request.headers.get("authorization", ""))
    orgs = [
        {"type": "org", "id": auth.user_id(org), "name": org, "fullname": org, "roleInOrg": "write"} for org in who.orgs
    ]
    return {
        "type": "user",
        "id": auth.user_id(name),
        "name": name,
        "fullname": name,
        "isPro": False,
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": token},
    }


@router.post("/api/validate-yaml")
def validate_yaml(body: Body) -> Response:
    """Check a README's front matter."""
    data = json_object(body)
    content = data.get("content")
    if not isinstance(content, str):
        raise BadRequest("content is required")
    found = card.validate(content, check_repo_type(data.get("repoType")))
    answer = {
        "errors": [{"message": message} for message in found.errors],
        "warnings": [{"message": message} for message in found.warnings],
    }
    return JSONResponse(answer, status_code=400 if found.errors else 200)


@router.get("/api/{kind:kind}")
def list_repos(kind: str, request: Request, hub: HubDep, who: Who) -> Response:
    """`list_models`, `list_datasets`, `list_spaces`."""
    params = request.query_params
    gated = params.get("gated")
    tags = [tag for item in params.getlist("filter") for tag in item.split(",") if tag]
    query = Query(
        author=params.get("author"),
        tags=(*tags, *params.getlist("pipeline_tag")),
        search=tuple(params.getlist("search")),
        gated=None if gated is None else is_true(gated),
        sort=params.get("sort", "lastModified"),
        ascending=params.get("direction") == "1",
        limit=number(params.get("limit"), default=1000, low=1, high=1000),
        cursor=params.get("cursor"),
        full=is_true(params.get("full")),
        card_data=is_true(params.get("cardData")),
        expand=check_expand(params.getlist("expand")),
    )
    rows, more = find(hub.repos, repo_type_of(kind), who, query)
    return JSONResponse(rows, headers=next_link(hub, request, cursor=more) if more else None)


# one repo


def _info(request: Request, repo: Repo, revision: str | None) -> Response:
    if repo.meta().get("disabled") == "all":
        raise DisabledRepo()
    found = RepoInfo(repo, revision)
    expand = check_expand(request.query_params.getlist("expand"))
    out = found.json(expand or INFO_FIELDS)
    if is_true(request.query_params.get("blobs")):
        out["siblings"] = [sibling(path, entry, blobs=True) for path, entry in sorted(found.tree.items())]
    if is_true(request.query_params.get("securityStatus")):
        out["securityRepoStatus"] = {"scansDone": False, "filesWithIssues": []}
    return JSONResponse(out)


@router.get("/api/{kind:kind}/{owner}/{name}")
def repo_info(request: Request, repo: RepoDep) -> Response:
    """`model_info`, `dataset_info`, `space_info`."""
    return _info(request, repo, None)


@router.get("/api/{kind:kind}/{owner}/{name}/revision/{revision:path}")
def revision_info(revision: str, request: Request, repo: RepoDep) -> Response:
    """The same, at a revision."""
    return _info(request, repo, unmask(revision))


@router.get("/api/{kind:kind}/{owner}/{name}/auth-check")
def auth_check(repo: RepoDep, who: Who) -> dict[str, bool]:
    """Whether the caller may read the files."""
    auth.check_files(repo, who)
    return {"ok": True}


@router.get("/api/{kind:kind}/{owner}/{name}/auth-check/write")
def auth_check_write(repo: RepoDep, who: Who) -> dict[str, bool]:
    """Whether the caller may write to main."""
    auth.check_admin(repo, who)
    return {"ok": True}


@router.get("/api/{kind:kind}/{owner}/{name}/refs")
def refs(request: Request, repo: RepoDep) -> dict[str, Any]:
    """Branches, tags and (asked for) pull requests."""
    groups: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    keys = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
    for ref, oid in sorted(repo.store.refs().items()):
        _, group, name = ref.split("/", 2)
        groups[keys[group]].append({"name": name, "ref": ref, "targetCommit": oid})
    if not is_true(request.query_params.get("include_prs")):
        del groups["pullRequests"]
    return dict(groups)


@router.get("/api/{kind:kind}/{owner}/{name}/commits/{revision:path}")
def commits(revision: str, request: Request, hub: HubDep, repo: RepoDep) -> Response:
    """The history of a revision, newest first."""
    index = number(request.query_params.get("p"), default=0, low=0, high=10**6)
    size = number(request.query_params.get("limit"), default=_COMMITS_PAGE, low=1, high=1000)
    history = list(repo.store.history(repo.store.resolve(unmask(revision))))
    page = history[index * size : (index + 1) * size]
    more = next_link(hub, request, p=index + 1) if len(history) > (index + 1) * size else {}
    total = {"X-Total-Count": str(len(history))}
    return JSONResponse([commit_json(item) for item in page], headers={**total, **more})
