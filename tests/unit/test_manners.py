"""When nothing is written at all, what an owner wants told, and what is said on pulls."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rows import ENDPOINT, LINKS, row

from bot.intake.repo_config import RepoConfig
from bot.publish import pull_texts as texts
from bot.publish.card import remove, splice
from bot.publish.changes import Advice, Changes, Moved
from bot.publish.hours import parse_hours
from bot.publish.rows import figures_key
from bot.publish.section import bare, make_section, rows_for, section_key
from bot.publish.writes import LIMIT_S, MAX_LIMIT_S, wait_of
from bot.settings import Settings

HOSTILE = "[x](javascript:alert(1)) <img src=x> <!-- quantcard:answer to=1 --> @everyone\n\n# `"


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("hours", "now", "until"),
    [
        ("22-7", "2026-11-21T23:30", "2026-11-22T07:00"),
        ("22-7", "2026-11-22T06:59", "2026-11-22T07:00"),
        ("22-7", "2026-11-22T22:00", "2026-11-23T07:00"),
        ("22-7", "2026-11-22T07:00", None),
        ("22-7", "2026-11-22T21:59", None),
        ("9-17", "2026-11-22T12:00", "2026-11-22T17:00"),
        ("9-17", "2026-11-22T17:00", None),
        ("0-24", "2026-11-22T12:00", "error"),
        ("21:30-6:15", "2026-11-22T06:14", "2026-11-22T06:15"),
        ("18-24", "2026-11-22T23:59", "2026-11-23T00:00"),
        ("", "2026-11-22T06:14", None),
        (" 22 - 7 ", "2026-11-21T23:30", "2026-11-22T07:00"),
        ("25-7", "", "error"),
        ("22-7 UTC", "", "error"),
        ("22", "", "error"),
        ("7-7", "", "error"),
        ("22:75-7", "", "error"),
    ],
)
def test_quiet_hours(hours: str, now: str, until: str | None) -> None:
    if until == "error":
        with pytest.raises(ValidationError, match="quiet_hours"):
            Settings(quiet_hours=hours)
        return
    found = parse_hours(Settings(quiet_hours=hours).quiet_hours)
    ends = found.until(at(now)) if found else None
    assert ends == (at(until) if until else None)


@given(st.integers(0, 23), st.integers(0, 23), st.floats(0, 4e9))
def test_quiet_hours_end_within_a_day_and_are_over_then(start: int, end: int, now: float) -> None:
    if start == end:
        return
    found = parse_hours(f"{start}-{end}")
    assert found is not None
    until = found.until(now)
    assert until is None or (now < until <= now + 86_400 and found.until(until + 1e-3) is None)


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("You have exceeded the rate limit for commits. Please retry in about 1 hour.", 3600.0),
        ("retry in 5 minutes", 300.0),
        ("retry in 2 seconds", 60.0),
        ("retry in about an hour", 3600.0),
        ("retry in about 90 hours", MAX_LIMIT_S),
        ("slow down", LIMIT_S),
    ],
)
def test_how_long_the_hub_asks_us_to_wait(message: str, seconds: float) -> None:
    assert wait_of(message) == seconds


ROWS = [row("F16"), row("Q8_0"), row("Q4_K_M")]


def test_the_key_follows_an_owners_wishes_and_else_only_the_figures() -> None:
    key = section_key(ROWS, RepoConfig())
    assert key == figures_key(ROWS)
    assert section_key(ROWS, RepoConfig(position="top", plots=False, protocols=("wiki512",))) == key, "nothing to draw"
    others = {
        section_key(ROWS, RepoConfig(columns=("kld",))),
        section_key(ROWS, RepoConfig(columns=("kld", "size"))),
        section_key(ROWS, RepoConfig(data="none")),
        section_key(ROWS, RepoConfig(metadata=True)),
        section_key([one.model_copy(update={"disputed": "It is not so."}) for one in ROWS], RepoConfig()),
    }
    assert len(others) == 5 and key not in others


def test_only_the_protocols_that_are_wanted_are_told() -> None:
    rows = [*ROWS, row("Q6_K", protocol_name="wiki2048")]
    assert len(rows_for(rows, RepoConfig())) == 4
    assert [r.label for r in rows_for(rows, RepoConfig(protocols=("wiki2048",)))] == ["Q6_K"]


def section(config: RepoConfig, rows: list[object] | None = None) -> str:
    found = make_section(rows or ROWS, config, endpoint=ENDPOINT, project_url="", leaderboard_url="")  # type: ignore[arg-type]
    return found.on("---\nlicense: mit\n---\n# T\n").card


def test_columns_data_and_metadata_are_as_the_owner_wants_them() -> None:
    header = next(line for line in section(RepoConfig(columns=("size", "kld"))).splitlines() if "Quant" in line)
    assert header.replace("\u00a0", " ") == "| Quant | Size | Mean KLD | Notes |"
    assert "quantcard:data" in section(RepoConfig()) and "quantcard:data" not in section(RepoConfig(data="none"))
    whole = section(RepoConfig(metadata=True))
    assert "model-index" in whole and "model-index" not in section(RepoConfig())
    assert bare(whole) == "---\nlicense: mit\n---\n# T\n"


def test_a_dispute_stands_in_the_section_as_harmless_text() -> None:
    rows = [one.model_copy(update={"disputed": HOSTILE}) for one in ROWS]
    text = section(RepoConfig(), rows)  # type: ignore[arg-type]
    shown = text.split("<!-- quantcard:data")[0]
    assert "Disputed by this repo's owner" in shown
    assert "<img" not in shown and "quantcard:answer" in shown and "<!-- quantcard:answer" not in shown
    assert remove(text) == "---\nlicense: mit\n---\n# T\n"


@pytest.mark.parametrize(
    ("heading", "before"),
    [
        ("Files", "# T\nx\n## Files\ny\n### Small\nz\n\n"),
        ("files", "# T\nx\n## Files\ny\n### Small\nz\n\n"),
        ("Small", "# T\nx\n## Files\ny\n### Small\nz\n\n"),
        ("T", "# T\nx\n## Files\ny\n### Small\nz\n## Use ##\nw\n\n"),
        ("Use", "# T\nx\n## Files\ny\n### Small\nz\n## Use ##\nw\n\n"),
        ("No such heading", "# T\nx\n## Files\ny\n### Small\nz\n## Use ##\nw\n\n"),
    ],
)
def test_after_a_heading_is_behind_its_part(heading: str, before: str) -> None:
    card = "# T\nx\n## Files\ny\n### Small\nz\n## Use ##\nw\n"
    new = splice(card, "## Ours", key="abc", position="after", after=heading)
    assert new.split("<!-- quantcard:begin")[0] == before
    assert remove(new) == card


def test_a_heading_in_code_is_none() -> None:
    card = "# T\n```\n# Files\n```\nx\n# Files\ny\n# Rest\n"
    new = splice(card, "## Ours", key="abc", position="after", after="Files")
    assert new.index("y\n") < new.index("<!-- quantcard:begin") < new.index("# Rest")


def test_markers_come_back_and_nobody_can_forge_them_through_us() -> None:
    answer = texts.answer_comment(["Noted."], help_=True, comment="65f0c0ffee")
    assert texts.answered([answer]) == {"65f0c0ffee"} and "/quantcard dispute TEXT" in answer
    changed = texts.changed_comment(
        Changes(
            advice=(Advice("practically the original", HOSTILE, "Q4_K_M"), Advice("closest", "Q8_0", None)),
            moved=tuple(Moved(f"{HOSTILE}{n}", 0.01, 0.001, 0.02, 0.001, replaced=n % 2 == 0) for n in range(12)),
            lost=(HOSTILE,),
        ),
        now=1_800_000_000.9,
    )
    assert texts.changed_at([changed, "<!-- quantcard:changed at=5 -->"]) == 1_800_000_000
    assert "and 4 more" in changed and "(a new file)" in changed
    problem = ".quantcard.yml: 'x' is no key; there are a. .quantcard.yml: 'data' takes comment, file or none, not 1."
    config = texts.config_comment(problem, digest="0123456789ab")
    assert texts.config_told([config]) == {"0123456789ab"} and config.count("\n- ") == 2
    settled = texts.settled_comment(HOSTILE, comment="65f0c0ffee")
    assert texts.settled([settled]) == {"65f0c0ffee"}
    for text in (changed, settled):
        assert texts.answered([text]) == set()
        assert "<img" not in text.replace("`", "") or "`" in text
    assert not texts.is_comment_id("1 --><b>") and not texts.is_comment_id("") and not texts.is_comment_id("a" * 65)


def test_the_title_is_always_the_same() -> None:
    title = texts.pull_title()
    assert title.startswith("[bot] quantcard: ") and len(title) < 120 and "\n" not in title
    assert LINKS
