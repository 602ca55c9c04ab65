"""``quantcard card``: what a repo's card would say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.clock import SystemClock
from bot.commands.common import DbOption, open_hub, stop_on_signals
from bot.commands.fragment import fragment
from bot.hub.client import Hub
from bot.hub.diff import unified
from bot.hub.door import HubDoor
from bot.hub.dry_run import NoCard, print_exactly
from bot.intake.view import view
from bot.progress import say
from bot.publish.lease import Lease
from bot.publish.outcome import Outcome, note_outcome
from bot.publish.preview_page import Page, render_page
from bot.publish.pulls import preview, publish_repo
from bot.publish.rows import current_rows, settled
from bot.publish.section import CARD
from bot.queue.worker import alive, worker_name
from bot.settings import Settings, load_settings
from bot.store import Store
from bot.store.repos import Repo
from bot.web.preview import serving
from core.canonical import storage_error, write_atomic
from core.dataset import DatasetRow
from core.errors import HubUnreachableError, SettingsError


def card(
    repo: Annotated[str, typer.Argument(help="OWNER/REPO.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the calls and the change to the card, as a diff.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --dry-run: print the whole new card instead.")] = False,
    preview_: Annotated[
        bool,
        typer.Option("--preview", help="Serve a page here: the card as the Hub would show it, the diff."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="With --preview: write the page to a file.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="With --preview; 0: a free one.")] = 0,
    fragment_: Annotated[
        bool, typer.Option("--fragment", help="Print the section alone, like 'quantcard fragment'.")
    ] = False,
    db: DbOption = None,
) -> None:
    """Open or update the pull for one repo from what is measured, or (--dry-run, --preview) show what it changes."""
    if fragment_:
        fragment(repo, format_="section", variant=None, markers=True, db=db)
        return
    if out is not None and not preview_:
        raise typer.BadParameter("It goes with --preview only.", param_hint="--out")
    settings = load_settings(db=db, dry_run=True if dry_run or preview_ else None)
    hub = open_hub(settings)
    with Store(settings.db) as store:
        seen = view(store, trusted=settings.trusted_owners)
        known = store.repos.repo(repo)
        protocol = settings.protocol_in_force()
        rows = current_rows(store, seen, protocol, repo_id=repo) if known else []
        if known is None or not any(row.kld_mean is not None or row.tg_ts is not None for row in rows):
            raise SettingsError(
                f"Nothing is measured in {repo} yet. Run 'quantcard follow {repo}' and 'quantcard run --once'."
            )
        whole = settled(store, seen, protocol, repo)
        if preview_:
            page = _page(store, hub, settings, known, rows, whole=whole)
            _show_page(page, out=out, port=port)
            return
        if settings.dry_run:
            _show(store, hub, settings, known, rows, whole=whole, full=full)
            return
        if not settings.publish:
            raise SettingsError("Publishing is switched off (publish = false). Switch it on, or use --dry-run.")
        if store.repos.follow_of(repo) is None:
            raise SettingsError(f"{repo} is not followed, so no pull is opened. Run 'quantcard follow {repo}' first.")
        if not whole:
            raise SettingsError(f"Measurements of {repo} are still waiting. Run 'quantcard run --once' first.")
        outcome = _publish(store, hub, settings, known, rows)
    say(outcome.decision.reason)
    if outcome.url:
        print_exactly(outcome.url + "\n")


def _page(store: Store, hub: Hub, settings: Settings, repo: Repo, rows: list[DatasetRow], *, whole: bool) -> str:
    """The page of ``--preview``; where the Hub is away, of the section alone."""
    said = "A preview: nothing is written to the Hub."
    if not whole:
        said += " Measurements of this repo are still waiting."
    try:
        found = preview(store, hub, settings, repo, rows)
    except HubUnreachableError as error:
        say(str(error))
        found = preview(store, NoCard(endpoint=settings.hf_endpoint, token=None), settings, repo, rows)
        said += " The Hub did not answer: this is the section alone, without the card that it goes on."
    return render_page(
        Page(
            repo.id,
            settings.hf_endpoint.rstrip("/"),
            found.before,
            found.after,
            found.title,
            found.body,
            found.files,
            said,
        )
    )


def _show_page(page: str, *, out: Path | None, port: int) -> None:
    if out is not None:
        try:
            write_atomic(out, page.encode())
        except OSError as error:
            raise storage_error(out, error) from error
        say(f"Written to {out}; it is whole in itself.")
        return
    try:
        with stop_on_signals() as stop, serving(page, port=port) as address:
            print_exactly(address + "\n")
            say("The preview is served on this machine only. Ctrl-C ends it.")
            stop.wait()
    except OSError as error:
        raise SettingsError(f"The preview can't be served: {error}") from None


def _publish(store: Store, hub: HubDoor, settings: Settings, repo: Repo, rows: list[DatasetRow]) -> Outcome:
    clock = SystemClock()
    lease = Lease(store, clock, owner=worker_name(), alive=alive)
    if not lease.take():
        raise SettingsError("Another quantcard publishes from this database just now. Try again in a minute.")
    with lease.publishing():
        now, touched = clock.now(), store.publishing.touches(repo.id)
        outcome = publish_repo(store, hub, settings, repo, rows, now=now)
        note_outcome(store, outcome, sha=repo.sha, now=now, touched=touched)
    return outcome


def _show(
    store: Store, hub: HubDoor, settings: Settings, repo: Repo, rows: list[DatasetRow], *, whole: bool, full: bool
) -> None:
    """What would be done; where manners forbid it now, what it would be."""
    if full:
        print_exactly(preview(store, hub, settings, repo, rows).after)
        return
    outcome = publish_repo(store, hub, settings, repo, rows, now=SystemClock().now(), settled=whole)
    say(outcome.decision.reason)
    if outcome.decision.action in ("open", "update"):
        return
    found = preview(store, hub, settings, repo, rows)
    say(f"Nothing would be committed now. The pull would be: {found.title}\n\n{found.body}")
    print_exactly("".join(unified(found.before, found.after, path=CARD)))
