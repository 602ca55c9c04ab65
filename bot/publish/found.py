"""Our pulls in a repo, found again on the Hub by author and hidden marker: the Hub is the truth, the store remembers.

A lost database or a lost response never makes a second pull.
"""

from __future__ import annotations

from dataclasses import dataclass

from bot.hub.door import HubDoor, HubPull
from bot.publish.manners import OPEN, REPLACED, PullView
from bot.publish.pull_texts import PULL, was_replaced
from bot.store import Store
from bot.store.results import StoredPull
from core.errors import HubAuthError, HubNotFoundError

_HOUR = 3600.0
#: Other repos of an owner in which a new database looks for our pulls before it opens the first one.
MOST_SWEPT = 100


@dataclass(frozen=True, slots=True)
class Found:
    """One of our pulls; ``whole`` where it was read."""

    view: PullView
    whole: HubPull | None = None


def known_pulls(store: Store, hub: HubDoor, repo_id: str, *, now: float) -> list[Found]:
    """Our pulls in a repo as the Hub has them; what changed is stored.

    Where one is known to be open and still is, the Hub is asked for nothing else.
    """
    stored = {pull.num: pull for pull in store.results.pulls(repo_id)}
    found: dict[int, Found] = {}
    for num in sorted((num for num, pull in stored.items() if pull.status in OPEN), reverse=True):
        try:
            found[num] = _read(store, hub, stored[num], hub.pull(repo_id, num), now=now)
        except HubNotFoundError:
            continue
        if found[num].view.status in OPEN:
            ended = [pull for other, pull in stored.items() if other not in found]
            return [*found.values(), *(Found(PullView(pull.num, pull.status, pull.key)) for pull in ended)]
    for listed in hub.my_pulls(repo_id):
        known = stored.get(listed.num)
        if listed.num in found:
            continue
        if known and listed.status not in OPEN and known.status != REPLACED:
            found[listed.num] = Found(PullView(listed.num, listed.status, known.key))
            _save(store, hub, known, repo_id, found[listed.num].view, listed.url, now=now)
            continue
        whole = hub.pull(repo_id, listed.num)
        marker = PULL.search(whole.body)
        if marker or known:
            like = known or StoredPull(repo_id, listed.num, marker[1] if marker else "", "", None, now)
            found[listed.num] = _read(store, hub, like, whole, now=now)
    # Pulls that we know of and the list lacks, opened under another account of ours, say: a no is a no all the same.
    for num in sorted(stored.keys() - found.keys()):
        try:
            found[num] = _read(store, hub, stored[num], hub.pull(repo_id, num), now=now)
        except HubNotFoundError:
            continue
    return [found[num] for num in sorted(found)]


def _read(store: Store, hub: HubDoor, known: StoredPull, whole: HubPull, *, now: float) -> Found:
    me = hub.whoami()
    us = {me, whole.author}
    said = [comment.text for comment in whole.comments if comment.author in us]
    ours = whole.status == "closed" and whole.ended_by in us and was_replaced(said)
    view = PullView(
        whole.num,
        REPLACED if ours else whole.status,
        known.key,
        foreign=bool(whole.authors - {me, whole.author}),
        mine=whole.author == me,
    )
    _save(store, hub, known, known.repo_id, view, whole.url, now=now)
    return Found(view, whole)


def _save(store: Store, hub: HubDoor, known: StoredPull, repo_id: str, view: PullView, url: str, *, now: float) -> None:
    if hub.dry_run or (known.status, known.url) == (view.status, url):
        return
    # One that ended before we knew of it was not opened just now.
    at = now if known.status or view.status in OPEN else now - _HOUR
    store.results.save_pull(repo_id, view.num, key=view.key, status=view.status, url=url, now=at)


def sweep_owner(store: Store, hub: HubDoor, repo_id: str, *, now: float) -> None:
    """Look for pulls of ours in an owner's other repos, once for a database: an older one may be lost.

    Raises:
        HubError: the Hub did not answer; it is done the next time.
    """
    owner = repo_id.split("/")[0]
    name = f"swept:{owner}"
    if hub.dry_run or store.results.get(name):
        return
    known = {pull.repo_id for pull in store.results.pulls()}
    others = [one.id for one in store.repos.repos() if one.owner == owner and one.id not in {repo_id, *known}]
    for other in others[:MOST_SWEPT]:
        try:
            known_pulls(store, hub, other, now=now)
        except (HubNotFoundError, HubAuthError):
            continue  # gone, or nobody's pulls are to be seen there
    store.results.put(name, "done")
