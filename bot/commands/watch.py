"""``quantcard follow``, ``unfollow``, ``follows``, ``status``: what is watched and how it stands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from bot.clock import SystemClock, iso
from bot.commands.common import DbOption, JsonOption, print_json
from bot.intake.view import view
from bot.progress import say
from bot.publish.rows import current_rows
from bot.settings import load_settings
from bot.store import Store
from bot.tables import out, rows_table
from core.errors import SettingsError
from core.repo_names import is_owner, is_repo_id

NameArgument = Annotated[str, typer.Argument(help="An OWNER, or a single OWNER/REPO.")]


def _checked(name: str) -> str:
    if not (is_owner(name) or is_repo_id(name)):
        raise SettingsError(f"{name!r} is not an owner or a repo. Write OWNER or OWNER/REPO.")
    return name


def follow(
    name: NameArgument,
    consented: Annotated[
        bool, typer.Option("--consented", help="The owner agreed to pulls: no introduction limit.")
    ] = False,
    db: DbOption = None,
) -> None:
    """Watch an owner's GGUF repos, or one repo."""
    with Store(load_settings(db=db).db) as store:
        store.repos.follow(_checked(name), consented=consented, now=SystemClock().now())
    say(f"Following {name}{' (consented)' if consented else ''}.")


def unfollow(name: NameArgument, db: DbOption = None) -> None:
    """Stop watching; what was measured stays."""
    with Store(load_settings(db=db).db) as store:
        found = store.repos.unfollow(_checked(name))
    if not found:
        raise SettingsError(f"{name} is not followed. 'quantcard follows' lists what is.")
    say(f"No longer following {name}.")


def follows(db: DbOption = None, as_json: JsonOption = False) -> None:
    """List what is watched."""
    with Store(load_settings(db=db).db) as store:
        found = store.repos.follows()
    if as_json:
        print_json([{"name": one.name, "consented": one.consented} for one in found])
        return
    for one in found:
        out.print(f"{one.name}{'  (consented)' if one.consented else ''}", markup=False)
    if not found:
        say("Nothing is followed yet. Try 'quantcard follow OWNER'.")


def status(db: DbOption = None, as_json: JsonOption = False) -> None:
    """Show follows, queue, failures, measured variants and pulls."""
    settings = load_settings(db=db)
    with Store(settings.db) as store:
        seen = view(store, trusted=settings.trusted_owners)
        rows = current_rows(store, seen, settings.protocol_in_force())
        counts = store.jobs.counts()
        dead = store.jobs.all(states=("dead",), limit=50)
        running = store.jobs.all(states=("running", "todo"), limit=50)
        names = {job.id: store.repos.variant(job.variant_id) for job in [*dead, *running]}
        pulls = store.results.pulls()
        followed = store.repos.follows()
    if as_json:
        print_json(
            {
                "follows": [{"name": one.name, "consented": one.consented} for one in followed],
                "repos": sorted(seen.repos),
                "jobs": counts,
                "failed": [
                    {"id": job.id, "kind": job.kind, "repo_id": names[job.id].repo_id,
                     "variant": names[job.id].name, "error_type": job.error_type, "error": job.error}
                    for job in dead
                ],
                "rows": [row.model_dump(mode="json", exclude={"quality_json", "speed_json"}) for row in rows],
                "pulls": [
                    {"repo_id": p.repo_id, "num": p.num, "status": p.status, "key": p.key, "url": p.url} for p in pulls
                ],
            }
        )  # fmt: skip
        return
    out.print(f"Following {len(followed)}, {len(seen.repos)} repos, {len(rows)} variants.", markup=False)
    out.print("Jobs: " + (", ".join(f"{n} {state}" for state, n in counts.items()) or "none"), markup=False)
    for repo_id in sorted({row.repo_id for row in rows}):
        out.print()
        out.print(rows_table([row for row in rows if row.repo_id == repo_id], title=repo_id))
    waiting = Table("Job", "Kind", "Variant", "State", "Since", "Why", title="Queue and failures", title_justify="left")
    for job in [*running, *dead]:
        variant = names[job.id]
        why = job.error or ""
        waiting.add_row(str(job.id), job.kind, f"{variant.repo_id}/{variant.name}", job.state, iso(job.updated_at), why)
    if waiting.row_count:
        out.print()
        out.print(waiting)
    for pull in pulls:
        out.print(f"Pull {pull.status}: {pull.url}", markup=False)
