"""What came of looking at a repo's card, and when it is looked at again."""

from __future__ import annotations

from dataclasses import dataclass

from bot.publish.manners import DAY, Decision
from bot.store import Store
from core.errors import HubError

#: Seconds until a repo is asked again in which the Hub let us ask nothing.
BARRED_S = 7 * DAY
#: Seconds until what the Hub refused is tried again, the first time.
REFUSED_S = 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done about a repo's card.

    ``next_at``: when to decide again (seconds since the epoch); None: when something happens there. ``key``: of what
    was to be told.
    """

    repo_id: str
    decision: Decision
    url: str | None = None
    next_at: float | None = None
    key: str = ""


def refused(store: Store, repo_id: str, error: HubError, *, now: float, first: float = REFUSED_S) -> Outcome:
    """What the Hub refused or failed at: ``first`` seconds later, twice that, four times …, a week at most."""
    last = store.publishing.get(repo_id)
    again = first
    if last and last.action == "barred" and last.next_at is not None:
        again = min(2 * max(last.next_at - last.at, first), BARRED_S)
    decision = Decision("barred", str(error), until=now + again)
    return Outcome(repo_id, decision, next_at=decision.until, key=last.key if last else "")


def note_outcome(store: Store, outcome: Outcome, *, sha: str | None, now: float, touched: int) -> None:
    """Remember what was decided about a repo, seen at commit ``sha`` (see :meth:`Publishing.note`)."""
    store.publishing.note(
        outcome.repo_id,
        key=outcome.key,
        sha=sha,
        action=outcome.decision.action,
        reason=outcome.decision.reason,
        num=outcome.decision.num,
        now=now,
        next_at=outcome.next_at,
        touched=touched,
    )
