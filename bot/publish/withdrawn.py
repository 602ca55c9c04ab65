"""A pull of ours in a repo whose ``.quantcard.yml`` says no since: we close it ourselves, once.

That is its owner's no: it is as if they had closed it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from bot.hub.door import HubDoor, HubPull
from bot.intake.repo_config import RepoConfig
from bot.publish.manners import OPEN, PullView
from bot.publish.render import fill
from bot.publish.writes import write
from bot.store import Store

_WITHDRAWN = re.compile(r"^<!-- quantcard:withdrawn -->\s*\Z", re.MULTILINE)


def says_no(config: RepoConfig) -> bool:
    """Whether a ``.quantcard.yml`` says no; one that can't be understood says nothing. Pure."""
    return not config.enabled and config.problem is None


def withdraw(
    store: Store, hub: HubDoor, repo_id: str, pull: HubPull, view: PullView, *, us: Collection[str], now: float
) -> bool:
    """Close a pull of ours that is open; False: it is not ours to close, or was closed so and opened again.

    Raises:
        HubError: it could not be closed.
    """
    name = f"withdrawn:{repo_id}:{pull.num}"
    said = any(one.author in us and _WITHDRAWN.search(one.text) for one in pull.comments)
    if said or store.results.get(name) or view.status not in OPEN or view.foreign or not view.mine:
        return False
    write(store, hub, lambda: hub.close_pull(repo_id, pull.num, fill("pull-withdrawn.md.j2")), now=now)
    if not hub.dry_run:
        store.results.put(name, repr(now))
    return True
