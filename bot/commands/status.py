"""``quantcard status``: how the bot stands, or how one repo does."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, JsonOption, print_json
from bot.health import Health
from bot.intake.view import view
from bot.lock import held, holder_of
from bot.publish.rows import current_rows
from bot.settings import Settings, load_settings
from bot.status import status_report
from bot.status_report import StatusReport, ago
from bot.store import Store
from bot.store.overview import Overview
from bot.store.repos import Repo
from bot.tables import out, rows_table
from bot.vitals import Vitals
from core.errors import SettingsError
from core.repo_names import is_repo_id

RepoArgument = Annotated[str | None, typer.Argument(metavar="[OWNER/REPO]", help="One repo, with its figures.")]


def status(repo: RepoArgument = None, db: DbOption = None, as_json: JsonOption = False) -> None:
    """Show follows, the last cycle, the request budget, queue, pulls and errors with reasons; or all about one repo."""
    settings = load_settings(db=db)
    now = SystemClock().now()
    with Store(settings.db) as store:
        if repo is not None:
            _one_repo(store, settings, repo, now=now, as_json=as_json)
            return
        report = status_report(store, settings, now, unready=Health(settings, Vitals(started_at=now)).reasons())
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    runs = holder_of(settings.db) or "runs" if held(settings.db) else "does not run"
    out.print(f"Service: {runs}", markup=False)
    _summary(report)
    _tables(report)


def _summary(report: StatusReport) -> None:
    def when(moment: float | None) -> str:
        return ago(moment, report.at)

    def line(text: str) -> None:
        out.print(text, markup=False)

    for reason in report.unready:
        line(f"Not ready: {reason}")
    if report.paused:
        line(f"Writing is paused ({when(report.paused.at)}): {report.paused.reason or 'no reason given'}")
    elif not report.publishing:
        line("Writing is switched off (QUANTCARD_PUBLISH).")
    n_follows = len(report.follows) + report.more.get("follows", 0)
    line(f"Following {n_follows}; last poll {when(report.last_poll)}.")
    line(f"Repos: {_counts(report.repos)}")
    if report.repos_due or report.headers_waiting or report.requests_waiting:
        line(
            f"To be looked into: {report.repos_due} repos, {report.headers_waiting} headers, "
            f"{report.requests_waiting} requests"
        )
    oldest = f"; the oldest was queued {when(report.oldest_job)}" if report.oldest_job is not None else ""
    line(f"Jobs: {_counts(report.jobs)}{oldest}")
    if report.queue_paused:
        line(f"The queue is paused ({report.queue_paused}); 'quantcard jobs resume' ends that.")
    if money := report.money:
        line(
            f"Hugging Face Jobs in {money.month}: {money.spent:.2f} USD spent, up to {money.reserved:.2f} USD by those "
            f"under way, {money.limit:.2f} USD allowed"
        )
    line(f"Pulls: {_counts(report.pull_counts)}")
    if cycle := report.last_cycle:
        line(
            f"Last cycle: {when(cycle.at)}, {cycle.seconds:.0f} s, {cycle.repos_changed} repos new or changed, "
            f"{cycle.jobs_done} jobs done, {cycle.errors_total} errors"
        )
    for window in report.budget:
        line(
            f"Request budget ({window.resource}): {window.remaining} of {window.limit} left, "
            f"whole again {when(window.resets_at)}"
        )
    hooks = report.webhooks
    if hooks.open:
        line(
            f"Webhooks: {hooks.taken} taken, {hooks.ignored} ignored, {hooks.refused} refused; last "
            f"{when(hooks.last_at)}"
        )


def _tables(report: StatusReport) -> None:
    def when(moment: float | None) -> str:
        return ago(moment, report.at)

    def again(moment: float | None) -> str:
        if moment is None:
            return "when something happens"
        return "at the next publishing" if moment <= report.at else when(moment)

    def table(name: str, title: str, columns: str, rows: list[tuple[object, ...]]) -> None:
        _table(title, columns.split("|"), rows, more=report.more.get(name, 0))

    table(
        "follows", "Follows", "Name|Kind|Repos|Last poll|Error",
        [
            (one.name, one.kind + (", consented" if one.consented else ""), one.repos, when(one.polled_at), one.error)
            for one in report.follows
        ],
    )  # fmt: skip
    table(
        "running", "Measuring now", "Job|Kind|File|Progress",
        [
            (job.id, job.kind, f"{job.repo_id}/{job.variant}", _percent(job.progress))
            for job in report.running
        ],
    )  # fmt: skip
    table(
        "pulls", "Open pulls", "Pull|Opened|Last decision",
        [(one.url or f"{one.repo_id} {one.num}", when(one.created_at), one.reason) for one in report.pulls],
    )  # fmt: skip
    table(
        "reasons", "Why cards stand as they do", "Reason|Decision|Repos|Among them|Decided again",
        [(one.reason, one.action, one.repos, one.repo_id, again(one.next_at)) for one in report.reasons],
    )  # fmt: skip
    table(
        "refusals", "Repos whose owners said no", "Repo|How",
        [(one.repo_id, _how(one.how, one.by, one.num)) for one in report.refusals],
    )  # fmt: skip
    table(
        "disputes", "Disputed figures", "No.|Repo|Pull|By|Words",
        [(one.id, one.repo_id, one.num, one.author, one.text) for one in report.disputes],
    )  # fmt: skip
    if report.last_cycle:
        errors = report.last_cycle.errors
        _table(
            "Errors of the last cycle", ["Where", "What"], [(one.what, one.error) for one in errors],
            more=report.last_cycle.errors_total - len(errors),
        )  # fmt: skip
    table(
        "repo_errors", "Repos that could not be read", "Repo|Why|Tried again",
        [(one.repo_id, one.problem, when(one.until)) for one in report.repo_errors],
    )  # fmt: skip
    table(
        "config_problems", "Problems with .quantcard.yml", "Repo|Problem",
        [(one.repo_id, one.problem) for one in report.config_problems],
    )  # fmt: skip
    table(
        "failed", "Failed jobs", "Job|Kind|File|When|Why",
        [
            (job.id, job.kind, f"{job.repo_id}/{job.variant}", when(job.updated_at), job.error)
            for job in report.failed
        ],
    )  # fmt: skip


def _one_repo(store: Store, settings: Settings, name: str, *, now: float, as_json: bool) -> None:
    """Everything about one repo.

    Raises:
        SettingsError: it is no repo's name, or was never seen.
    """
    if not is_repo_id(name):
        raise SettingsError(f"{name!r} is not a repo. Write OWNER/REPO.")
    repo = store.repos.named(name)
    if repo is None:
        raise SettingsError(f"{name} was not seen yet. Run 'quantcard follow {name}' and then 'quantcard run --once'.")
    rows = current_rows(
        store, view(store, trusted=settings.trusted_owners), settings.protocol_in_force(), repo_id=repo.id
    )
    pulls = store.results.pulls(repo.id)
    decision = store.publishing.get(repo.id)
    failed = Overview(store.db).failures_of(repo.id)
    follow = store.repos.follow_of(repo.id)
    if as_json:
        found: dict[str, Any] = {
            "repo": repo.id,
            "state": repo.state,
            "sha": repo.sha,
            "note": repo.note,
            "follow": follow.name if follow else None,
            "due_since": repo.due_at,
            "error": repo.error,
            "stopped": repo.stopped,
            "config": repo.config,
            "decision": None if decision is None else {
                "action": decision.action, "reason": decision.reason, "num": decision.num, "at": decision.at,
                "next_at": decision.next_at,
            },
            "pulls": [
                {"repo_id": p.repo_id, "num": p.num, "status": p.status, "key": p.key, "url": p.url} for p in pulls
            ],
            "failed": failed,
            "rows": [row.model_dump(mode="json", exclude={"quality_json", "speed_json"}) for row in rows],
        }  # fmt: skip
        print_json(found)
        return
    out.print(rows_table(rows, title=escape(repo.id)))
    out.print()
    for text in _about(repo, now=now):
        out.print(text, markup=False)
    out.print(f"Followed by: {follow.name if follow else 'nobody; it was asked for'}", markup=False)
    for pull in pulls:
        out.print(f"Pull {pull.num}, {pull.status}: {pull.url or '–'}", markup=False)
    if decision and decision.reason:
        out.print(f"Card ({decision.action}, {ago(decision.at, now)}): {decision.reason}", markup=False)
    _table(
        "Failed jobs", ["Job", "Kind", "File", "When", "Why"],
        [(job["id"], job["kind"], job["variant"], iso(job["updated_at"]), job["error"]) for job in failed],
    )  # fmt: skip


def _about(repo: Repo, *, now: float) -> list[str]:
    problem = repo.config.get("problem")
    told = [
        (True, f"State: {repo.state}{f' ({repo.note})' if repo.note else ''}"),
        (repo.due_at is not None, f"Waits to be looked into: {ago(repo.due_at, now)}"),
        (bool(repo.error), f"The last look failed: {repo.error}"),
        (bool(repo.stopped), f"Stopped by: {repo.stopped}"),
        (bool(problem), f".quantcard.yml: {problem}"),
        (not problem and repo.config.get("enabled") is False, ".quantcard.yml: enabled: false"),
    ]
    return [text for holds, text in told if holds]


def _table(title: str, columns: list[str], rows: list[tuple[object, ...]], *, more: int = 0) -> None:
    if not rows:
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("–" if cell is None else escape(str(cell)) for cell in row))
    out.print()
    out.print(table)
    if more > 0:
        out.print(f"and {more} more", markup=False)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in found.items()) or "none"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def _how(how: str, by: str | None, num: int | None) -> str:
    said = {"closed": f"closed pull {num}", "disabled": "enabled: false in .quantcard.yml"}
    return said.get(how, f"/quantcard stop by {by}")
