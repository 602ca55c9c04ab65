"""A repo's section as its owner wants it: which rows and columns, its key, and where it goes on the card. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from bot.intake.repo_config import RepoConfig
from bot.publish import card as cards
from bot.publish.changelog import changelog
from bot.publish.data_block import DataBlock, data_of, decode, with_block
from bot.publish.model_index import Metadata, remove_metadata, splice_metadata
from bot.publish.plot_files import PLOT_FILES, Plot
from bot.publish.plots import plot_wish
from bot.publish.render import render_section
from bot.publish.rows import figures_key
from bot.publish.verdict import Pairs, no_pairs
from core.canonical import fingerprint
from core.dataset import DatasetRow

log = logging.getLogger(__name__)

CARD = "README.md"
#: Characters that an owner's own template may make of a section.
_MAX_BODY = 400_000


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
        "plots": plot_wish(rows, config),
        "disputed": sorted({row.disputed for row in rows if row.disputed}),
    }
    key = figures_key(list(rows))
    wishes = {name: value for name, value in told.items() if value}
    return fingerprint([key, wishes])[:12] if wishes else key


@dataclass(frozen=True, slots=True)
class Section:
    """What is told of a repo's rows. ``files`` go with the card; ``body`` stands between the markers.

    ``data`` is the same for programs; ``with_changes`` the body that tells of changes, too; ``warning``: what is wrong
    with the owner's own template, in whose place ours was taken.
    """

    rows: Sequence[DatasetRow]
    config: RepoConfig
    key: str
    body: str
    files: dict[str, bytes]
    source_url: str
    data: DataBlock
    with_changes: Callable[[Sequence[Markup]], str]
    warning: str | None = None

    def on(self, card: str) -> Metadata:
        """A card with this section and, where they are wanted and can be, ``model-index`` entries; else says why not.

        Where the card has a section with other figures, this one says what changed since.

        Raises:
            CardError: its markers are damaged.
        """
        found = cards.find(card)
        before = decode(card[found.start : found.end]) if found else None
        told = changelog(before, self.data) if before else []
        body = self.with_changes(told) if told else self.body
        new = cards.splice(card, body, key=self.key, position=self.config.position, after=self.config.after)
        placed = splice_metadata(new, self.rows, key=self.key, enabled=self.config.metadata, source_url=self.source_url)
        if self.warning is None:
            return placed
        warning = f"The template for {self.rows[0].owner} is not used: {self.warning}"
        return replace(placed, note=f"{placed.note} {warning}" if placed.note else warning)

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
        files = [f"adds `{path}` with the same figures" for path in self.files if path not in PLOT_FILES]
        asked = files + (["puts `model-index` entries into the front matter"] if self.config.metadata else [])
        told = [f"{' and '.join(asked)}, as your `.quantcard.yml` asks for"] if asked else []
        if plots := [f"`{path}`" for path in self.files if path in PLOT_FILES]:
            unless = "" if self.config.plots == "others" else " (not with `plots: false` in a `.quantcard.yml`)"
            told.append(f"adds {'plots' if len(plots) > 1 else 'a plot'} of the figures, {' and '.join(plots)}{unless}")
        return told


def make_section(
    rows: Sequence[DatasetRow],
    config: RepoConfig,
    *,
    endpoint: str,
    project_url: str,
    leaderboard_url: str,
    dataset: str = "",
    plots: Sequence[Plot] = (),
    pairs: Pairs = no_pairs,
    template: str | None = None,
) -> Section:
    """The section of a repo's rows (one at least).

    Args:
        dataset: of the results.
        plots: those that lie beside the card.
        pairs: what the tokens of two files say of their KLDs.
        template: its owner's own; where it is broken ours is taken, and a warning says so.
    """

    def render(changed: Sequence[Markup] = (), own: str | None = None) -> str:
        return render_section(
            rows,
            endpoint=endpoint,
            project_url=project_url,
            leaderboard_url=leaderboard_url,
            dataset=dataset,
            only=config.columns,
            plots=plots,
            pairs=pairs,
            changed=changed,
            template=own,
        )

    warning = _wrong_with(render, template) if template is not None else None
    if warning:
        log.warning("The template for %s is not used: %s", rows[0].owner, warning)
    own = None if warning else template
    data = data_of(rows, pairs=pairs)
    body, files = with_block(render(own=own), data, config.data)

    def with_changes(changed: Sequence[Markup]) -> str:
        return with_block(render(changed, own), data, config.data)[0]

    key, source_url = section_key(rows, config), leaderboard_url or project_url
    return Section(rows, config, key, body, files, source_url, data, with_changes, warning)


def _wrong_with(render: Callable[..., str], template: str) -> str | None:
    """Why a template can't be used for these rows, or None."""
    try:
        body = render(own=template)
        if not body.strip():
            return "It makes an empty section."
        if len(body) > _MAX_BODY:
            return f"It makes a section of more than {_MAX_BODY:,} characters."
        cards.splice("# T\n", body, key="0" * 12)
    except Exception as error:  # whatever an operator's template does: the card must not depend on it
        return f"{type(error).__name__}: {error}"
    return None


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
