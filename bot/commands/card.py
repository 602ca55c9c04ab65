"""``quantcard card``: what a repo's card would say."""

from __future__ import annotations

import difflib
import re
import sys
import uuid
from collections.abc import Iterator
from typing import Annotated

import typer

from bot.clock import SystemClock
from bot.commands.common import DbOption, open_hub
from bot.intake.view import view
from bot.progress import say
from bot.publish.pulls import PUBLISH_LEASE, preview, publish_repo
from bot.publish.rows import current_rows, settled
from bot.settings import load_settings
from bot.store import Store
from core.errors import SettingsError


def card(
    repo: Annotated[str, typer.Argument(help="OWNER/REPO.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the change to the card, as a diff.")] = False,
    full: Annotated[bool, typer.Option("--full", help="With --dry-run: print the whole new card instead.")] = False,
    db: DbOption = None,
) -> None:
    """Open or update the pull for one repo from what is measured, or (--dry-run) print what it would change."""
    settings = load_settings(db=db, dry_run=True if dry_run else None)
    hub = open_hub(settings)
    with Store(settings.db) as store:
        seen = view(store, trusted=settings.trusted_owners)
        known = seen.repos.get(repo)
        protocol = settings.protocol_in_force()
        rows = current_rows(store, seen, protocol, repo_id=repo) if known else []
        if known is None or not any(row.kld_mean is not None or row.tg_ts is not None for row in rows):
            raise SettingsError(
                f"Nothing is measured in {repo} yet. Run 'quantcard follow {repo}' and 'quantcard run --once'."
            )
        if dry_run:
            before, after = preview(hub, settings, known, rows)
            if full:
                sys.stdout.write(after)
                return
            sys.stdout.writelines(_diff(before, after, repo))
            return
        if not settings.publish:
            raise SettingsError("Publishing is switched off (publish = false). Switch it on, or use --dry-run.")
        if store.repos.follow_of(repo) is None:
            raise SettingsError(f"{repo} is not followed, so no pull is opened. Run 'quantcard follow {repo}' first.")
        if not settled(store, seen, protocol, repo):
            raise SettingsError(f"Measurements of {repo} are still waiting. Run 'quantcard run --once' first.")
        now, owner = SystemClock().now(), uuid.uuid4().hex
        if not store.results.take_lease("publish", owner, now=now, lease=PUBLISH_LEASE):
            raise SettingsError("Another quantcard publishes from this database just now. Try again in a minute.")
        try:
            outcome = publish_repo(store, hub, settings, known, rows, now=now)
        finally:
            store.results.drop_lease("publish", owner)
    say(outcome.decision.reason)
    if outcome.url:
        sys.stdout.write(outcome.url + "\n")


def _lines(text: str) -> list[str]:
    """Lines as git counts them: only LF ends one."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _diff(before: str, after: str, repo: str) -> Iterator[str]:
    """A unified diff as git prints it."""
    names = f"{repo}/README.md (now)", f"{repo}/README.md (with quantcard's section)"
    for line in difflib.unified_diff(_lines(before), _lines(after), *names):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
