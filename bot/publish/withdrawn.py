"""A pull of ours that a ``.quantcard.yml`` forbids since: we close it ourselves, once.

It counts as one that was replaced: nobody said no to it, and where the file says otherwise again, a new one may follow.
Its comment carries that marker too, so that it is found again as such.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from bot.hub.door import HubDoor, HubPull
from bot.intake.repo_config import RepoConfig
from bot.publish.manners import OPEN, PullView
from bot.publish.markdown import code
from bot.publish.render import fill
from bot.publish.writes import write
from bot.store import Store

_WITHDRAWN = re.compile(r"^<!-- quantcard:withdrawn -->\s*$", re.MULTILINE)


def forbids(config: RepoConfig, *, any_wanted: bool) -> bool:
    """Whether a ``.quantcard.yml`` forbids what we would tell; one that can't be understood does not. Pure.

    Args:
        any_wanted: whether there is something to tell of the protocols that it wants.
    """
    return config.problem is None and not (config.enabled and any_wanted)


def withdrawn_comment(config: RepoConfig) -> str:
    """Says politely why we close the pull."""
    return fill("pull-withdrawn.md.j2", protocols=code(", ".join(config.protocols)) if config.enabled else None)


def withdraw(
    store: Store,
    hub: HubDoor,
    repo_id: str,
    config: RepoConfig,
    pull: HubPull,
    view: PullView,
    *,
    us: Collection[str],
    now: float,
) -> bool:
    """Close a pull of ours that is open; False: it is not ours to close, or was closed so and opened again.

    Raises:
        HubError: it could not be closed.
    """
    name = f"withdrawn:{repo_id}:{pull.num}"
    said = any(one.author in us and _WITHDRAWN.search(one.text) for one in pull.comments)
    if said or store.results.get(name) or view.status not in OPEN or view.foreign or not view.mine:
        return False
    text = withdrawn_comment(config)
    write(store, hub, lambda: hub.close_pull(repo_id, pull.num, text), now=now)
    if not hub.dry_run:
        store.results.put(name, repr(now))
    return True
