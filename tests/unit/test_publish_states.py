"""How a variant stands, and why; what cards and pages say where there is no reference, or only a quantized one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rows import ENDPOINT, LINKS, row

from bot.intake.references import Choice
from bot.publish.render import render_pull_body, render_section
from bot.publish.states import state_of
from bot.store.jobs import Job
from bot.store.repos import Variant
from core.audit import inspect
from core.gguf_files import RepoFile
from core.gguf_header import GGUFHeader
from space import details, tables
from space.data import Entry

INSPECTION = inspect([GGUFHeader(3, {}, (), 0)], size_bytes=1, name="M.gguf")


def variant(note: str | None = None, inspected: bool = True) -> Variant:
    return Variant(
        1,
        "o/r",
        "M.gguf",
        "k",
        "M",
        (RepoFile("M.gguf", 1, "k"),),
        1,
        "c",
        INSPECTION if inspected else None,
        note,
        "current",
    )


def job(kind: str, state: str, error: str = "It died.") -> Job:
    fields = dict.fromkeys(Job.__dataclass_fields__, None) | {"kind": kind, "state": state, "error": error}
    return Job(**fields)


REFERENCE = Choice(variant(), "F16", "own")
REFUSED = Choice(variant(), "F16", "own", refused="Other tokens.")
NONE = Choice(None, "No reference.")


@pytest.mark.parametrize(
    ("given", "choice", "quality", "speed", "jobs", "expected"),
    [
        (variant("1 of 2 shards are there."), REFERENCE, False, False, [], ("failed", "1 of 2 shards are there.")),
        (variant("It is damaged.", inspected=False), REFERENCE, False, False, [], ("failed", "It is damaged.")),
        (variant(inspected=False), REFERENCE, False, False, [], ("waiting", "Its header was not read yet.")),
        (variant(), NONE, False, False, [], ("no-reference", "No reference.")),
        (variant(), NONE, False, True, [], ("no-reference", "No reference.")),
        (variant(), NONE, False, False, [job("speed", "dead")], ("no-reference", "No reference. No speed: It died.")),
        (variant(), REFUSED, False, True, [], ("failed", "Other tokens.")),
        (variant(), REFERENCE, False, False, [], ("waiting", None)),
        (variant(), REFERENCE, False, True, [], ("waiting", None)),
        (variant(), REFERENCE, False, False, [job("quality", "queued")], ("waiting", None)),
        (variant(), REFERENCE, False, True, [job("quality", "dead")], ("failed", "It died.")),
        (variant(), REFERENCE, True, False, [], ("measured", None)),
        (variant(), REFERENCE, True, False, [job("speed", "dead")], ("measured", "No speed: It died.")),
        (variant(), REFERENCE, True, True, [job("speed", "dead")], ("measured", None)),
    ],
)
def test_states(
    given: Variant, choice: Choice, quality: bool, speed: bool, jobs: list[Job], expected: tuple[str, str | None]
) -> None:
    by_kind = {one.kind: one for one in jobs}
    assert state_of(given, choice, has_quality=quality, has_speed=speed, jobs=by_kind) == expected


def test_an_imported_quality_says_why_it_was_not_measured_here() -> None:
    for state, reason in (("dead", "Not measured here: It died."), ("todo", None)):
        jobs = {"quality": job("quality", state)}
        found = state_of(variant(), REFERENCE, has_quality=True, has_speed=True, jobs=jobs, imported=True)
        assert found == ("measured", reason)


def test_a_card_says_that_its_reference_is_itself_quantized() -> None:
    rows = [
        row("Q8_0", is_reference=True, kld_mean=0.0, reference_kind="q8_0", reference_variant="Model-Q8_0.gguf"),
        row("Q4_K_M", reference_kind="q8_0", reference_variant="Model-Q8_0.gguf"),
    ]
    section = render_section(rows, project_url="", **LINKS)
    said = "`Model-Q8_0.gguf` (itself quantized, so figures flatter)"
    assert f"The original here is {said}" in section and f"The original: {said}" in section
    assert said in render_pull_body(rows, key="k", **LINKS)
    proven = [row("Q4_K_M", reference_kind="proven", reference_repo="x/y", base_model="org/base")]
    assert "Its sampled weights are those of `org/base`." in render_section(proven, project_url="", **LINKS)


def test_a_card_says_why_there_is_no_reference() -> None:
    none = {"reference_repo": None, "reference_variant": None, "reference_key": None, "reference_kind": "none"}
    alone = row("Q4_K_M", without="quality", state="no-reference", reason="Its card names no base\\_model.", **none)
    section = render_section([alone], project_url="", **LINKS)
    assert "Quality could not be measured here, only speed. Its card names no base" in section
    beside = render_section([row("Q8_0"), alone], project_url="", **LINKS)
    assert "no reference. Its card names no base" in beside


def test_the_page_shows_by_what_right_a_file_is_the_reference() -> None:
    flattered = Entry(
        row("Q4_K_M", reference_kind="q8_0", reference_reason="Q8_0 of the same repo."), False, None, "owner", False
    )
    assert "vs Q8" in tables.notes(flattered)
    page = details.measurement(flattered, hub_url=ENDPOINT, now=datetime.now(UTC))
    assert "By what right" in page and "of the same repo." in page
    none = {"reference_repo": None, "reference_key": None, "reference_kind": "none", "reason": "Nothing to trust."}
    alone = Entry(row("Q4_K_M", without="quality", state="no-reference", **none), False, None, "owner", False)
    assert "no reference" in tables.notes(alone)
    assert "No reference. Nothing to trust." in details.measurement(alone, hub_url=ENDPOINT, now=datetime.now(UTC))
