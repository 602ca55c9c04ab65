"""What we say on a pull unasked: what is wrong with a ``.quantcard.yml``, and that figures changed.

Each is said once: the Hub's comments tell, and the store, since a comment may be hidden. Where one of ours was hidden,
nobody wants to hear more, and nothing is said there any more but answers to what owners say after that.
"""

from __future__ import annotations

from collections.abc import Collection

from bot.hub.door import HubPull
from bot.publish import pull_texts as texts
from bot.publish.manners import DAY
from bot.store import Store


def last_hidden(pull: HubPull, us: Collection[str]) -> int:
    """The place of the last thing that we said on a pull and that was hidden; -1: there is none."""
    hidden = [one.place for one in pull.comments if one.hidden and one.author in us]
    if pull.body_hidden and pull.author in us:
        hidden.append(0)
    return max(hidden, default=-1)


class Remarks:
    """What was said unasked on one pull.

    Args:
        us: our accounts.
    """

    def __init__(self, store: Store, repo_id: str, pull: HubPull, *, us: Collection[str]) -> None:
        self._store = store
        self._name = f"told:{repo_id}:{pull.num}"
        self._ours = [one.text for one in pull.comments if one.author in us]
        self._unwelcome = last_hidden(pull, us) >= 0

    def may_tell_problem(self, digest: str) -> bool:
        """Whether it is to be said what is wrong with the ``.quantcard.yml`` of this digest."""
        told = self._store.results.get(f"{self._name}:{digest}") is not None
        return not (told or self._unwelcome or digest in texts.config_told(self._ours))

    def told_problem(self, digest: str, *, now: float) -> None:
        """It was said."""
        self._store.results.put(f"{self._name}:{digest}", repr(now))

    def may_tell_changes(self, *, now: float) -> bool:
        """Whether it may be said that figures changed: once a day."""
        last = max(texts.changed_at(self._ours) or 0.0, float(self._store.results.get(f"{self._name}:changed") or 0.0))
        return not self._unwelcome and last <= now - DAY

    def told_changes(self, *, now: float) -> None:
        """It was said."""
        self._store.results.put(f"{self._name}:changed", repr(now))
