"""Sections in every situation that matters, as agreed (UPDATE_GOLDEN=1 rewrites the files; look at them)."""

from __future__ import annotations

import pytest
from golden import compare
from situations import situations
from test_publish_render import check_form

from bot.intake.repo_config import RepoConfig
from bot.publish import card
from bot.publish.plot_files import SIZE_PLOT, SPEED_PLOT, Plot
from bot.publish.section import Section, make_section
from core.dataset import DatasetRow

PLOTS = (Plot(SIZE_PLOT, "File size against 99.9 % KLD."), Plot(SPEED_PLOT, "Speed against mean KLD."))
WIDEST = 64 << 10


def made(rows: list[DatasetRow], config: RepoConfig | None = None, **more: object) -> Section:
    return make_section(
        rows,
        config or RepoConfig(),
        endpoint="https://huggingface.co",
        project_url="https://github.com/example/quantcard",
        leaderboard_url="https://huggingface.co/spaces/quantcard/leaderboard",
        dataset="quantcard/results",
        plots=PLOTS if len(rows) > 3 else (),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", situations())
def test_as_agreed(name: str) -> None:
    section = made(situations()[name], RepoConfig(data="none"))
    compare(f"situation-{name}.md", section.on("# Nova 8B\n").card)


@pytest.mark.parametrize("name", situations())
def test_form(name: str) -> None:
    body = made(situations()[name], RepoConfig(data="none")).body
    check_form(body)
    assert card.remove(card.splice("# T\n\ntext", body, key="abc")) == "# T\n\ntext"


def test_forty_variants_leave_room_on_a_card() -> None:
    section = made(situations()["forty-variants"])
    assert len(situations()["forty-variants"]) == 41
    assert len(section.body.encode()) < WIDEST
    assert section.data.left_out is None


def test_order_of_rows_does_not_matter() -> None:
    for rows in situations().values():
        assert made(rows[::-1]).body == made(rows).body
