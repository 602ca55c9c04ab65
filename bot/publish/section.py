"""A repo's section as its owner wants it: which rows and columns, its key, and where it goes on the card. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.intake.repo_config import RepoConfig
from bot.publish import card as cards
from bot.publish.data_block import with_data
from bot.publish.model_index import Metadata, remove_metadata, splice_metadata
from bot.publish.render import render_section
from bot.publish.rows import figures_key
from core.canonical import fingerprint
from core.dataset import DatasetRow

CARD = "README.md"


def rows_for(rows: Sequence[DatasetRow], config: RepoConfig) -> list[DatasetRow]:
    """The rows that may be told in this repo: of the protocols that its owner wants."""
    return [row for row in rows if not config.protocols or row.protocol_name in config.protocols]


def section_key(rows: Sequence[DatasetRow], config: RepoConfig) -> str:
    """:func:`figures_key`, and another one where the owner wants it told otherwise or disputes it.

    What is always so is no part of it: another wording makes no wave of pulls.
    """
    told = {
        "columns": config.columns,
        "data": config.data if config.data != "comment" else "",
        "metadata": config.metadata,
        "disputed": sorted({row.disputed for row in rows if row.disputed}),
    }
    key = figures_key(list(rows))
    wishes = {name: value for name, value in told.items() if value}
    return fingerprint([key, wishes])[:12] if wishes else key


@dataclass(frozen=True, slots=True)
class Section:
    """What is told of a repo's rows. ``files`` go with the card; ``body`` stands between the markers."""

    rows: Sequence[DatasetRow]
    config: RepoConfig
    key: str
    body: str
    files: dict[str, bytes]
    source_url: str

    def on(self, card: str) -> Metadata:
        """A card with this section and, where they are wanted and can be, ``model-index`` entries; else says why not.

        Raises:
            CardError: its markers are damaged.
        """
        new = cards.splice(card, self.body, key=self.key, position=self.config.position, after=self.config.after)
        return splice_metadata(new, self.rows, key=self.key, enabled=self.config.metadata, source_url=self.source_url)

    def says(self, card: str, *, main: str) -> bool:
        """Whether a pull's card tells this where it is wanted and is main's card otherwise.

        Wording alone is no reason to commit.
        """
        try:
            found = cards.find(card)
            if found is None or found.key != self.key or bare(card) != bare(main):
                return False
            return cards.find(main) is not None or _place(card) == _place(self.on(main).card)
        except cards.CardError:
            return False

    @property
    def beside(self) -> list[str]:
        """What the pull changes besides the section, as ends of a sentence."""
        files = [f"adds `{path}` with the same figures" for path in self.files]
        return files + (["puts `model-index` entries into the front matter"] if self.config.metadata else [])


def make_section(
    rows: Sequence[DatasetRow], config: RepoConfig, *, endpoint: str, project_url: str, leaderboard_url: str
) -> Section:
    """The section of a repo's rows (one at least)."""
    body = render_section(
        rows, endpoint=endpoint, project_url=project_url, leaderboard_url=leaderboard_url, only=config.columns
    )
    body, files = with_data(body, rows, config.data)
    return Section(rows, config, section_key(rows, config), body, files, leaderboard_url or project_url)


def _place(card: str) -> int | None:
    """Where the section begins, whatever else of ours is in the front matter."""
    found = cards.find(remove_metadata(card))
    return found.start if found else None


def bare(card: str) -> str:
    """A card without anything of ours.

    Raises:
        CardError: its markers are damaged.
    """
    return remove_metadata(cards.remove(card))


def no_quality(rows: Sequence[DatasetRow]) -> str | None:
    """Why there is a reference but no quality figure; None when there is one, or can be none.

    A card is not the place for a corpus that is too short or a baseline that could not be recorded.
    """
    quants = [row for row in rows if not row.is_reference]
    if not any(row.reference_key for row in quants) or any(row.kld_mean is not None for row in quants):
        return None
    return next((row.reason for row in quants if row.reason), "its measurements have not ended")
