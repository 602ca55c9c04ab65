"""Our pulls in a repo, found again on the Hub by author and hidden marker: the Hub is the truth, the store remembers.

A lost database or a lost response never makes a second pull, and a number that the store remembers is not enough: in a
repo that was deleted and made anew it may be somebody else's discussion.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from bot.hub.door import HubDoor, HubPull
from bot.publish.manners import OPEN, REPLACED, PullView
from bot.publish.pull_texts import PULL, is_our_title, was_replaced
from bot.store import Store
from bot.store.results import StoredPull
from core.errors import HubAuthError, HubNotFoundError

_HOUR = 3600.0
#: Other repos of an owner in which a new database looks for our pulls before it opens the first one.
MOST_SWEPT = 100
#: What is stored of a pull that is none of ours any more; the store lists it no longer.
_GONE = "gone"


@dataclass(frozen=True, slots=True)
class Found:
    """One of our pulls; ``whole`` where it was read."""

    view: PullView
    whole: HubPull | None = None


def our_accounts(store: Store, hub: HubDoor) -> set[str]:
    """This account and those under which we opened pulls before: what they wrote is ours."""
    return {hub.whoami(), *store.results.accounts()}


def known_pulls(store: Store, hub: HubDoor, repo_id: str, *, now: float) -> list[Found]:
    """Our pulls in a repo as the Hub has them; what changed is stored.

    Where one is known to be open and still is, the Hub is asked for nothing else.
    """
    stored = {pull.num: pull for pull in store.results.pulls(repo_id)}
    found: dict[int, Found] = {}
    gone: set[int] = set()
    for num in sorted((num for num, pull in stored.items() if pull.status in OPEN), reverse=True):
        try:
            one = read_pull(store, hub, stored[num], now=now)
        except HubNotFoundError:
            continue
        if one is None:
            gone.add(num)
            continue
        found[num] = one
        if one.view.status in OPEN:
            ended = [pull for other, pull in stored.items() if other not in found.keys() | gone]
            return [*found.values(), *(Found(PullView(pull.num, pull.status, pull.key)) for pull in ended)]
    for listed in hub.my_pulls(repo_id):
        known = None if listed.num in gone else stored.get(listed.num)
        if listed.num in found:
            continue
        if known and listed.status not in OPEN:
            # Who closed it can't be seen here; it is looked at when its comments are read again.
            replaced = known.status == REPLACED and listed.status == "closed"
            found[listed.num] = Found(PullView(listed.num, REPLACED if replaced else listed.status, known.key))
            _save(store, hub, known, found[listed.num].view, listed.url, author=listed.author, now=now)
            continue
        whole = hub.pull(repo_id, listed.num)
        marker = PULL.search(whole.body)
        if known or marker or any(map(is_our_title, whole.titles)):
            like = known or StoredPull(repo_id, listed.num, marker[1] if marker else "", "", None, now)
            found[listed.num] = _take(store, hub, like, whole, now=now)
    # Pulls that we know of and the list lacks, opened under another account of ours, say: a no is a no all the same.
    for num in sorted(stored.keys() - found.keys() - gone):
        try:
            other = read_pull(store, hub, stored[num], now=now)
        except HubNotFoundError:
            other = _missing(store, hub, stored[num], now=now)
        if other:
            found[num] = other
    return [found[num] for num in sorted(found)]


def read_pull(store: Store, hub: HubDoor, known: StoredPull, *, now: float) -> Found | None:
    """A stored pull as the Hub has it now; None, and it is forgotten, where that number is not our pull's any more.

    Raises:
        HubError: the Hub did not answer, or has nothing under that number.
    """
    whole = hub.pull(known.repo_id, known.num)
    if not whole.is_pull or not (whole.author in our_accounts(store, hub) or PULL.search(whole.body)):
        _save(store, hub, known, PullView(known.num, _GONE, known.key), known.url, now=now)
        return None
    return _take(store, hub, known, whole, now=now)


def _take(store: Store, hub: HubDoor, known: StoredPull, whole: HubPull, *, now: float) -> Found:
    """Note how one of our pulls stands."""
    us, me = our_accounts(store, hub), hub.whoami()
    ended, opened = whole.last(whole.status), whole.last("open")
    said = [one.text for one in whole.comments if one.author in us and one.place > (opened.place if opened else -1)]
    # The comment that says so may be hidden since.
    told = known.status == REPLACED or was_replaced(said)
    ours = whole.status == "closed" and ended is not None and ended.author in us and told
    view = PullView(
        whole.num,
        REPLACED if ours else whole.status,
        known.key,
        foreign=bool(whole.authors - us - {whole.author}),
        mine=whole.author == me,
    )
    # A marker alone makes nobody one of us.
    author = whole.author if whole.author in us else None
    _save(store, hub, known, view, whole.url, author=author, now=now)
    return Found(view, whole)


def _missing(store: Store, hub: HubDoor, known: StoredPull, *, now: float) -> Found | None:
    """What became of a pull that the Hub has no more, neither by number nor in the list of ours.

    With a repo that was made anew since, it is forgotten; else somebody took it away, and that is a no.
    """
    if known.author not in (None, hub.whoami()):
        return None
    created = hub.repo(known.repo_id).created_at
    anew = created is not None and created > known.created_at
    view = PullView(known.num, _GONE if anew else "closed", known.key)
    _save(store, hub, known, view, known.url, now=now)
    return None if anew else Found(view)


def _save(
    store: Store,
    hub: HubDoor,
    known: StoredPull,
    view: PullView,
    url: str | None,
    *,
    author: str | None = None,
    now: float,
) -> None:
    same = (known.status, known.url, known.author) == (view.status, url, author or known.author)
    if hub.dry_run or same:
        return
    # One that ended before we knew of it was not opened just now.
    at = now if known.status or view.status in OPEN else now - _HOUR
    store.results.save_pull(known.repo_id, view.num, key=view.key, status=view.status, url=url, author=author, now=at)


def note_opening(store: Store, repo_id: str, *, ended: bool) -> None:
    """Note that a pull is about to be opened, since the Hub's answer may be lost; or (``ended``) that it came."""
    store.results.put(f"opening:{repo_id.split('/')[0]}", "" if ended else repo_id)


def sweep_owner(store: Store, hub: HubDoor, repo_id: str, *, now: float) -> None:
    """Look for pulls of ours in an owner's other repos, once for a database: an older one may be lost.

    Where the answer to the opening of one never came, that repo is looked at again.

    Raises:
        HubError: the Hub did not answer; it is done the next time.
    """
    owner = repo_id.split("/")[0]
    name = f"swept:{owner}"
    if hub.dry_run:
        return
    doubtful = store.results.get(f"opening:{owner}")
    if doubtful and doubtful != repo_id:
        with suppress(HubNotFoundError, HubAuthError):
            known_pulls(store, hub, doubtful, now=now)
        note_opening(store, doubtful, ended=True)
    if store.results.get(name):
        return
    known = {pull.repo_id for pull in store.results.pulls()}
    others = [one.id for one in store.repos.repos() if one.owner == owner and one.id not in {repo_id, *known}]
    for other in others[:MOST_SWEPT]:
        try:
            known_pulls(store, hub, other, now=now)
        except (HubNotFoundError, HubAuthError):
            continue  # gone, or nobody's pulls are to be seen there
    store.results.put(name, "done")
