"""Every current variant with the reference chosen for it: what planning and publishing go by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bot.intake.references import Choice, choose
from bot.store import Store
from bot.store.repos import Repo, Variant


@dataclass(frozen=True, slots=True)
class View:
    """All variants of the store with their references."""

    repos: dict[str, Repo]
    choices: list[tuple[Variant, Choice]]


def view(store: Store, *, trusted: Collection[str]) -> View:
    """Every current variant with the reference chosen for it."""
    repos = {repo.id: repo for repo in store.repos.repos()}
    variants = store.repos.variants()
    return View(
        repos,
        [
            (variant, choose(variant, repos[variant.repo_id], variants=variants, repos=repos, trusted=trusted))
            for variant in variants
        ],
    )
