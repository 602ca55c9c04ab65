"""Polls the Hub: one listing per followed owner finds what changed; only that is looked into.

Three steps, each resumable because what is left to do stands in the store: the listings mark changed repos as due,
due repos are looked into in one request each, and headers of new files are read by ranges.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bot.hub.budget import HubBudgetError, Urgency, urgency
from bot.hub.door import HubDoor, RepoSummary
from bot.intake.look import Errors, audit_waiting, look, look_into_due, told_error
from bot.store import Store
from bot.store.repos import COLLECTION, Follow
from core.errors import HubError, HubNotFoundError, HubRateLimitError, HubUnreachableError, StorageError
from core.patience import Patience
from core.repo_names import is_repo_id

#: A listing may learn of a commit a little late: entries of this time before the last seen one are compared again.
_OVERLAP = timedelta(minutes=10)


@dataclass
class PollReport:
    """What a poll did: entries seen, repos looked into, headers read, errors as (what, error).

    ``resume_in``: seconds after which the Hub's budget is whole again, where that stopped the poll.
    """

    seen: int = 0
    changed: list[str] = field(default_factory=list)
    audited: list[str] = field(default_factory=list)
    errors: Errors = field(default_factory=list)
    resume_in: float | None = None


def poll(
    store: Store,
    hub: HubDoor,
    *,
    now: float,
    stop: threading.Event | None = None,
    listings: bool = True,
    sweep_interval: float = 86400.0,
) -> PollReport:
    """Find what changed, look into it, read new headers.

    One repo's or owner's error does not stop the others; a Hub that does not answer or is out of budget does,
    and so does ``stop``: what was not reached is reached next time.

    Args:
        listings: False: only what is marked as due already, by a webhook or a request.
        sweep_interval: seconds after which an owner's whole list is read, to see what is no longer in it.
    """
    report = PollReport()
    stop = stop or threading.Event()

    patience = Patience()

    def steps() -> Iterator[HubError | None]:
        with urgency(Urgency.POLL):
            if listings:
                yield _poll_follows(store, hub, report, patience, now=now, stop=stop, sweep_interval=sweep_interval)
        with urgency(Urgency.LOOK):
            yield _take_requests(store, hub, report, patience, now=now, stop=stop)
            both: dict[str, Any] = {"now": now, "stop": stop, "errors": report.errors, "patience": patience}
            yield look_into_due(store, hub, changed=report.changed, **both)
            yield audit_waiting(store, hub, changed=report.audited, **both)

    for stopped in steps():
        if stopped is None:
            continue
        if not any(known is stopped for _, known in report.errors):
            report.errors.append(("polling", stopped))
        if not isinstance(stopped, HubBudgetError):
            break
        # Polling must leave more than looking, and the API's budget is not the files'.
        report.resume_in = max(report.resume_in or 0.0, stopped.seconds)
    return report


def _poll_follows(
    store: Store,
    hub: HubDoor,
    report: PollReport,
    patience: Patience,
    *,
    now: float,
    stop: threading.Event,
    sweep_interval: float,
) -> HubError | None:
    """Poll one follow after the other, in turns; one that fails does not keep the others from theirs."""
    follows = {follow.name: follow for follow in store.repos.follows()}
    owners = {follow.name.lower() for follow in follows.values() if follow.kind == "owner"}
    for name in store.watching.turns():
        if stop.is_set():
            return None
        if (follow := follows.get(name)) is None:
            continue
        try:
            if follow.kind == "owner":
                _poll_owner(store, hub, follow, report, now=now, stop=stop, sweep_interval=sweep_interval)
            elif follow.kind == "collection":
                _poll_collection(store, hub, follow, report, now=now)
            elif not _in_owners_list(store, follow, owners):
                _poll_repo(store, hub, follow, report, now=now)
            patience.well()
        except HubRateLimitError as error:
            report.errors.append((follow.name, error))
            return error
        except StorageError:
            raise
        except Exception as failure:
            told = told_error(failure, follow.name)
            store.watching.note_poll(follow.name, cursor=None, swept=False, error=str(told), now=now)
            report.errors.append((follow.name, told))
            if isinstance(told, HubUnreachableError) and patience.failed():
                return told
    return None


def _in_owners_list(store: Store, follow: Follow, owners: set[str]) -> bool:
    """Whether a single repo was found by its owner's list, which is followed too: then that tells of it."""
    if follow.owner.lower() not in owners:
        return False
    known = store.watching.known(follow.name)
    return known is not None and known.follow is not None and known.follow.lower() == follow.owner.lower()


