"""Pull requests with manners: at most one open per repo, found again on the Hub, a closed one is a no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bot.hub.door import FileTooLargeError, HubDoor, HubPull
from bot.intake.card_meta import CARD_LIMIT
from bot.publish import card as cards
from bot.publish.render import render_pull_body, render_section
from bot.publish.rows import figures_key
from bot.settings import Settings
from bot.store import Store
from bot.store.repos import Repo
from bot.store.results import StoredPull
from core.dataset import DatasetRow
from core.errors import HubNotFoundError

_MARKER = re.compile(r"<!-- quantcard:pull key=([0-9a-f]{6,64}) -->")
CARD = "README.md"
TITLE = "[bot] quantcard: measured quality and speed of these GGUF files"
#: Seconds for which one process publishes alone unless it says that it is still at it.
PUBLISH_LEASE = 180.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class PullView:
    """One of our pulls in a repo as the decision needs it; ``foreign``: somebody else committed to it."""

    num: int
    status: str
    key: str
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a repo's card, and why, in a sentence."""

    action: Literal["nothing", "open", "update", "wait"]
    reason: str
    num: int | None = None


def decide(
    *,
    key: str,
    card_key: str | None,
    pulls: Sequence[PullView],
    owner_pulls: Sequence[StoredPull],
    consented: bool,
    open_per_owner: int,
    per_hour: int,
    opened_last_hour: int,
) -> Decision:
    """The manners of design decision 5. Pure.

    Args:
        key: of the figures to be told.
        card_key: of the section that stands on the card, if any.
        pulls: our pulls in this repo, any status.
        owner_pulls: our pulls in all of the owner's repos, as stored.
        consented: whether the owner agreed beforehand (else there is one introduction until one was merged).
        open_per_owner: open pulls one owner may have.
        per_hour: new pulls an hour; ``opened_last_hour`` were opened.
    """
    if card_key == key:
        return Decision("nothing", "The card has these figures.")
    for pull in pulls:
        if pull.status in ("open", "draft"):
            if pull.foreign:
                return Decision("nothing", f"Somebody committed to pull {pull.num}; it is left to them.", pull.num)
            return Decision("update", f"Pull {pull.num} is open.", pull.num)
    merged = max((p.num for p in pulls if p.status == "merged"), default=0)
    closed = max((p.num for p in pulls if p.status == "closed"), default=0)
    if closed > merged:
        return Decision("nothing", f"Pull {closed} was closed: the repo is left alone unless it is reopened.", closed)
    if any(p.status == "merged" and p.key == key for p in pulls):
        return Decision("nothing", "These figures were merged before and have since been taken off the card.")
    if not consented and owner_pulls and not any(p.status == "merged" for p in owner_pulls):
        return Decision("wait", "The owner was sent one pull as an introduction; more follow once one is merged.")
    if sum(p.status in ("open", "draft") for p in owner_pulls) >= open_per_owner:
        return Decision("wait", f"The owner has {open_per_owner} open pulls from us; the next waits for one to end.")
    if opened_last_hour >= per_hour:
        return Decision("wait", f"{per_hour} pulls were opened in the last hour; the next waits.")
    return Decision("open", "The card has no section with these figures yet.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done about a repo's card."""

    repo_id: str
    decision: Decision
    url: str | None = None


def publish_repo(
    store: Store, hub: HubDoor, settings: Settings, repo: Repo, rows: list[DatasetRow], *, now: float
) -> Outcome:
    """Bring a repo's card up to date by pull request, if manners allow.

    Raises:
        HubError: the Hub refused or did not answer; nothing is lost, the next run tries again.
    """
    if not repo.config.get("enabled", True):
        problem = repo.config.get("problem")
        return Outcome(repo.id, Decision("nothing", problem or "The repo's .quantcard.yml says no."))
    if not any(row.measured_here and not row.is_reference for row in rows):
        imported = any(row.quality_imported or row.speed_imported for row in rows)
        said = "Its figures were all imported." if imported else "None of its quantized files could be measured."
        return Outcome(repo.id, Decision("nothing", said))
    if reason := _no_quality(rows):
        return Outcome(repo.id, Decision("wait", f"No quality figure yet: {reason}"))
    follow = store.repos.follow_of(repo.id)
    key = figures_key(rows)
    # Read and committed at one commit: what its owner pushes meanwhile is merged by the Hub, not undone by us.
    parent = hub.repo(repo.id).sha
    try:
        text = _card_text(hub, repo.id, revision=parent or "main")
        section = cards.find(text)
    except (cards.CardError, FileTooLargeError) as error:
        return Outcome(repo.id, Decision("nothing", str(error)))
    pulls = known_pulls(store, hub, repo.id, now=now)
    owned = [pull for pull in store.results.pulls() if pull.repo_id.split("/")[0] == repo.owner]
    decision = decide(
        key=key,
        card_key=section.key if section else None,
        pulls=pulls,
        owner_pulls=owned,
        consented=bool(follow and follow.consented),
        open_per_owner=settings.pulls_open_per_owner,
        per_hour=settings.pulls_per_hour,
        opened_last_hour=sum(pull.created_at > now - _HOUR for pull in store.results.pulls()),
    )
    if decision.action not in ("open", "update"):
        return Outcome(repo.id, decision, _url(hub, repo.id, decision.num))
    body = render_section(
        rows, endpoint=hub.endpoint, project_url=settings.project_url, leaderboard_url=settings.leaderboard_url
    )
    new = cards.splice(text, body, key=key, position=str(repo.config.get("position", "end")))
    data = new.encode("utf-8", "surrogateescape")
    comment = render_pull_body(rows, key=key, endpoint=hub.endpoint, leaderboard_url=settings.leaderboard_url)
    if decision.action == "update":
        assert decision.num is not None
        return _update(store, hub, repo.id, decision, main=text, data=data, comment=comment, key=key, now=now)
    done = hub.open_pull(repo.id, files={CARD: data}, title=TITLE, body=comment, parent=parent)
    if done.num is not None:
        store.results.save_pull(repo.id, done.num, key=key, status="open", url=done.url, now=now)
    return Outcome(repo.id, decision, done.url)


def _update(
    store: Store,
    hub: HubDoor,
    repo_id: str,
    decision: Decision,
    *,
    main: str,
    data: bytes,
    comment: str,
    key: str,
    now: float,
) -> Outcome:
    """Put the new card on the pull's own ref, unless it is there already."""
    num = decision.num or 0
    url = _url(hub, repo_id, num)
    if _says(_text(hub.read(repo_id, CARD, revision=f"refs/pr/{num}", limit=CARD_LIMIT)), key=key, main=main):
        store.results.save_pull(repo_id, num, key=key, status="open", url=url, now=now)
        return Outcome(repo_id, Decision("nothing", f"Pull {num} has these figures.", num), url)
    hub.update_pull(repo_id, num, files={CARD: data}, title=TITLE, body=comment, parent=None)
    if hub.dry_run:
        return Outcome(repo_id, decision)
    store.results.save_pull(repo_id, num, key=key, status="open", url=url, now=now)
    return Outcome(repo_id, decision, url)


def _says(card: str, *, key: str, main: str) -> bool:
    """Whether a pull's card tells these figures and is main's card otherwise; wording alone is no reason to commit."""
    try:
        found = cards.find(card)
        return found is not None and found.key == key and cards.remove(card) == cards.remove(main)
    except cards.CardError:
        return False


def _no_quality(rows: list[DatasetRow]) -> str | None:
    """Why there is a reference but no quality figure; None when there is one, or can be none.

    A card is not the place for a corpus that is too short or a baseline that could not be recorded.
    """
    quants = [row for row in rows if not row.is_reference]
    if not any(row.reference_key for row in quants) or any(row.kld_mean is not None for row in quants):
        return None
    return next((row.reason for row in quants if row.reason), "its measurements have not ended")


def known_pulls(store: Store, hub: HubDoor, repo_id: str, *, now: float) -> list[PullView]:
    """Our pulls in a repo as the Hub has them, found by author and marker, and stored.

    The Hub is the truth: a lost database or a lost response never makes a second pull.
    """
    stored = {pull.num: pull for pull in store.results.pulls(repo_id)}
    views = []
    for found in hub.my_pulls(repo_id):
        known = stored.get(found.num)
        ended = found.status in ("closed", "merged")
        if known and ended:
            view = PullView(found.num, found.status, known.key)
        else:
            whole = hub.pull(repo_id, found.num)
            marker = _MARKER.search(whole.body)
            if not marker and not known:
                continue
            view = PullView(
                found.num, found.status, known.key if known else marker[1] if marker else "", _foreign(whole, hub)
            )
        views.append(view)
        if not known or known.status != view.status:
            store.results.save_pull(repo_id, view.num, key=view.key, status=view.status, url=found.url, now=now)
    # Pulls that we know of and the list lacks, opened under another account of ours, say: a no is a no all the same.
    for num in stored.keys() - {view.num for view in views}:
        try:
            whole = hub.pull(repo_id, num)
        except HubNotFoundError:
            continue
        views.append(PullView(num, whole.status, stored[num].key, _foreign(whole, hub)))
        store.results.save_pull(repo_id, num, key=stored[num].key, status=whole.status, url=whole.url, now=now)
    return views


def _foreign(pull: HubPull, hub: HubDoor) -> bool:
    """Whether somebody besides us committed to the pull."""
    return bool(pull.authors - {hub.whoami(), pull.author})


def _text(data: bytes | None) -> str:
    """A card's text; undecodable bytes come back the same on encoding."""
    return (data or b"").decode("utf-8", "surrogateescape")


def _card_text(hub: HubDoor, repo_id: str, *, revision: str) -> str:
    """The card's text; empty when there is no card.

    Raises:
        CardError: it is not UTF-8; the client decodes cards, and the Hub shows such a one damaged anyway.
        FileTooLargeError: nobody reads a card of that size.
    """
    text = _text(hub.read(repo_id, CARD, revision=revision, limit=CARD_LIMIT))
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise cards.CardError("The card is not UTF-8; once it is, it gets its section.")
    return text


def _url(hub: HubDoor, repo_id: str, num: int | None) -> str | None:
    return f"{hub.endpoint}/{repo_id}/discussions/{num}" if num else None


def preview(hub: HubDoor, settings: Settings, repo: Repo, rows: list[DatasetRow]) -> tuple[str, str]:
    """(card as it is, card as it would be) for ``quantcard card``.

    Raises:
        HubError: the card can't be read.
        CardError: its markers are damaged.
    """
    text = _card_text(hub, repo.id, revision="main")
    body = render_section(
        rows, endpoint=hub.endpoint, project_url=settings.project_url, leaderboard_url=settings.leaderboard_url
    )
    key = figures_key(rows)
    return text, cards.splice(text, body, key=key, position=str(repo.config.get("position", "end")))
