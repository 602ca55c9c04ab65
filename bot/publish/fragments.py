"""Pull mode: a repo's section, figures and badge for uploaders who build their README with a script.

What is here is the same in the dataset (bot/publish/fragment_files.py), at the service (bot/web/fragments.py) and from
``quantcard fragment``: same rows, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bot.intake.repo_config import RepoConfig
from bot.intake.view import view
from bot.publish import card as cards
from bot.publish.badge import Badge, render_badge, repo_badge, variant_badge
from bot.publish.look import Links, links_of, made_section
from bot.publish.repo_figures import figures_json
from bot.publish.rows import current_rows
from bot.publish.section import rows_for, section_key
from bot.settings import Settings
from bot.store import Store
from core.dataset import DatasetRow
from core.protocol import Protocol

__all__ = [
    "BADGE", "FIGURES", "HIDDEN", "SECTION", "Links", "RepoRows", "badge", "current", "figures", "fragments",
    "links_of", "repo_rows", "section", "told",
]  # fmt: skip

SECTION, FIGURES, BADGE = "section.md", "quantcard.json", "badge.svg"
#: What a repo is when others can't see it (any more); nothing is told of it.
HIDDEN = frozenset({"private", "gone"})


def current(rows: Sequence[DatasetRow], config: Mapping[str, Any]) -> list[DatasetRow]:
    """The rows that a section shows: of files that are in the repo now, under the protocols that its owner wants.

    Args:
        config: the repo's ``.quantcard.yml`` as stored.
    """
    return rows_for([row for row in rows if row.state != "stale"], RepoConfig.from_json(config))


def told(rows: Sequence[DatasetRow]) -> bool:
    """Whether there is a figure to tell, so that a repo has fragments."""
    return any(row.kld_mean is not None or row.tg_ts is not None for row in rows)


def section(rows: Sequence[DatasetRow], links: Links, *, config: Mapping[str, Any], markers: bool = True) -> str:
    """The section of a repo's current rows as the bot would put it on the card.

    Args:
        config: the repo's ``.quantcard.yml`` as stored; its ``data`` says whether the hidden JSON is in it.
        markers: with the comments that it stands between, so that the bot sees that the card has these figures.
    """
    made = made_section(rows, RepoConfig.from_json(config), links)
    return cards.splice("", made.body, key=made.key) if markers else made.body.strip() + "\n"


def figures(rows: Sequence[DatasetRow], *, config: Mapping[str, Any]) -> bytes:
    """Every figure of a repo's current rows as JSON, under the key of its section."""
    return figures_json(rows, key=section_key(rows, RepoConfig.from_json(config)))


def badge(rows: Sequence[DatasetRow], variant: str | None = None) -> bytes:
    """The badge of a repo, or of the variant that ``variant`` names, from the repo's current rows (may be none)."""
    found: Badge = repo_badge(rows) if variant is None else variant_badge(rows, variant)
    return render_badge(found).encode()


def fragments(rows: Sequence[DatasetRow], links: Links, *, config: Mapping[str, Any]) -> dict[str, bytes]:
    """All files of a repo that has something to tell, by name."""
    return {
        SECTION: section(rows, links, config=config).encode("utf-8", "replace"),
        FIGURES: figures(rows, config=config),
        BADGE: badge(rows),
    }


@dataclass(frozen=True, slots=True)
class RepoRows:
    """A repo's current rows with its ``.quantcard.yml``."""

    repo_id: str
    config: Mapping[str, Any]
    rows: list[DatasetRow]


def repo_rows(store: Store, settings: Settings, protocol: Protocol, repo_id: str) -> RepoRows | None:
    """What is known of one repo, or None where it was never looked into or is not for others to see."""
    repo = store.repos.repo(repo_id)
    if repo is None or repo.state in HIDDEN:
        return None
    seen = view(store, trusted=settings.trusted_owners)
    found = current_rows(store, seen, protocol, repo_id=repo.id)
    return RepoRows(repo.id, repo.config, current(found, repo.config))
