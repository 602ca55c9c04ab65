"""Discussions and pull requests on disk: one JSON file each, a list of events, as the API gives them back."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from .auth import Identity, Owner, user_id
from .disk import now, random_id, read_json, write_json
from .errors import BadRequest, Forbidden, NotFound
from .names import MAIN, pr_number
from .repos import Repo

Discussion = dict[str, Any]
Event = dict[str, Any]

HIDDEN_TEXT = "This comment has been hidden"
_MAX_TEXT = 65_536
_PAGE = 50


# the file


def load(repo: Repo, num: int) -> Discussion:
    """One discussion; 404 if there is none with this number."""
    found = read_json(repo.path / "discussions" / f"{num}.json") if num > 0 else None
    if found is None:
        raise NotFound(f"Discussion {num} not found")
    return dict(found)


def save(repo: Repo, discussion: Discussion) -> None:
    """Write it; the caller holds the repo's lock."""
    write_json(repo.path / "discussions" / f"{discussion['num']}.json", discussion)


def every(repo: Repo) -> Iterator[Discussion]:
    """All of a repo's discussions, newest first."""
    numbers = (int(path.stem) for path in (repo.path / "discussions").glob("[1-9]*.json"))
    for num in sorted(numbers, reverse=True):
        yield load(repo, num)


def next_number(repo: Repo) -> int:
    """The next free number. Refs count too: a crash may have left `refs/pr/N` without its discussion."""
    used = [int(path.stem) for path in (repo.path / "discussions").glob("[1-9]*.json")]
    used += [number for ref in repo.store.refs() if (number := pr_number(ref))]
    return max(used, default=0) + 1


# making and changing


def check_title(title: object) -> str:
    """3 to 200 characters, as on the Hub."""
    if not isinstance(title, str) or not 3 <= len(title.strip()) <= 200:
        raise BadRequest("The title must be between 3 and 200 characters long")
    return title.strip()


def check_text(text: object, *, empty: bool = False) -> str:
    """The text of a comment or description, at most 65536 characters."""
    if not isinstance(text, str) or len(text) > _MAX_TEXT or (not empty and not text.strip()):
        raise BadRequest("The comment must be a non-empty string of at most 65536 characters")
    return text


def _event(kind: str, author: str, data: dict[str, Any]) -> Event:
    return {"id": random_id(), "type": kind, "createdAt": now(), "author": author, "data": data}


def comment_event(author: str, text: str) -> Event:
    """A comment."""
    latest = {"raw": text, "updatedAt": now(), "author": author}
    return _event("comment", author, {"edited": False, "hidden": False, "latest": latest, "history": []})


def status_event(author: str, status: str) -> Event:
    """Opened, closed or merged."""
    return _event("status-change", author, {"status": status})


def title_event(author: str, old: str, new: str) -> Event:
    """Renamed."""
    return _event("title-change", author, {"from": old, "to": new})


def commit_event(author: str, oid: str, subject: str) -> Event:
    """A commit was pushed to the pull request."""
    return _event("commit", author, {"oid": oid, "subject": subject})


def make(
    num: int,
    *,
    title: str,
    author: str,
    text: str,
    pull_request: bool,
    status: str = "open",
    base_oid: str | None = None,
) -> Discussion:
    """A new discussion or pull request (not saved yet); its description is its first comment."""
    return {
        "num": num,
        "id": random_id(),
        "title": title,
        "status": status,
        "author": author,
        "isPullRequest": pull_request,
        "createdAt": now(),
        "base": MAIN if pull_request else None,
        "baseOid": base_oid,
        "mergeOid": None,
        "events": [comment_event(author, text)],
    }


def find_comment(discussion: Discussion, comment_id: str) -> Event:
    """A comment by its id."""
    for event in discussion["events"]:
        if event["id"] == comment_id and event["type"] == "comment":
            return dict(event)
    raise NotFound("Comment not found")


def _put_comment(discussion: Discussion, comment: Event) -> Event:
    events = discussion["events"]
    discussion["events"] = [comment if event["id"] == comment["id"] else event for event in events]
    return comment


