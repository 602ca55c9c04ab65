"""Where we listen: on the pull that is open, or the newest; now and then also on older ones.

An owner may say 'stop' where they once met us, on a pull that was merged or replaced since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bot.hub.door import HubDoor
from bot.publish.answers import Heard, hear
from bot.publish.found import Found, read_pull
from bot.publish.manners import DAY, OPEN, REPLACED, Standing, held_back, not_replaced_yet
from bot.store import Store
from bot.store.repos import Repo
from bot.store.results import StoredPull
from core.dataset import DatasetRow
from core.errors import HubNotFoundError

#: Older pulls read in one look, and days after which one that was replaced is not listened to any more.
MOST_OTHERS = 3
_REPLACED_DAYS = 90


@dataclass(frozen=True, slots=True)
class Listened:
    """Our pulls as they stand after listening, and what came of it; None where we have none."""

    found: list[Found]
    heard: Heard | None = None


def listen(
    store: Store,
    hub: HubDoor,
    repo: Repo,
    found: Sequence[Found],
    rows: Sequence[DatasetRow],
    *,
    may_open: bool,
    now: float,
) -> Listened:
    """Hear what owners said on our pulls; older ones are read once a day, and whenever a new one may be opened.

    Args:
        found: our pulls in the repo.
        may_open: a new pull may be opened next.

    Raises:
        HubError: the Hub did not answer, or an answer could not be given.
    """
    stored = {pull.num: pull for pull in store.results.pulls(repo.id)}
    pulls = {one.view.num: one for one in found}
    reader = _Reader(store, hub, pulls, stored, now)
    main = reader.main()
    older = to_hear([*pulls.values()], stored, main=main, now=now)
    name = f"heard:{repo.id}"
    if older and (may_open or float(store.results.get(name) or 0.0) <= now - DAY):
        for num in older:
            reader.read(num)
        if not hub.dry_run:
            store.results.put(name, repr(now))
        # One may have been opened again by hand.
        main = reader.main()
    if main is None:
        return Listened([pulls[num] for num in sorted(pulls)])
    one = pulls[main]
    others = [other.whole for num, other in sorted(pulls.items()) if other.whole and num != main]
    heard = hear(store, hub, repo, one, rows, others=others, now=now)
    view = one.view
    if one.whole and heard.pull.status != one.whole.status:
        view = replace(view, status=heard.pull.status)
        if not hub.dry_run:
            store.results.save_pull(repo.id, view.num, key=view.key, status=view.status, url=heard.pull.url, now=now)
    pulls[main] = Found(view, heard.pull)
    return Listened([pulls[num] for num in sorted(pulls)], heard)


def may_open(found: Sequence[Found], standing: Standing, *, repo_id: str) -> bool:
    """Whether a new pull may be opened next, for all that can be known beforehand. Pure."""
    up = [one for one in found if one.view.status in OPEN]
    if not up:
        return held_back(standing) is None
    stuck = [one.view.num for one in up if one.whole and one.whole.conflicts]
    return len(up) == 1 and any(not_replaced_yet(standing, repo_id=repo_id, num=num) is None for num in stuck)


def to_hear(found: Sequence[Found], stored: Mapping[int, StoredPull], *, main: int | None, now: float) -> list[int]:
    """Pulls besides the main one to listen to, :data:`MOST_OTHERS` at most. Pure.

    The newest of each status, then those that were replaced lately.
    """
    others = sorted((one.view for one in found if one.view.num != main), key=lambda view: view.num, reverse=True)
    newest: dict[str, int] = {}
    for view in others:
        newest.setdefault("open" if view.status in OPEN else view.status, view.num)
    since = now - _REPLACED_DAYS * DAY
    lately = [
        view.num
        for view in others
        if view.status == REPLACED and (view.num not in stored or stored[view.num].created_at > since)
    ]
    return [*dict.fromkeys([*newest.values(), *lately])][:MOST_OTHERS]


class _Reader:
    """Reads pulls whole, once each; one that turns out to be none of ours is taken from ``pulls``."""

    def __init__(
        self, store: Store, hub: HubDoor, pulls: dict[int, Found], stored: Mapping[int, StoredPull], now: float
    ) -> None:
        self._store, self._hub, self._pulls, self._stored, self._now = store, hub, pulls, stored, now
        self._missing: set[int] = set()

    def main(self) -> int | None:
        """The pull that is listened to, read: an open one, or the newest; None: there is none to be read."""
        while there := [num for num in self._pulls if num not in self._missing]:
            main = max(there, key=lambda num: (self._pulls[num].view.status in OPEN, num))
            if self._pulls[main].whole is not None:
                return main
            self.read(main)
        return None

    def read(self, num: int) -> None:
        """Read one that was not read yet."""
        if self._pulls[num].whole is not None:
            return
        try:
            one = read_pull(self._store, self._hub, self._stored[num], now=self._now)
        except HubNotFoundError:
            self._missing.add(num)
            return
        if one is None:
            del self._pulls[num]
        else:
            self._pulls[num] = one
