"""How a section is made for a repo wherever it is shown, pull, dataset, service or command: the same rows, bytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bot.intake.repo_config import RepoConfig
from bot.publish.own_template import own_template
from bot.publish.plot_files import Plot
from bot.publish.section import Section, make_section
from bot.publish.token_pairs import token_pairs
from bot.settings import Settings
from core.dataset import DatasetRow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses that sections link to (all but the Hub's may be empty), and what lies on this machine for them.

    Args:
        templates: the operator's templates for single owners.
        tokens: the sidecars of measurements.
    """

    endpoint: str
    project_url: str = ""
    leaderboard_url: str = ""
    dataset: str = ""
    templates: Path | None = None
    tokens: Path | None = None


def links_of(settings: Settings) -> Links:
    """What the settings say of it."""
    return Links(
        settings.hf_endpoint.rstrip("/"),
        settings.project_url,
        settings.leaderboard_url,
        settings.dataset,
        settings.templates_dir,
        settings.data / "tokens",
    )


def made_section(
    rows: Sequence[DatasetRow], config: RepoConfig, links: Links, *, plots: Sequence[Plot] = ()
) -> Section:
    """The section of a repo's rows (one at least); a broken template of its owner's gives ours, with a warning."""
    own = own_template(links.templates, rows[0].owner)
    made = make_section(
        rows,
        config,
        endpoint=links.endpoint,
        project_url=links.project_url,
        leaderboard_url=links.leaderboard_url,
        dataset=links.dataset,
        plots=plots,
        pairs=token_pairs(links.tokens, rows),
        template=own.text if own else None,
    )
    if own is None or own.problem is None:
        return made
    log.warning("The template for %s is not used: %s", rows[0].owner, own.problem)
    return replace(made, warning=own.problem)
