"""How the bot stands: one report for ``quantcard status``, the status page and whoever reads JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from bot.queue.runners.hf_jobs_money import spending
from bot.settings import Settings
from bot.status_report import (
    Dispute,
    FollowStatus,
    JobStatus,
    LastCycle,
    Money,
    Paused,
    Problem,
    PullStatus,
    Reason,
    Refusal,
    RepoProblem,
    StatusReport,
    WebhookCounts,
    Window,
)
from bot.store import Store
from bot.store.overview import Overview
from bot.store.switch import paused
from core.errors import QuantcardError

if TYPE_CHECKING:
    from bot.cycle import CycleReport
    from bot.hub.door import HubDoor

#: Rows of a list that are shown; how many more there are is told.
LISTED = 25
#: Characters of a reason or an error that are kept.
_TEXT = 400
#: Errors of a cycle that are remembered.
_ERRORS = 50
T = TypeVar("T", bound=BaseModel)
LAST_CYCLE, WEBHOOKS = "last_cycle", "webhooks"


def status_report(
    store: Store,
    settings: Settings,
    now: float,
    *,
    budget: dict[str, Any] | None = None,
    webhooks: WebhookCounts | None = None,
    unready: list[str] | None = None,
) -> StatusReport:
    """How everything stands, by counting in the database.

    Args:
        now: seconds since the epoch.
        budget: what :meth:`Budget.told` says in this process; default: what the last cycle was told.
        webhooks: this process's counts; default: what the service last noted.
        unready: what keeps the service from its work.
    """
    seen = Overview(store.db)
    more: dict[str, int] = {}

    def listed(name: str, kind: Callable[..., T], found: tuple[list[dict[str, Any]], int]) -> list[T]:
        rows, total = found
        if total > len(rows):
            more[name] = total - len(rows)
        return [kind(**_bounded(row)) for row in rows]

    due, headers = store.watching.waiting()
    jobs, pull_counts = store.jobs.counts(), seen.pulls()
    cycle = _stored(store, LAST_CYCLE)
    counts = webhooks.model_dump() if webhooks is not None else _stored(store, WEBHOOKS)
    return StatusReport(
        at=now,
        paused=Paused(reason=_line(pause.reason), at=pause.at) if (pause := paused(store)) else None,
        publishing=settings.publish,
        dry_run=settings.dry_run,
        last_poll=seen.last_poll(),
        last_cycle=_model(LastCycle, cycle),
        budget=_windows(budget, now, now) if budget else _windows(cycle.get("budget"), cycle.get("at"), now),
        follows=listed("follows", _follow, seen.follows(limit=LISTED)),
        repos=seen.repos(),
        repos_due=due,
        repos_due_since=seen.oldest_due(now=now),
        headers_waiting=headers,
        requests_waiting=seen.requests(),
        repo_errors=listed("repo_errors", _repo_error, seen.repo_errors(limit=LISTED)),
        jobs=jobs,
        oldest_job=seen.oldest_job(),
        running=listed("running", JobStatus, seen.jobs("leased", "running", limit=LISTED)),
        failed=listed("failed", JobStatus, seen.jobs("failed", "dead", limit=LISTED)),
        pulls=listed(
            "pulls",
            PullStatus,
            (seen.open_pulls(limit=LISTED), pull_counts.get("open", 0) + pull_counts.get("draft", 0)),
        ),
        pull_counts=pull_counts,
        decisions=seen.decisions(),
        reasons=listed("reasons", Reason, seen.reasons(but=("new",), limit=LISTED)),
        refusals=listed("refusals", Refusal, seen.refusals(limit=LISTED)),
        config_problems=listed("config_problems", RepoProblem, seen.config_problems(limit=LISTED)),
        disputes=listed("disputes", Dispute, seen.disputes(limit=LISTED)),
        webhooks=_model(WebhookCounts, {"open": bool(settings.webhook_secret), **counts}) or WebhookCounts(),
        queue_paused=_line(held) if (held := store.jobs.paused()) else None,
        money=_money(store, settings, now),
        unready=[_line(reason) for reason in unready or ()],
        more=more,
    )


def _money(store: Store, settings: Settings, now: float) -> Money | None:
    if "hf-jobs" not in settings.runners:
        return None
    found = spending(store, now)
    return Money(month=found.month, spent=found.spent, reserved=found.reserved, limit=settings.hf_jobs_monthly_usd)


def public_report(store: Store, settings: Settings, now: float, **live: Any) -> StatusReport:
    """:func:`status_report` for strangers."""
    secrets = [settings.hf_token or "", settings.webhook_secret, str(settings.data), str(settings.db.absolute())]
    return status_report(store, settings, now, **live).public(hidden=Overview(store.db).hidden(), secrets=secrets)


def remember_cycle(store: Store, report: CycleReport, hub: HubDoor, *, started: float, now: float) -> None:
    """Note what a cycle did, for ``quantcard status`` and the page, whichever process ran it.

    Args:
        started: when it began, and ``now``, its end: seconds since the epoch.
    """
    errors = [Problem(what=_line(what), error=_line(str(error))) for what, error in _errors(report)]
    last = LastCycle(
        at=now,
        seconds=round(now - started, 1),
        repos_seen=report.poll.seen,
        repos_changed=len(report.poll.changed),
        headers_read=len(report.poll.audited),
        queued=report.queued,
        jobs_done=report.jobs_done,
        jobs_dead=report.jobs_dead,
        errors=errors[:_ERRORS],
        errors_total=len(errors),
    )
    store.results.put(LAST_CYCLE, json.dumps({**last.model_dump(), "budget": hub.budget.told()}))


def _errors(report: CycleReport) -> list[tuple[str, QuantcardError]]:
    return [*report.poll.errors, *report.errors]


def _follow(**row: Any) -> FollowStatus:
    name = row["name"]
    kind = "collection" if name.startswith("collections/") else "repo" if "/" in name else "owner"
    return FollowStatus(kind=kind, **row)


def _repo_error(**row: Any) -> RepoProblem:
    return RepoProblem(repo_id=row["repo_id"], problem=row["error"], until=row["until"])


def _bounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _line(value) if isinstance(value, str) else value for name, value in row.items()}


def _line(text: str) -> str:
    """One line of printable characters: no controls, which a terminal would obey, and nothing that turns text round."""
    kept = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _TEXT]).split())
    return kept if len(kept) <= _TEXT else kept[: _TEXT - 1] + "…"


def _stored(store: Store, name: str) -> dict[str, Any]:
    """A remembered JSON object; what is none (another version's) is nothing."""
    try:
        found = json.loads(store.results.get(name) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _model(kind: type[T], found: dict[str, Any]) -> T | None:
    try:
        return kind.model_validate(found) if found else None
    except ValidationError:
        return None


def _windows(told: object, at: object, now: float) -> list[Window]:
    """The windows of a budget that was told at ``at``; those that are over since are whole again and say nothing."""
    windows = told.get("windows") if isinstance(told, dict) else None
    if not isinstance(windows, dict) or not isinstance(at, int | float):
        return []
    found = []
    for resource, window in windows.items():
        ends = at + window.get("resets_in_s", 0) if isinstance(window, dict) else 0.0
        one = _model(Window, {**window, "resource": resource, "resets_at": ends}) if ends > now else None
        if one is not None:
            found.append(one)
    return found
