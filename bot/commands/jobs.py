"""``quantcard jobs``: look into the queue, try failed jobs again, take jobs back, hold the queue."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, JsonOption, print_json, stop_on_signals
from bot.progress import say
from bot.settings import load_settings
from bot.store import Store
from bot.store.jobs import Job
from bot.tables import out
from core.errors import SettingsError
from core.format import duration

app = typer.Typer(help="Look into the queue, try failed jobs again, take jobs back, hold it.", no_args_is_help=True)

JobArgument = Annotated[int, typer.Argument(help="The job's number.")]


@app.command("list")
def list_jobs(
    state: Annotated[
        str | None, typer.Option("--state", help="Only todo, leased, running, done, failed, cancelled or dead ones.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 1000,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs: those under way, then the queue in its order with place and time, then the newest of the others."""
    settings = load_settings(db=db)
    now = SystemClock().now()
    with Store(settings.db) as store:
        found, rows = store.jobs.all(states=(state,) if state else (), limit=limit), []
        places = store.standing.places(found, now=now, slots=settings.slots)
        for job in found:
            variant, place = store.repos.variant(job.variant_id), places.get(job.id)
            rows.append(
                {
                    "id": job.id,
                    "kind": job.kind,
                    "state": job.state,
                    "repo_id": variant.repo_id,
                    "variant": variant.name,
                    "urgency": job.urgency,
                    "runner": job.runner,
                    "stage": job.stage,
                    "position": place.position if place else None,
                    "eta_s": None if place is None or place.eta_s is None else round(place.eta_s),
                    "attempts": job.attempts,
                    "error_type": job.error_type,
                    "error": job.error,
                    "updated_at": iso(job.updated_at),
                }
            )
        held = store.jobs.paused()
    if as_json:
        print_json(rows)
        return
    if held:
        say(f"The queue is paused ({held}); 'quantcard jobs resume' ends that.")
    for row in rows:
        out.print(_line(row), markup=False)


def _line(row: dict[str, Any]) -> str:
    where = ""
    if row["position"] is not None:
        where = f"  place {row['position']}"
        where += f", done in about {duration(row['eta_s'])}" if row["eta_s"] is not None else ""
    elif row["stage"] and row["state"] in ("leased", "running"):
        where = f"  {row['stage']}" + (f" ({row['runner']})" if row["runner"] else "")
    why = f"  {row['error']}" if row["error"] else ""
    return f"{row['id']:>5}  {row['kind']:<8} {row['state']:<9} {row['repo_id']}/{row['variant']}{where}{why}"


@app.command("show")
def show(job: JobArgument, db: DbOption = None) -> None:
    """Show a job's history: every change of state with its time and reason."""
    with Store(load_settings(db=db).db) as store:
        events = store.jobs.events(job)
    if not events:
        raise _no_job(job)
    for event in events:
        out.print(f"{iso(event['at'])}  {event['state']:<9} {event['reason'] or ''}", markup=False)


@app.command("retry")
def retry(job: JobArgument, db: DbOption = None) -> None:
    """Give a job that failed, died or was cancelled another try, with those that waited for it."""
    with Store(load_settings(db=db).db) as store:
        found = _found(store, job)
        if not store.jobs.retry(job, now=SystemClock().now()):
            raise SettingsError(f"Job {job} is {found.state}, so there is nothing to retry.")
    say(f"Job {job} is queued again.")


@app.command("cancel")
def cancel(
    job: JobArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; people see it.")] = "by the operator",
    db: DbOption = None,
) -> None:
    """Take a job back, and what waits for it; one that runs is given up within seconds."""
    with Store(load_settings(db=db).db) as store:
        found = _found(store, job)
        state = store.jobs.cancel(job, reason=f"It was cancelled: {reason}.", now=SystemClock().now())
    if state is None:
        raise SettingsError(f"Job {job} is {found.state}, so there is nothing to cancel.")
    say(f"Job {job} is cancelled." if state == "cancelled" else f"Job {job} is given up by its worker within seconds.")


@app.command("hurry")
def hurry(repo: Annotated[str, typer.Argument(help="OWNER/NAME.")], db: DbOption = None) -> None:
    """Let the waiting jobs of a repo come as soon as those that people ask for."""
    with Store(load_settings(db=db).db) as store:
        moved = store.jobs.hurry(repo, now=SystemClock().now())
    say(f"{moved} waiting jobs of {repo} come sooner." if moved else f"No job of {repo} waits.")


@app.command("pause")
def pause(
    reason: Annotated[str, typer.Option("--reason", help="Why, for who looks at the queue.")] = "by the operator",
    db: DbOption = None,
) -> None:
    """Hand out no job any more; those under way go on. Polling and publishing go on too."""
    with Store(load_settings(db=db).db) as store:
        store.jobs.pause(reason)
    say("No job is handed out until 'quantcard jobs resume'.")


@app.command("resume")
def resume(db: DbOption = None) -> None:
    """Hand out jobs again."""
    with Store(load_settings(db=db).db) as store:
        store.jobs.resume()
    say("Jobs are handed out again.")


@app.command("drain")
def drain(
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most; 0: for ever.")] = 0,
    db: DbOption = None,
) -> None:
    """Pause the queue and wait until no job is under way: then the machine may be taken down."""
    settings = load_settings(db=db)
    end = time.monotonic() + timeout if timeout else None
    with stop_on_signals() as stop, Store(settings.db) as store:
        store.jobs.pause("drained")
        told = -1
        while n_jobs := len(store.standing.under_way()):
            if n_jobs != told:
                told = n_jobs
                say(f"{n_jobs} jobs are under way …")
            if end is not None and time.monotonic() > end:
                raise SettingsError(f"{n_jobs} jobs are still under way after {timeout:.0f} s; the queue stays paused.")
            if stop.wait(1.0):
                raise KeyboardInterrupt
    say("No job is under way, and none is handed out until 'quantcard jobs resume'.")


def _found(store: Store, job: int) -> Job:
    found = store.jobs.job(job)
    if found is None:
        raise _no_job(job)
    return found


def _no_job(job: int) -> SettingsError:
    return SettingsError(f"There is no job {job}. 'quantcard jobs list' lists them.")
