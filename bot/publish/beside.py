"""A section whole, with the files that lie beside the card: the figures' and the plots', as the repo lets them be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bot.hub.door import FileTooLargeError, HubDoor
from bot.intake.card_meta import CARD_LIMIT
from bot.intake.repo_config import RepoConfig
from bot.intake.view import view
from bot.publish import card as cards
from bot.publish.data_beside import anothers_file
from bot.publish.data_block import FILE, DataBlock
from bot.publish.drawing import draw
from bot.publish.look import links_of, made_section
from bot.publish.plot_files import PLOT_FILES, is_our_plot
from bot.publish.plots import pictures
from bot.publish.rows import current_rows
from bot.publish.section import Section
from bot.settings import Settings
from bot.store import Store
from bot.store.repos import Repo
from core.dataset import DatasetRow


def whole_section(
    store: Store, hub: HubDoor, settings: Settings, repo: Repo, rows: Sequence[DatasetRow], config: RepoConfig
) -> Section:
    """The section of a repo's rows with its files; where a file of its owner's has one's name, without that one."""
    if config.data == "file" and anothers_file(hub, repo.id):
        config = replace(config, data="comment")
    others = _of_other_uploaders(store, settings, repo) if config.plots == "others" else []
    drawn = {
        found.plot: draw(found) for found in pictures(rows, config, others=others) if _is_free(hub, repo.id, found.path)
    }
    made = made_section(rows, config, replace(links_of(settings), endpoint=hub.endpoint), plots=tuple(drawn))
    # An owner's own template may leave plots out.
    shown = {plot.path: data for plot, data in drawn.items() if plot.path in made.body}
    return replace(made, files={**made.files, **shown})


def left_behind(
    hub: HubDoor, repo_id: str, card: str, section: Section, *, figures: DataBlock | None, revision: str
) -> tuple[str, ...]:
    """The files of ours beside a card of ours that the next section has not, so that they go with its commit.

    Args:
        figures: what the figures' file tells there (:func:`bot.publish.data_beside.figures_beside`).
    """
    gone = [FILE] if figures and FILE not in section.files else []
    told = _section_of(card)
    # A plot that the section does not show may be left from one that its owner took off: it is theirs by now.
    gone += [
        path
        for path in PLOT_FILES
        if path not in section.files and path in told and _plot_there(hub, repo_id, path, revision=revision)
    ]
    return tuple(gone)


def _section_of(card: str) -> str:
    try:
        found = cards.find(card)
    except cards.CardError:
        return ""
    return card[found.start : found.end] if found else ""


def _is_free(hub: HubDoor, repo_id: str, path: str) -> bool:
    """Whether a plot may lie there: there is no file, or one of ours."""
    return _plot_there(hub, repo_id, path, revision="main") is not False


def _plot_there(hub: HubDoor, repo_id: str, path: str, *, revision: str) -> bool | None:
    """Whether the file there is a plot of ours; None where there is no file."""
    try:
        data = hub.read(repo_id, path, revision=revision, limit=CARD_LIMIT)
    except FileTooLargeError:
        return False
    return None if data is None else is_our_plot(data)


def _of_other_uploaders(store: Store, settings: Settings, repo: Repo) -> list[DatasetRow]:
    """The current rows of everybody's public repos of the same base model."""
    if repo.base_model is None:
        return []
    seen, protocol = view(store, trusted=settings.trusted_owners), settings.protocol_in_force()
    found: list[DatasetRow] = []
    for other in store.repos.ids_of_base(repo.base_model):
        known = store.repos.repo(other)
        if known and known.owner != repo.owner and known.state in ("live", "gated") and known.stopped is None:
            found += current_rows(store, seen, protocol, repo_id=other)
    return found
