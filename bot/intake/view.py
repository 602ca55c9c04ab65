"""The current variants of a repo with the reference chosen for each: what planning and publishing go by.

Repo by repo: with ten thousand of them not all can be in memory, and none needs to be compared with all others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from bot.intake.base_models import Base, base_of, same_repo
from bot.intake.references import Choice, Offers, Shared
from bot.store import Store
from bot.store.repos import Repo, Variant
from core.dataset import ReferenceKind

T = TypeVar("T")

#: Repos, and base models, whose choices are kept at a time.
_KEPT = 64


class View:
    """Every current variant with its reference, as the store was when it was first asked for.

    Args:
        trusted: owners whose references serve other uploaders, besides a base model's own owner.
    """

    def __init__(self, store: Store, *, trusted: Collection[str]) -> None:
        self._store = store
        self._trusted = {owner.lower() for owner in trusted}
        self._choices: OrderedDict[str, list[tuple[Variant, Choice]]] = OrderedDict()
        self._shared: OrderedDict[str, list[Shared]] = OrderedDict()
        self.repos: Mapping[str, Repo] = _Repos(store)

    def of(self, repo_id: str) -> list[tuple[Variant, Choice]]:
        """A repo's current variants with their references; empty where there is no such repo."""
        return _kept(self._choices, repo_id, lambda: self._choose(repo_id))

    @property
    def choices(self) -> Iterator[tuple[Variant, Choice]]:
        """Those of all repos, one repo after the other."""
        for repo_id in self.repos:
            yield from self.of(repo_id)

    def base(self, repo_id: str) -> Base:
        """A repo's base model."""
        repo = self._store.repos.repo(repo_id)
        if repo is None:
            return Base(None, "It is not known here.")
        return self._base(repo, self._store.repos.variants(repo_id))

    def _base(self, repo: Repo, variants: list[Variant]) -> Base:
        return base_of(repo, variants, known=self._store.repos.named)

    def _choose(self, repo_id: str) -> list[tuple[Variant, Choice]]:
        repo = self._store.repos.repo(repo_id)
        variants = self._store.repos.variants(repo_id) if repo else []
        if repo is None or not variants:
            return []
        base = self._base(repo, variants)
        shared = self._serving(base.id) if base.id else []
        offers = Offers(own=variants, shared=shared, base=base)
        return [(variant, offers.choice(variant)) for variant in variants]

    def _serving(self, base: str) -> list[Shared]:
        return _kept(self._shared, base.lower(), lambda: self._serve(base))

    def _serve(self, base: str) -> list[Shared]:
        """What may be the reference of everybody's files of a base model."""
        owner = base.split("/")[0].lower()
        proven = self._store.proofs.proven(base)
        found = []
        for variant in self._store.proofs.wide(base, owners={owner, *self._trusted}):
            home = variant.repo_id.split("/")[0].lower()
            kind: ReferenceKind = "base-owner" if home == owner else "trusted" if home in self._trusted else "proven"
            if kind == "proven" and variant.key not in proven:
                continue
            # A file in the base model's own repo is of that; elsewhere the repo has to say so, and only that.
            if same_repo(variant.repo_id, base) or same_repo(self.base(variant.repo_id).id, base):
                found.append(Shared(variant, kind))
        return found


def view(store: Store, *, trusted: Collection[str]) -> View:
    """Every current variant with the reference chosen for it, repo by repo."""
    return View(store, trusted=trusted)


class _Repos(Mapping[str, Repo]):
    """All repos by id, read when they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, repo_id: str) -> Repo:
        found = self._store.repos.repo(repo_id)
        if found is None:
            raise KeyError(repo_id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.repos.ids())

    def __len__(self) -> int:
        return len(self._store.repos.ids())


def _kept(cache: OrderedDict[str, T], key: str, make: Callable[[], T]) -> T:
    """What is kept under a key, or made now; the longest unused goes first."""
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    found = cache[key] = make()
    while len(cache) > _KEPT:
        cache.popitem(last=False)
    return found
