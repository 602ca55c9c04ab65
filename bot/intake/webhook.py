"""What a webhook of the Hub means to us, and writing that into the store.

A webhook only makes sooner what the next poll would find: nothing is asked of the Hub here, and one that is lost,
repeated or made up (by somebody who knows the secret) changes nothing but when a repo is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from bot.store import Store
from bot.store.overview import Overview
from core.repo_names import is_repo_id

MAIN = "refs/heads/main"
_SHA = re.compile(r"[0-9a-f]{40}")
#: Larger numbers are no discussion's.
_MAX_NUM = 1 << 31


@dataclass(frozen=True, slots=True)
class Wake:
    """What a webhook says: a push to main, something on a pull, or a repo made, removed, renamed or hidden.

    ``sha`` is main's commit where it is told, ``num`` the pull's number. ``private``: the repo is.
    """

    kind: Literal["content", "pull", "repo"]
    repo_id: str
    sha: str | None = None
    num: int | None = None
    private: bool = False


def read_payload(payload: object) -> Wake | None:
    """What a webhook's payload (version 3) asks us to look at, or None for everything else. Pure.

    A push to ``refs/pr/N`` is nothing: our own pulls cause those, and the bot would wake itself. So are our own
    comments, which come from whoever opened the pull.
    """
    event, repo = _object(payload, "event"), _object(payload, "repo")
    scope, repo_id = event.get("scope"), repo.get("name")
    if not isinstance(scope, str) or repo.get("type") != "model":
        return None
    if not isinstance(repo_id, str) or not is_repo_id(repo_id):
        return None
    private = repo.get("private") is True
    # The Hub says that a narrower scope may come to be, and is to be read as the broader one.
    if _within(scope, "repo.content"):
        refs = payload.get("updatedRefs") if isinstance(payload, dict) else None
        moved = [ref for ref in refs if isinstance(ref, dict)] if isinstance(refs, list) else []
        main = next((ref for ref in moved if ref.get("ref") == MAIN), None)
        return None if main is None else Wake("content", repo_id, sha=_sha(main.get("newSha")), private=private)
    if _within(scope, "discussion"):
        discussion = _object(payload, "discussion")
        num = discussion.get("num")
        if discussion.get("isPullRequest") is not True or type(num) is not int or not 0 < num < _MAX_NUM:
            return None
        said_by = _object(_object(payload, "comment"), "author").get("id")
        if said_by is not None and said_by == _object(discussion, "author").get("id"):
            return None
        return Wake("pull", repo_id, num=num, private=private)
    if scope == "repo" or (_within(scope, "repo.config") and "private" in _object(payload, "updatedConfig")):
        return Wake("repo", repo_id, private=private)
    return None


def act(store: Store, wake: Wake, *, now: float) -> bool:
    """Write what a webhook means into the store; False if it concerns nothing of ours or is known already.

    Args:
        now: seconds since the epoch.

    Raises:
        StorageError: the database can't be written.
    """
    if wake.kind == "pull":
        if not any(pull.num == wake.num for pull in store.results.pulls(wake.repo_id)):
            return False
        # Also where it is due already: it may be decided about at this moment, and have been read before this came.
        store.publishing.touch(wake.repo_id, now=now)
        return True
    watched = Overview(store.db).watched(wake.repo_id)
    if watched is None or (wake.sha is not None and wake.sha == watched.sha):
        return False
    if wake.private and not watched.known and watched.follow.lower() != wake.repo_id.lower():
        # What an owner keeps private is not for us, and its name is not kept.
        return False
    if wake.sha is not None and wake.sha == watched.due_sha and watched.due_at is not None and watched.due_at <= now:
        # It waits already; a flood of repetitions writes nothing.
        return True
    store.watching.mark_due(
        wake.repo_id,
        sha=wake.sha,
        now=now,
        follow=watched.follow,
        # Before the backlog of a first sync, which goes by this.
        last_modified=datetime.fromtimestamp(now, UTC).isoformat() if wake.kind == "content" else None,
    )
    return True


def _object(value: object, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _within(scope: str, broader: str) -> bool:
    return scope == broader or scope.startswith(f"{broader}.")


def _sha(value: object) -> str | None:
    return value if isinstance(value, str) and _SHA.fullmatch(value) else None
