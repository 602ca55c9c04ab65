"""Commits to branches and pull requests, and merging. Each function holds the repo's lock while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import commits, discussions, trees
from .auth import Identity, Owner, check_admin, check_discussions, check_enabled
from .commits import CommitRequest
from .discussions import Discussion
from .disk import Locks
from .errors import BadRequest, Conflict, Forbidden, NotFound, RevisionNotFound, StaleParent
from .gitobj import Commit
from .names import MAIN, pr_number
from .repos import Repo


@dataclass(frozen=True)
class RefChange:
    """A ref that moved, for webhooks."""

    ref: str
    old: str | None
    new: str | None

    def json(self) -> dict[str, str | None]:
        """As a webhook's payload says it."""
        return {"ref": self.ref, "oldSha": self.old, "newSha": self.new}


@dataclass(frozen=True)
class Committed:
    """What a commit request led to."""

    commit: Commit
    change: RefChange
    opened: Discussion | None = None


def pull_ref(num: int) -> str:
    """`refs/pr/N`."""
    return f"refs/pr/{num}"


def _target(repo: Repo, revision: str) -> str:
    """The branch or pull request that a commit goes to."""
    ref = repo.store.ref_name(revision)
    if ref is None:
        repo.store.resolve(revision)  # a 404 if it is nothing at all
    if ref is None or ref.startswith("refs/tags/"):
        raise BadRequest("You can only commit to a branch or a pull request")
    return ref


def check_may_commit(repo: Repo, who: Identity, revision: str) -> None:
    """Owners commit anywhere; a pull request's author commits to it; others are told to open one."""
    name = who.require_write()
    check_enabled(repo)
    ref = _target(repo, revision)
    num = pr_number(ref)
    who.require_write("repo.write" if num is None else "discussion.write", repo.repo_id)
    if num is not None:
        pull = discussions.load(repo, num)
        if name != pull["author"] and not who.is_member(repo.owner):
            raise Forbidden("Forbidden: only the author of a pull request and owners of the repo can commit to it")
        if pull["status"] in ("closed", "merged"):
            raise Forbidden(f"Forbidden: this pull request is {pull['status']}")
    elif not who.is_member(repo.owner):
        raise Forbidden("Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")


def commit(locks: Locks, repo: Repo, who: Identity, revision: str, request: CommitRequest) -> Committed:
    """Commit to a branch or to an open pull request."""
    with locks.hold(repo.lock):
        check_may_commit(repo, who, revision)
        ref = _target(repo, revision)
        head = repo.store.refs()[ref]
        if request.parent is not None and request.parent != head:
            raise StaleParent()
        made = _commit_on(repo, who, head, request)
        repo.store.set_refs({ref: made.oid})
        num = pr_number(ref)
        if num is not None:
            pull = discussions.load(repo, num)
            pull["events"].append(discussions.commit_event(made.author, made.oid, made.title))
            discussions.save(repo, pull)
    return Committed(made, RefChange(ref, head, made.oid))


def _commit_on(repo: Repo, who: Identity, base: str, request: CommitRequest) -> Commit:
    tree = commits.apply(repo.store, repo.store.tree(base), request, repo.repo_type)
    author = who.require_write()
    return repo.store.put_commit(tree, parents=(base,), author=author, title=request.title, message=request.message)


def commit_as_pull(locks: Locks, repo: Repo, who: Identity, revision: str, request: CommitRequest) -> Committed:
    """Commit to a new pull request; `parentCommit` chooses what it is based on."""
    author = who.require_write("discussion.write", repo.repo_id)
    check_discussions(repo)
    if repo.store.ref_name(revision) != MAIN:
        raise BadRequest("A pull request can only be opened against main")
    with locks.hold(repo.lock):
        base = request.parent or repo.store.resolve(MAIN)
        if not repo.store.has_commit(base):
            raise RevisionNotFound(base)
        made = _commit_on(repo, who, base, request)
        num = discussions.next_number(repo)
        title = request.title[:200]
        title = title if len(title.strip()) >= 3 else f"{title} (#{num})"
        pull = discussions.make(num, title=title, author=author, text=request.message, pull_request=True, base_oid=base)
        pull["events"].append(discussions.commit_event(author, made.oid, made.title))
        repo.store.set_refs({pull_ref(num): made.oid})
        discussions.save(repo, pull)
    return Committed(made, RefChange(pull_ref(num), None, made.oid), opened=pull)


