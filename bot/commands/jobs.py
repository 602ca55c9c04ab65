"""``quantcard jobs``: look into the queue and try failed jobs again."""

from __future__ import annotations

from typing import Annotated

import typer

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, JsonOption, print_json
from bot.progress import say
from bot.settings import load_settings
from bot.store import Store
from bot.tables import out
from core.errors import SettingsError

app = typer.Typer(help="Look into the queue and try failed jobs again.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option("--state", help="Only todo, running, done or dead ones.")] = None,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs: running, then the queue in its order, then the newest of the others."""
    with Store(load_settings(db=db).db) as store:
        found = store.jobs.all(states=(state,) if state else ())
        rows = [
            {
                "id": job.id,
                "kind": job.kind,
                "state": job.state,
                "repo_id": (variant := store.repos.variant(job.variant_id)).repo_id,
                "variant": variant.name,
                "attempts": job.attempts,
                "error_type": job.error_type,
                "error": job.error,
                "updated_at": iso(job.updated_at),
            }
            for job in found
        ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        why = f"  {row['error']}" if row["error"] else ""
        out.print(
            f"{row['id']:>5}  {row['kind']:<8} {row['state']:<8} {row['repo_id']}/{row['variant']}{why}", markup=False
        )


@app.command("show")
def show(job: Annotated[int, typer.Argument(help="The job's number.")], db: DbOption = None) -> None:
    """Show a job's history: every change of state with its time and reason."""
    with Store(load_settings(db=db).db) as store:
        events = store.jobs.events(job)
    if not events:
        raise SettingsError(f"There is no job {job}. 'quantcard jobs list' lists them.")
    for event in events:
        out.print(f"{iso(event['at'])}  {event['state']:<8} {event['reason'] or ''}", markup=False)


@app.command("retry")
def retry(job: Annotated[int, typer.Argument(help="The job's number.")], db: DbOption = None) -> None:
    """Give a dead job, and those that waited for it, another try."""
    with Store(load_settings(db=db).db) as store:
        if not store.jobs.retry(job, now=SystemClock().now()):
            raise SettingsError(f"Job {job} is not dead, so there is nothing to retry.")
    say(f"Job {job} is queued again.")
