"""``quantcard run``, ``serve`` and ``leaderboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bot.clock import SystemClock
from bot.commands.common import DbOption, open_hub, stop_on_signals
from bot.cycle import Cycle, CycleReport
from bot.progress import Bars, say
from bot.settings import Settings, load_settings
from bot.status import remember_cycle
from bot.store import Store
from bot.tables import out, rows_table
from core.errors import QuantcardError

UnsafeOption = Annotated[
    bool, typer.Option("--unsafe-no-sandbox", help="Run strangers' files also where nothing would hold them.")
]


def run_cycle(settings: Settings) -> tuple[CycleReport, list[Any]]:
    """One cycle with progress on stderr; returns its report and all rows.

    Raises:
        KeyboardInterrupt: it was stopped by a signal.
    """
    hub = open_hub(settings)
    with stop_on_signals() as stop, Store(settings.db) as store, Bars() as bars:
        clock = SystemClock()
        cycle = Cycle(store, hub, settings, clock, tell_job=bars.job, tell=say, stop=stop)
        started, report = clock.now(), CycleReport()
        try:
            report = cycle.run()
        except QuantcardError as failure:
            report.errors.append(("the cycle", failure))
            raise
        finally:
            if not settings.dry_run:
                remember_cycle(store, report, hub, started=started, now=clock.now())
        rows = cycle.rows()
    if stop.is_set():
        raise KeyboardInterrupt
    for what, error in [*report.poll.errors, *report.errors]:
        say(f"{what}: {error}")
    for outcome in report.outcomes:
        verb = {"open": "opened", "update": "updated"}.get(outcome.decision.action)
        if verb and outcome.url:
            say(f"Pull {verb}: {outcome.url}")
        elif verb is None and outcome.decision.reason:
            say(f"{outcome.repo_id}: {outcome.decision.reason}")
    if report.exported:
        say(f"Published the results to {settings.dataset}.")
    return report, rows


def run(
    once: Annotated[bool, typer.Option("--once", help="One whole cycle, then end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, but write nothing to the Hub.")] = False,
    unsafe: UnsafeOption = False,
    db: DbOption = None,
) -> None:
    """Poll, plan, measure until the queue is empty, publish, export; without --once again after each interval."""
    settings = load_settings(db=db, dry_run=dry_run or None, unsafe_no_sandbox=unsafe or None)
    if not once:
        serve_with(settings)
        return
    report, rows = run_cycle(settings)
    for repo_id in sorted({row.repo_id for row in rows}):
        out.print(rows_table([row for row in rows if row.repo_id == repo_id], title=repo_id))
        out.print()
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
    unsafe: UnsafeOption = False,
    db: DbOption = None,
) -> None:
    """Run the service: timers, webhook endpoint, worker and leaderboard, until SIGTERM."""
    serve_with(load_settings(db=db, host=host, port=port, unsafe_no_sandbox=unsafe or None))


def serve_with(settings: Settings) -> None:
    """Run the service with these settings."""
    from bot.service import Service

    Service(settings, open_hub(settings)).run()


def leaderboard(
    folder: Annotated[Path | None, typer.Option("--folder", help="Show a local copy of the dataset instead.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
    db: DbOption = None,
) -> None:
    """Serve the leaderboard over the results dataset (or, without one, over the local copy)."""
    from bot.leaderboard import open_leaderboard

    settings = load_settings(db=db, host=host, port=port)
    running = open_leaderboard(settings, folder=folder)
    say(f"Leaderboard: {running.url}  (Ctrl-C ends it)")
    with stop_on_signals() as stop:
        stop.wait()
    running.close()
