"""The pages that a person opens: the list of repos, a repo, a discussion with its diff, a commit."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from . import discussions, html, pulls, trees
from .auth import Identity, check_files
from .errors import NotFound
from .hub import Hub
from .info import RepoInfo, card_text
from .names import MAIN
from .repos import Repo
from .web import HubDep, Who, find_repo

router = APIRouter()
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_MAX_LISTED = 500


def _answer(title: str, body: str) -> HTMLResponse:
    return HTMLResponse(html.page(title, body), headers=_HEADERS)


@router.get("/")
def index(hub: HubDep, who: Who) -> HTMLResponse:
    """Every repo that the caller may see."""
    rows = []
    for repo in hub.repos.all():
        meta = repo.meta()
        if not meta.get("private") or who.is_member(repo.owner):
            changed = repo.store.commit(repo.store.resolve(MAIN)).date[:10]
            rows.append(f"<tr><td>{html.link(repo.web_path, repo.repo_id)}<td>{repo.repo_type}<td>{changed}")
    body = f"<table>{''.join(rows)}</table>" if rows else "<p class=soft>No repos yet.</p>"
    return _answer("localhub", f"<h1>Repos in this folder</h1>{body}")


def _title(repo: Repo) -> str:
    return f"<h1>{html.link(repo.web_path, repo.repo_id)} <small>{repo.repo_type}</small></h1>"


def _repo_page(repo: Repo) -> HTMLResponse:
    info = RepoInfo(repo)
    found = [item for _, item in zip(range(_MAX_LISTED), discussions.every(repo), strict=False)]
    tags = " ".join(f'<span class="badge">{escape(tag)}</span>' for tag in info.tags())
    text = card_text(repo.store, info.tree)
    card = f"<pre class=text>{escape(text)}</pre>" if text else "<p class=soft>No README.md.</p>"
    shut = repo.meta().get("discussionsDisabled")
    talk = "<p class=soft>Switched off.</p>" if shut else html.discussion_list(repo.web_path, found)
    return _answer(
        repo.repo_id,
        f"{_title(repo)}<p>{tags}</p><h2>Discussions and pull requests</h2>{talk}"
        f"<h2>Files</h2>{html.files(repo.web_path, info.tree)}<h2>Card</h2>{card}",
    )


def _discussion_page(repo: Repo, num: str) -> HTMLResponse:
    if not (num.isascii() and num.isdigit() and len(num) < 10):
        raise NotFound("Not found")
    item = discussions.load(repo, int(num))
    kind = "Pull request" if item["isPullRequest"] else "Discussion"
    body = (
        f"{_title(repo)}<h1>{escape(item['title'])} <small>#{item['num']}</small></h1>"
        f"<p>{html.badge(item['status'])} {kind} by <b>{escape(item['author'])}</b></p>"
        + "".join(html.event(event) for event in item["events"])
    )
    if item["isPullRequest"]:
        conflicts = pulls.conflicts(repo, item)
        if conflicts:
            body += f"<p class=closed>Conflicts in: {escape(', '.join(conflicts))}</p>"
        body += f"<h2>Changes</h2>{html.diff(pulls.diff(repo, item))}"
    return _answer(f"{item['title']} · {repo.repo_id}", body)


def _commit_page(repo: Repo, who: Identity, oid: str) -> HTMLResponse:
    check_files(repo, who)
    commit = repo.store.commit(repo.store.resolve(oid))
    before = repo.store.tree(commit.parents[0]) if commit.parents else {}
    body = (
        f"{_title(repo)}<h1>{escape(commit.title)}</h1>"
        f"<p><b>{escape(commit.author)}</b> <code>{commit.oid}</code> <small>{commit.date}</small></p>"
    )
    if commit.message:
        body += f"<pre class=text>{escape(commit.message)}</pre>"
    return _answer(commit.title, body + html.diff(trees.unified(before, repo.store.tree(commit.oid), repo.store.read)))


def _repo(hub: Hub, who: Identity, kind: str, owner: str, name: str) -> Repo:
    return find_repo(hub, who, kind, f"{owner}/{name}")


@router.get("/{kind:kind}/{owner}/{name}")
def other_repo_page(kind: str, owner: str, name: str, hub: HubDep, who: Who) -> HTMLResponse:
    """A dataset or space."""
    return _repo_page(_repo(hub, who, kind, owner, name))


@router.get("/{kind:kind}/{owner}/{name}/discussions/{num}")
def other_discussion_page(kind: str, owner: str, name: str, num: str, hub: HubDep, who: Who) -> HTMLResponse:
    """A discussion of a dataset or space."""
    return _discussion_page(_repo(hub, who, kind, owner, name), num)


@router.get("/{kind:kind}/{owner}/{name}/commit/{oid}")
def other_commit_page(kind: str, owner: str, name: str, oid: str, hub: HubDep, who: Who) -> HTMLResponse:
    """A commit of a dataset or space."""
    return _commit_page(_repo(hub, who, kind, owner, name), who, oid)


@router.get("/{owner}/{name}")
def repo_page(owner: str, name: str, hub: HubDep, who: Who) -> HTMLResponse:
    """A model: card, files, discussions."""
    return _repo_page(_repo(hub, who, "models", owner, name))


@router.get("/{owner}/{name}/discussions/{num}")
def discussion_page(owner: str, name: str, num: str, hub: HubDep, who: Who) -> HTMLResponse:
    """A discussion or pull request of a model."""
    return _discussion_page(_repo(hub, who, "models", owner, name), num)


@router.get("/{owner}/{name}/commit/{oid}")
def commit_page(owner: str, name: str, oid: str, hub: HubDep, who: Who) -> HTMLResponse:
    """A commit of a model."""
    return _commit_page(_repo(hub, who, "models", owner, name), who, oid)
