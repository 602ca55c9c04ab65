"""Badges: what they say, that nothing in them is markup, that they can be read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from golden import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import LADDER, row

from bot.publish.badge import (
    COLOURS,
    LABEL_COLOUR,
    UNKNOWN,
    Badge,
    closeness,
    find_variant,
    render_badge,
    repo_badge,
    text_width,
    variant_badge,
)
from core.dataset import DatasetRow

SVG = "{http://www.w3.org/2000/svg}"
ALL = [row(label) for label in LADDER]
WAITING = row("Q4_K_M", without="quality speed", state="waiting")
FAILED = row("Q2_K", without="quality speed", state="failed", reason="INVALID")
NO_REFERENCE = row("Q4_K_M", without="quality", reference_key=None, reason="No BF16 or F16 file.")

CASES: dict[str, Badge] = {
    "measured": repo_badge(ALL),
    "waiting": repo_badge([WAITING]),
    "no-reference": repo_badge([NO_REFERENCE]),
    "failed": repo_badge([FAILED]),
    "unknown": repo_badge([]),
    "near": variant_badge(ALL, "Q4_K_M"),
    "close": variant_badge(ALL, "Q3_K_M"),
    "far": variant_badge(ALL, "Q2_K"),
    "hostile": Badge("</text><script>alert(1)</script>", "a\"b'c&d]]>\x00\u202e\ufffe" + "x" * 90, "near"),
}


@pytest.mark.parametrize("case", CASES)
def test_badge_as_agreed(case: str) -> None:
    compare(f"badge-{case}.svg", render_badge(CASES[case]))


@pytest.mark.parametrize(
    ("rows", "message", "kind"),
    [
        (ALL, "8 quants measured", "measured"),
        ([row("F16"), row("Q8_0"), FAILED], "1 quant measured", "measured"),
        ([row("F16"), WAITING], "waiting to be measured", "waiting"),
        ([WAITING, FAILED], "waiting to be measured", "waiting"),
        ([FAILED], "could not be measured", "failed"),
        ([NO_REFERENCE], "no reference to measure against", "no reference"),
        ([row("Q8_0", quality_imported="llama-perplexity")], "imported figures only", "stale"),
        ([row("F16")], "not measured yet", "unknown"),
        ([], "not measured yet", "unknown"),
    ],
)
def test_what_a_repo_says(rows: list[DatasetRow], message: str, kind: str) -> None:
    assert repo_badge(rows) == Badge("quantcard", message, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "message", "kind"),
    [
        (row("Q4_K_M"), "KLD 0.0086", "near"),
        (row("Q4_K_M", kld_mean=0.01, same_top=0.94), "KLD 0.010", "near"),
        (row("Q4_K_M", same_top=0.939), "KLD 0.0086", "close"),
        (row("Q4_K_M", kld_mean=0.0501), "KLD 0.050", "far"),
        (row("Q4_K_M", kld_mean=-1e-9), "KLD 0", "near"),
        (row("Q4_K_M", quality_imported="llama-perplexity"), "KLD 0.0086 (imported)", "stale"),
        (row("Q4_K_M", is_reference=True), "the original", "measured"),
        (row("Q4_K_M", state="stale"), "figures are outdated", "stale"),
        (WAITING, "waiting to be measured", "waiting"),
        (NO_REFERENCE, "no reference to measure against", "no reference"),
        (row("Q4_K_M", without="quality speed", state="failed"), "could not be measured", "failed"),
    ],
)
def test_what_a_variant_says(one: DatasetRow, message: str, kind: str) -> None:
    assert variant_badge([one], "Q4_K_M") == Badge("Q4_K_M", message, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wanted", ["Q4_K_M", "q4_k_m", "sub/Model-Q4_K_M.gguf", "Model-Q4_K_M.gguf", "sub/a-00001.gguf"]
)
def test_a_variant_is_found_by_label_or_file(wanted: str) -> None:
    one = row("Q4_K_M", variant="sub/Model-Q4_K_M.gguf", first_file="sub/a-00001.gguf")
    found = find_variant([row("Q8_0"), one, row("Q5_K_M")], wanted)
    assert found is not None and found.id == one.id


def test_an_ambiguous_or_unknown_name_is_no_variant() -> None:
    two = [row("Q8_0", variant="a/M-Q8_0.gguf"), row("Q8_0", variant="b/M-Q8_0.gguf")]
    assert find_variant(two, "Q8_0") is None and variant_badge(two, "M-Q8_0.gguf") == UNKNOWN
    assert find_variant(two, "b/M-Q8_0.gguf") is not None
    assert variant_badge(ALL, "<svg>") == UNKNOWN, "what was asked for is not shown back"


def test_closeness_only_of_what_was_measured_here() -> None:
    assert closeness(row("Q8_0")) == "near"
    changes: list[dict[str, Any]] = [
        {"quality_imported": "llama-perplexity"},
        {"state": "stale"},
        {"kld_mean": None},
        {"same_top": None},
        {"is_reference": True},
    ]
    assert [closeness(row("Q8_0", **change)) for change in changes] == [None] * 5


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [*sorted(set(COLOURS.values())), LABEL_COLOUR])
def test_white_text_can_be_read_on_it(colour: str) -> None:
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=120), st.text(max_size=120))
def test_whatever_it_says_is_text(label: str, message: str) -> None:
    svg = render_badge(Badge(label, message, "near"))
    root = ET.fromstring(svg)
    assert [part.tag.removeprefix(SVG) for part in root.iter()] == [
        "svg", "title", "clipPath", "rect", "g", "rect", "rect", "g", "text", "text",
    ]  # fmt: skip
    title = root.find(f"{SVG}title")
    assert title is not None and title.text == root.get("aria-label") and len(title.text) <= 82
    assert "http" not in re.sub(r"xmlns=\"[^\"]*\"", "", svg) or "http" in label + message
    assert 20 < int(root.get("width", "0")) < 1000


def test_text_fits_its_half() -> None:
    root = ET.fromstring(render_badge(CASES["measured"]))
    texts = root.findall(f".//{SVG}text")
    halves = root.findall(f".//{SVG}g/{SVG}rect")
    for text, half in zip(texts, halves, strict=True):
        assert float(text.get("textLength", "0")) + 10 <= float(half.get("width", "0"))
    assert text_width("mmm") > text_width("iii") and text_width("漢字") > text_width("ab")
    assert text_width("e\u0301") == text_width("e")