def edit_comment(discussion: Discussion, comment_id: str, who: Identity, text: str) -> Event:
    """Only its author may; what it said before goes into the history."""
    comment = find_comment(discussion, comment_id)
    if comment["author"] != who.name:
        raise Forbidden("Forbidden: only the author of a comment can edit it")
    data = comment["data"]
    if data["hidden"]:
        raise BadRequest("A hidden comment cannot be edited")
    latest = {"raw": text, "updatedAt": now(), "author": who.name}
    changed = {**data, "edited": True, "latest": latest, "history": [*data["history"], data["latest"]]}
    return _put_comment(discussion, {**comment, "data": changed})


def hide_comment(discussion: Discussion, comment_id: str, who: Identity, owner: str) -> Event:
    """Its author or the repo's owner may; the text is gone for good, as on the Hub."""
    comment = find_comment(discussion, comment_id)
    if comment["author"] != who.name and not who.is_member(owner):
        raise Forbidden("Forbidden: you cannot hide this comment")
    latest = {**comment["data"]["latest"], "raw": HIDDEN_TEXT, "updatedAt": now()}
    data = {**comment["data"], "hidden": True, "hiddenBy": who.name, "latest": latest, "history": []}
    return _put_comment(discussion, {**comment, "data": data})


def check_may_moderate(repo: Repo, discussion: Discussion, who: Identity) -> str:
    """Status and title are for the discussion's author and the repo's owner."""
    name = who.require_write("discussion.write", repo.repo_id)
    if name != discussion["author"] and not who.is_member(repo.owner):
        raise Forbidden("Forbidden: only the author or an owner of the repo can do this")
    return name


# as the API gives it


def author_json(name: str, owner: Owner) -> dict[str, Any]:
    """How the API names a user: `isOwner` and `isOrgMember` are there only where they are true."""
    out: dict[str, Any] = {"_id": user_id(name), "name": name, "fullname": name, "type": "user", "avatarUrl": ""}
    if name == owner.name:
        out["isOwner"] = True
    if name in owner.members:
        out["isOrgMember"] = True
    return out


def event_json(event: Event, owner: Owner) -> dict[str, Any]:
    """An event in the API's shape."""
    out = {**event, "author": author_json(event["author"], owner)}
    if event["type"] == "comment":
        data = event["data"]
        raw = data["latest"]["raw"]
        shown = {
            **data["latest"],
            "html": f"<p>{html.escape(raw)}</p>",
            "author": author_json(data["latest"]["author"], owner),
        }
        history = [{**old, "author": author_json(old["author"], owner)} for old in data["history"]]
        out["data"] = {**data, "latest": shown, "numEdits": len(history), "history": history}
    return out


def summary_json(repo: Repo, discussion: Discussion, owner: Owner) -> dict[str, Any]:
    """A row of the list."""
    comments = sum(event["type"] == "comment" for event in discussion["events"])
    return {
        "num": discussion["num"],
        "title": discussion["title"],
        "status": discussion["status"],
        "author": author_json(discussion["author"], owner),
        "repo": {"name": repo.repo_id, "type": repo.repo_type},
        "isPullRequest": discussion["isPullRequest"],
        "createdAt": discussion["createdAt"],
        "numComments": comments,
        "pinned": False,
    }


def _matches(discussion: Discussion, *, kind: str, status: str, author: str | None) -> bool:
    if kind != "all" and discussion["isPullRequest"] != (kind == "pull_request"):
        return False
    if status != "all" and (discussion["status"] in ("open", "draft")) != (status == "open"):
        return False
    return author is None or discussion["author"] == author


def page(repo: Repo, owner: Owner, *, index: int, kind: str, status: str, author: str | None) -> dict[str, Any]:
    """One page of the list; `open` takes in drafts and `closed` what was merged."""
    if kind not in ("all", "discussion", "pull_request") or status not in ("all", "open", "closed"):
        raise BadRequest("Invalid filter for discussions")
    found = [item for item in every(repo) if _matches(item, kind=kind, status=status, author=author)]
    start = index * _PAGE
    return {
        "count": len(found),
        "start": start,
        "numClosedDiscussions": sum(item["status"] in ("closed", "merged") for item in found),
        "discussions": [summary_json(repo, item, owner) for item in found[start : start + _PAGE]],
    }