def open_discussion(
    locks: Locks, repo: Repo, who: Identity, *, title: str, text: str, pull_request: bool
) -> Discussion:
    """A discussion, or an empty pull request, which starts as a draft."""
    author = who.require_write("discussion.write", repo.repo_id)
    check_discussions(repo)
    with locks.hold(repo.lock):
        num = discussions.next_number(repo)
        head = repo.store.resolve(MAIN)
        status = "draft" if pull_request else "open"
        made = discussions.make(
            num,
            title=title,
            author=author,
            text=text,
            pull_request=pull_request,
            status=status,
            base_oid=head if pull_request else None,
        )
        if pull_request:
            repo.store.set_refs({pull_ref(num): head})
        discussions.save(repo, made)
    return made


def head_of(repo: Repo, pull: Discussion) -> str:
    """The last commit of a pull request."""
    head = repo.store.refs().get(pull_ref(pull["num"]))
    if head is None:
        raise NotFound(f"{pull_ref(pull['num'])} is gone")
    return head


def _merge_of(repo: Repo, pull: Discussion) -> trees.Merge:
    store = repo.store
    base, main, head = pull["baseOid"], store.resolve(MAIN), head_of(repo, pull)
    return trees.merge(store.tree(base), store.tree(main), store.tree(head), store.read)


def conflicts(repo: Repo, pull: Discussion) -> list[str]:
    """The files that keep an open pull request from being merged."""
    return [] if pull["status"] in ("closed", "merged") else list(_merge_of(repo, pull).conflicts)


def diff(repo: Repo, pull: Discussion) -> str:
    """What the pull request changes, since where it branched off."""
    store = repo.store
    return trees.unified(store.tree(pull["baseOid"]), store.tree(head_of(repo, pull)), store.read)


def details_json(repo: Repo, discussion: Discussion, owner: Owner) -> dict[str, Any]:
    """The whole discussion, as the API gives it."""
    events = [discussions.event_json(event, owner) for event in discussion["events"]]
    out = {**discussions.summary_json(repo, discussion, owner), "events": events, "locked": False}
    if discussion["isPullRequest"]:
        changes: dict[str, Any] = {"base": discussion["base"]}
        if discussion["mergeOid"]:
            changes["mergeCommitId"] = discussion["mergeOid"]
        out.update(changes=changes, filesWithConflicts=conflicts(repo, discussion), diff=diff(repo, discussion))
    return out


def set_status(
    locks: Locks, repo: Repo, who: Identity, num: int, status: object, text: str | None
) -> tuple[Discussion, list[discussions.Event]]:
    """Open (a draft too) or close; the new events, the status change last."""
    if status not in ("open", "closed"):
        raise BadRequest("Invalid status: it must be 'open' or 'closed'")
    with locks.hold(repo.lock):
        discussion = discussions.load(repo, num)
        name = discussions.check_may_moderate(repo, discussion, who)
        if discussion["status"] == "merged":
            raise BadRequest("A merged pull request cannot be opened or closed")
        if discussion["status"] == status:
            raise BadRequest(f"The discussion is {status} already")
        new = [discussions.comment_event(name, text)] if text else []
        new.append(discussions.status_event(name, str(status)))
        discussion = {**discussion, "status": status, "events": [*discussion["events"], *new]}
        discussions.save(repo, discussion)
    return discussion, new


def merge(
    locks: Locks, repo: Repo, who: Identity, num: int, text: str | None
) -> tuple[Discussion, RefChange, list[discussions.Event]]:
    """Put the pull request's changes onto main as one commit; 409 if both changed the same lines."""
    name = check_admin(repo, who)
    check_enabled(repo)
    with locks.hold(repo.lock):
        pull = discussions.load(repo, num)
        if not pull["isPullRequest"]:
            raise BadRequest("This discussion is not a pull request")
        if pull["status"] != "open":
            raise BadRequest(f"A pull request that is {pull['status']} cannot be merged")
        merged = _merge_of(repo, pull)
        if merged.conflicts:
            raise Conflict("This pull request has conflicts: " + ", ".join(merged.conflicts))
        main = repo.store.resolve(MAIN)
        pushed = [event for event in pull["events"] if event["type"] == "commit"]
        body = [f"- {event['data']['subject']} ({event['data']['oid']})" for event in pushed]
        body += ["", f"Co-authored-by: {pull['author']} <{pull['author']}@users.noreply.localhub>"]
        title = f"{pull['title']} (#{num})"
        for content in merged.texts.values():
            repo.store.put_blob(content)
        made = repo.store.put_commit(
            merged.tree, parents=(main,), author=name, title=title, message="\n".join(body).strip()
        )
        repo.store.set_refs({MAIN: made.oid})
        new = [discussions.comment_event(name, text)] if text else []
        new.append(discussions.status_event(name, "merged"))
        pull = {**pull, "status": "merged", "mergeOid": made.oid, "events": [*pull["events"], *new]}
        discussions.save(repo, pull)
    return pull, RefChange(MAIN, main, made.oid), new