def _poll_owner(
    store: Store,
    hub: HubDoor,
    follow: Follow,
    report: PollReport,
    *,
    now: float,
    stop: threading.Event,
    sweep_interval: float,
) -> None:
    """Read an owner's list, last changed first, down to what was seen before; now and then to its end."""
    sweep = follow.cursor is None or follow.swept_at is None or now - follow.swept_at >= sweep_interval
    seen_before = None if sweep or follow.cursor is None else _before(follow.cursor)
    newest: str | None = None
    listed: set[str] = set()
    for summary in hub.gguf_repos(follow.owner):
        if stop.is_set():
            return
        newest = newest or summary.last_modified
        if seen_before and summary.last_modified and _moment(summary.last_modified) < seen_before:
            break
        report.seen += 1
        listed.add(summary.id)
        if is_repo_id(summary.id):
            _consider(store, summary, follow, now=now)
    if sweep:
        # Repos that their owner's list lacks: a list may err, so each is asked for by name, when its turn comes.
        for missing in sorted(store.watching.ids_of(follow.owner) - listed):
            store.watching.mark_due(missing, sha=None, now=now, follow=None)
    store.watching.note_poll(follow.name, cursor=newest, swept=sweep, error=None, now=now)


def _poll_collection(store: Store, hub: HubDoor, follow: Follow, report: PollReport, *, now: float) -> None:
    """Read a collection; the repos that left it are no longer watched by it."""
    listed = set()
    for item in hub.collection(follow.name.removeprefix(COLLECTION)):
        if not is_repo_id(item.id):
            continue
        report.seen += 1
        listed.add(item.id)
        _consider(store, item, follow, now=now)
    others = {one.name.lower(): one.name for one in store.repos.follows() if one.kind != "collection"}
    for left in store.watching.ids_by_follow(follow.name) - listed:
        store.watching.rewatch(left, others.get(left.lower()) or others.get(left.lower().split("/")[0]))
        # It left, or it is gone.
        store.watching.mark_due(left, sha=None, now=now, follow=None)
    store.watching.note_poll(follow.name, cursor=None, swept=True, error=None, now=now)


def _poll_repo(store: Store, hub: HubDoor, follow: Follow, report: PollReport, *, now: float) -> None:
    try:
        summary = hub.repo(follow.name)
    except HubNotFoundError:
        if store.watching.known(follow.name):
            store.watching.set_state(follow.name, "gone", note="It is gone from the Hub, or private now.", now=now)
        raise
    report.seen += 1
    if summary.id.lower() != follow.name.lower():
        store.watching.mark_due(follow.name, sha=None, now=now, follow=follow.name)
    else:
        _consider(store, summary, follow, now=now)
    store.watching.note_poll(follow.name, cursor=summary.last_modified, swept=True, error=None, now=now)


def _consider(store: Store, summary: RepoSummary, follow: Follow, *, now: float) -> None:
    """Mark a repo as due if its commit is another one than the one that was looked into."""
    known = store.watching.known(summary.id)
    hidden = summary.disabled or (summary.private and not _followed_itself(store, summary.id))
    if hidden and (known is None or known.state not in ("live", "gated")):
        return
    if known is not None and known.source == "follow":
        if summary.sha is None:
            # A collection tells no commits, perhaps not even when they were made.
            same = summary.last_modified in (None, known.last_modified)
        else:
            same = summary.sha in (known.sha, known.due_sha)
        back = known.state not in ("live", "gated") and known.due_sha is None
        if same and not hidden and not back:
            if known.follow is None:
                store.watching.rewatch(summary.id, follow.name)
            return
    store.watching.mark_due(
        summary.id, sha=summary.sha, now=now, follow=follow.name, last_modified=summary.last_modified
    )


def _followed_itself(store: Store, repo_id: str) -> bool:
    found = store.repos.follow_of(repo_id)
    return found is not None and found.is_repo


def _take_requests(
    store: Store, hub: HubDoor, report: PollReport, patience: Patience, *, now: float, stop: threading.Event
) -> HubError | None:
    """Look into repos that somebody asked for, and answer; only a Hub that is away leaves a request open."""
    for request in store.results.requests(state="open"):
        if stop.is_set():
            return None
        repo_id = request["repo_id"]
        try:
            detail = hub.detail(repo_id)
            if detail.summary.private:
                # Our token may see it; whoever asked may not.
                raise HubNotFoundError(f"The Hub has nothing for the repo {repo_id}: it is missing, or private.")
            seen = look(store, hub, detail, source="request", now=now)
            found = seen and bool(store.repos.variants(detail.summary.id))
            patience.well()
        except StorageError:
            raise
        except HubRateLimitError as error:
            return error
        except HubUnreachableError as error:
            report.errors.append((repo_id, error))
            if patience.failed():
                return error
            continue
        except Exception as failure:
            store.results.end_request(request["id"], state="refused", note=str(told_error(failure, repo_id)))
            continue
        report.changed.append(repo_id)
        note = None if found else "There is no GGUF model in this repo."
        store.results.end_request(request["id"], state="taken" if found else "refused", note=note)
    return None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _before(cursor: str) -> datetime | None:
    try:
        return _moment(cursor) - _OVERLAP
    except ValueError:
        return None
