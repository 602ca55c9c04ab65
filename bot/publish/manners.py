"""What may be done about a repo's card: the manners of the bot as one decision. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bot.store.results import StoredPull

OPEN = ("open", "draft")
#: A pull that we closed ourselves since the card's own changes stood in its way: nobody's no, and no pull any more.
REPLACED = "replaced"
#: Repos of one owner in which our last pull was closed, after which the owner is left alone.
MUTED_AFTER = 2
#: Days after which a pull that can't be merged is replaced, the first time, the second …: then no more, since its
#: owner's card changes all the time, and each new pull is a notice to them.
REPLACE_AFTER = (1, 7, 30)
_HOUR, DAY = 3600.0, 86_400.0

#: ``wait``: later, by itself; ``barred``: the Hub lets us ask nothing there.
Action = Literal["nothing", "open", "update", "wait", "barred"]


@dataclass(frozen=True, slots=True)
class PullView:
    """One of our pulls in a repo as the decision needs it.

    ``foreign``: somebody else committed to it; ``mine``: this account opened it, and not another one of ours.
    """

    num: int
    status: str
    key: str
    foreign: bool = False
    mine: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a repo's card, why, in a sentence, and when to decide again (seconds since the epoch)."""

    action: Action
    reason: str
    num: int | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How we stand with an owner, and the limits.

    Args:
        pulls: our pulls in all of the owner's repos, as stored.
        consented: whether the owner agreed beforehand, or asked for us in this repo.
        open_per_owner: open pulls one owner may have.
        per_hour: new pulls an hour, to whomever.
        opened: when pulls were opened, to whomever.
    """

    pulls: Sequence[StoredPull]
    consented: bool
    open_per_owner: int
    per_hour: int
    opened: Sequence[float]
    now: float


def held_back(standing: Standing) -> Decision | None:
    """Why no new pull may be opened now, or None. It needs nothing of the Hub."""
    pulls, now = [pull for pull in standing.pulls if pull.status != REPLACED], standing.now
    refused, merged = _last(pulls, "closed"), _last(pulls, "merged")
    # Who agreed beforehand, or asked, is taken to have had enough once more were closed than merged.
    if len(refused) >= MUTED_AFTER and (not standing.consented or len(refused) > len(merged)):
        return Decision(
            "wait",
            f"Our pull was closed in {len(refused)} repos of this owner, who is left alone until one is reopened.",
            until=now + DAY,
        )
    if not standing.consented and pulls and not any(pull.status == "merged" for pull in pulls):
        return Decision(
            "wait",
            "The owner was sent one pull as an introduction; more follow once one is merged.",
            until=now + DAY,
        )
    if sum(pull.status in OPEN for pull in pulls) >= standing.open_per_owner:
        return Decision(
            "wait",
            f"The owner has {standing.open_per_owner} open pulls from us; the next waits for one to end.",
            until=now + DAY,
        )
    recent = [at for at in standing.opened if at > now - _HOUR]
    if len(recent) >= standing.per_hour:
        again = sorted(recent)[-standing.per_hour] + _HOUR if standing.per_hour else now + DAY
        return Decision("wait", f"{standing.per_hour} pulls were opened in the last hour; the next waits.", until=again)
    return None


def not_replaced_yet(standing: Standing, *, repo_id: str, num: int) -> Decision | None:
    """Why the place of pull ``num``, which can't be merged as it is, is not taken by a new one now; None: it may be."""
    here = [pull for pull in standing.pulls if pull.repo_id == repo_id]
    opened = next((pull.created_at for pull in here if pull.num == num), standing.now)
    before = sum(pull.status == REPLACED for pull in here)
    if before >= len(REPLACE_AFTER):
        return Decision("wait", f"{before} were replaced before it, so it stays as it is until it is merged or closed.")
    days = REPLACE_AFTER[before]
    if (until := opened + days * DAY) > standing.now:
        said = f"a new one may be opened {days} day{'s' if days > 1 else ''} after it."
        return Decision("wait", said, until=until)
    others = [pull for pull in standing.pulls if (pull.repo_id, pull.num) != (repo_id, num)]
    return held_back(replace(standing, pulls=others))


def _last(pulls: Sequence[StoredPull], status: str) -> set[str]:
    """The repos in which the last of our pulls has this status."""
    last = {pull.repo_id: pull for pull in sorted(pulls, key=lambda pull: pull.num)}
    return {repo_id for repo_id, pull in last.items() if pull.status == status}


def decide(*, key: str, card_key: str | None, pulls: Sequence[PullView], standing: Standing) -> Decision:
    """The manners of design decision 5.

    Args:
        key: of the figures to be told.
        card_key: of the section that stands on main's card, if any.
        pulls: our pulls in this repo, any status.
    """
    if card_key == key:
        return Decision("nothing", "The card has these figures.")
    # A human may have opened an older one again beside it.
    for pull in sorted(pulls, key=lambda pull: pull.num, reverse=True):
        if pull.status in OPEN:
            if pull.foreign:
                return Decision("nothing", f"Somebody committed to pull {pull.num}; it is left to them.", pull.num)
            if not pull.mine:
                said = f"Pull {pull.num} is open and another account of ours opened it; it is left to that one."
                return Decision("nothing", said, pull.num)
            return Decision("update", f"Pull {pull.num} is open.", pull.num)
    merged = max((p.num for p in pulls if p.status == "merged"), default=0)
    closed = max((p.num for p in pulls if p.status == "closed"), default=0)
    if closed > merged:
        return Decision("nothing", f"Pull {closed} was closed: the repo is left alone unless it is reopened.", closed)
    if card_key is None and any(p.status == "merged" and p.key == key for p in pulls):
        return Decision("nothing", "These figures were merged before and have since been taken off the card.")
    return held_back(standing) or Decision("open", "The card has no section with these figures yet.")
