"""What people read: golden files of whole texts (UPDATE_GOLDEN=1 rewrites them) and properties of hostile rows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import CPU, ENDPOINT, GPU, LADDER, LINKS, flag, row, sha

from bot.publish import card
from bot.publish.pull_texts import PULL
from bot.publish.render import distinct_labels, rank, render_dataset_card, render_pull_body, render_section
from core.dataset import DatasetRow

GOLDEN = Path(__file__).parents[1] / "golden"
NO_REFERENCE = "No BF16 or F16 file in this repo, and its card names no base_model."
ELSEWHERE = CPU | {"llama_cpp": "unknown", "cpu": "unknown", "system_info": "unknown"}
UNREFERENCED = {"reference_repo": None, "reference_variant": None, "reference_key": None}
HOSTILE = "[x](javascript:alert(1))|`<img src=x onerror=alert(1)>`|@everyone <!-- quantcard:end -->\u202e*" + "a" * 400

CASES: dict[str, list[DatasetRow]] = {
    "one-variant": [row("Q4_K_M")],
    "one-variant-far": [row("Q2_K", flags=flag("It has tensors in Q2_K, Q3_K and no imatrix keys in its header."))],
    "eight-variants": [row(label) for label in LADDER],
    "gpu": [row(label, environment=GPU, peak_vram_bytes=5_100_000_000) for label in ("F16", "Q8_0", "Q4_K_M")],
    "failed": [
        row("Q8_0"),
        row("Q4_K_M", without="quality speed", state="failed", reason="INVALID: the logits of chunk 3 hold NaN."),
        row("Q2_K", without="quality speed", state="waiting"),
    ],
    "stale": [
        row("Q8_0"),
        row("Q4_K_M", state="stale", reason="It was replaced by a newer file of the same name."),
    ],
    "no-reference": [
        row(label, without="quality", reason=NO_REFERENCE, **UNREFERENCED) for label in ("Q8_0", "Q4_K_M", "Q2_K")
    ],
    "no-speed": [
        row("Q8_0", without="speed"),
        row("Q4_K_M", without="speed", reason="No speed: The measuring process died (SIGILL)."),
    ],
    "nothing-yet": [row(label, without="quality speed", state="waiting") for label in ("Q8_0", "Q4_K_M")],
    "only-reference": [row("F16")],
    "split": [
        row("Q8_0", n_files=3, first_file="Q8_0/Model-Q8_0-00001-of-00003.gguf", variant="Q8_0/Model-Q8_0.gguf"),
        row("Q4_K_M"),
    ],
    "hostile": [
        row("Q8_0"),
        row("Q4_K_M", label=HOSTILE, variant=f"{HOSTILE}.gguf", flags=flag(HOSTILE), command=f"quantcard {HOSTILE}"),
        row("Q2_K", without="quality speed", state="failed", reason=HOSTILE),
        row("Q3_K_M", reference_variant=HOSTILE),
    ],
    "ties": [
        row("Q8_0", kld_mean=0.0040, kld_stderr=0.0004, same_top=0.951),
        row("Q6_K", kld_mean=0.0042, kld_stderr=0.0004, same_top=0.950),
        row("Q5_K_M", kld_mean=0.0101, kld_stderr=0.0005, same_top=0.945),
        row("Q4_K_M", kld_mean=0.0098, kld_stderr=0.0005, same_top=0.944, size_bytes=3_100_000),
    ],
    "beaten": [
        row("Q8_0"),
        row("Q5_K_M", size_bytes=2_600_000, kld_mean=0.0099, same_top=0.946),
        row("Q4_K_M"),
    ],
    "all-far-and-tied": [
        row("Q3_K_M", kld_mean=0.091, kld_stderr=0.004, same_top=0.84),
        row("Q2_K", kld_mean=0.094, kld_stderr=0.004, same_top=0.83),
    ],
    "two-models": [
        row("Q8_0"),
        row("Q4_K_M"),
        row(
            "Q8_0",
            variant="Other-Q8_0.gguf",
            variant_key=sha("other"),
            reference_key=sha("file", "other F16"),
            reference_variant="Other-F16.gguf",
        ),
    ],
    "two-machines": [row("Q8_0"), row("Q6_K"), row("Q4_K_M", environment=GPU)],
    "disputed": [row("Q8_0", disputed=f"{HOSTILE[:90]} {'My figures differ. ' * 30}The end.")],
    "imported": [
        row("F16"),
        row("Q8_0"),
        row("Q6_K", speed_imported="llama-bench", peak_memory_bytes=None),
        row("Q4_K_M", quality_imported="llama-perplexity", command=None),
        row(
            "Q2_K",
            without="speed",
            environment=ELSEWHERE,
            quality_imported="llama-perplexity",
            reason="Not measured here: The measuring process died (out of memory).",
            command=None,
        ),
    ],
    "only-imported": [
        row(label, without="speed", environment=ELSEWHERE, quality_imported="llama-perplexity", command=None)
        for label in ("Q8_0", "Q4_K_M")
    ],
}


def section(rows: list[DatasetRow]) -> str:
    return render_section(
        rows,
        endpoint=ENDPOINT,
        project_url="https://github.com/example/quantcard",
        leaderboard_url=LINKS["leaderboard_url"],
    )


def pull_body(rows: list[DatasetRow]) -> str:
    return render_pull_body(rows, key="3f1c9a7be210", **LINKS)


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; look, then UPDATE_GOLDEN=1"


@pytest.mark.parametrize("case", CASES)
def test_section_as_agreed(case: str) -> None:
    compare(f"section-{case}.md", section(CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_pull_body_as_agreed(case: str) -> None:
    compare(f"pull-{case}.md", pull_body(CASES[case]))


def test_dataset_card_as_agreed() -> None:
    compare("dataset-card.md", render_dataset_card(1_234))


def cells(line: str) -> int:
    """Cells of a table row as GFM counts them: an escaped pipe is text."""
    return len(re.split(r"(?<!\\)\|", line.strip().strip("|")))


def check_form(text: str) -> None:
    """Tables are whole, nothing is a marker but ours, no blank line is doubled, no HTML but our details."""
    blocks = [block for block in text.split("\n\n") if block.lstrip().startswith("|")]
    for block in blocks:
        lines = block.strip().split("\n")
        assert len(lines) > 2, block
        assert len({cells(line) for line in lines}) == 1, block
        assert re.fullmatch(r"\|(-+:?\|)+", lines[1])
    assert not re.search(r"\n[ \t]*\n[ \t]*\n", text)
    assert set(re.findall(r"(?<!\\)<[^>]*>", re.sub(r"`[^`]*`", "", text))) <= {
        "<details>", "<summary>", "</summary>", "</details>", "<!-- quantcard:pull key=3f1c9a7be210 -->",
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_form(case: str) -> None:
    for text in (section(CASES[case]), pull_body(CASES[case])):
        check_form(text)


@pytest.mark.parametrize("case", CASES)
def test_section_stands_in_a_card(case: str) -> None:
    body = section(CASES[case])
    new = card.splice("# Title\n", body, key="abc123")
    assert body.strip() in new
    assert card.remove(new) == "# Title\n"


@pytest.mark.parametrize("case", CASES)
def test_pull_is_found_again_by_its_body(case: str) -> None:
    found = PULL.findall(pull_body(CASES[case]))
    assert found == ["3f1c9a7be210"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=5, max_size=5))
def test_hostile_strings_keep_the_form(texts: list[str]) -> None:
    label, name, reason, detail, reference = texts
    rows = [
        row("Q8_0"),
        row("Q4_K_M", label=label, variant=name + ".gguf", flags=flag(detail), reason=reason or None),
        row("Q2_K", without="quality speed", state="failed", reason=reason, reference_variant=reference),
    ]
    for text in (section(rows), pull_body(rows)):
        tables = [block for block in text.split("\n\n") if block.lstrip().startswith("|")]
        assert all(len({cells(line) for line in block.strip().split("\n")}) == 1 for block in tables)
        assert "<!-- quantcard:end" not in text
    assert card.remove(card.splice("# T\n", section(rows), key="abc")) == "# T\n"


def test_same_labels_are_told_apart() -> None:
    rows = [
        row("Q8_0", variant="a/Model-Q8_0.gguf"),
        row("Q8_0", variant="b/Model-Q8_0.gguf"),
        row("Q8_0", variant="Model-imat-Q8_0.gguf"),
        row("Q6_K"),
    ]
    assert [r.label for r in distinct_labels(rows)] == [
        "a/Model-Q8_0.gguf", "b/Model-Q8_0.gguf", "Model-imat-Q8_0", "Q6_K",
    ]  # fmt: skip


def test_links_lead_to_the_first_shard() -> None:
    text = section(CASES["split"])
    assert f"[Q8_0]({ENDPOINT}/owner/Model-GGUF/blob/main/Q8_0/Model-Q8_0-00001-of-00003.gguf)" in text
    assert "3 files" in text


def test_nothing_of_another_model_is_ranked() -> None:
    ranking = rank(distinct_labels(CASES["two-models"]))
    assert [r.variant for r, _ in ranking.ranked] == ["Model-Q8_0.gguf", "Model-Q4_K_M.gguf"]
    assert list(ranking.apart.values()) == ["measured against `Other-F16.gguf`, so not ranked here"]


@pytest.mark.parametrize(
    ("floor", "ranked"),
    [(0.00008, True), (-0.00008, True), (0.00009, False), (None, False)],
)
def test_another_machine_is_ranked_only_after_a_good_control_run(floor: float | None, ranked: bool) -> None:
    rows = [row("Q6_K", kld_mean=0.00085), row("Q5_K_M"), row("Q4_K_M", environment=GPU)]
    if floor is not None:
        rows.append(row("F16", kld_mean=floor, environment=GPU))
    assert any(r.label == "Q4_K_M" for r, _ in rank(rows).ranked) is ranked


def test_what_is_imported_is_shown_and_never_recommended() -> None:
    best = row("Q4_K_M", kld_mean=1e-6, quality_imported="llama-perplexity", kld_stderr=0.0)
    rows = [row("Q8_0"), row("Q6_K"), best]
    assert [r.label for r, _ in rank(rows).ranked] == ["Q8_0", "Q6_K"]
    text = section(rows)
    advice, rest = text.split("| Quant |")
    assert "Q4_K_M" not in advice and "Q4_K_M" in rest and "quality imported (llama-perplexity)" in rest
    own = row("F16", kld_mean=1e-9, quality_imported="llama-perplexity", environment=GPU)
    assert [r.label for r, _ in rank([*rows, own, row("Q2_K", environment=GPU)]).ranked] == ["Q8_0", "Q6_K"]


def test_a_column_without_figures_is_left_out() -> None:
    assert "t/s" not in section(CASES["no-speed"]) and "Memory" not in section(CASES["no-speed"])
    assert "KLD" not in section(CASES["no-reference"]).split("<details>")[0]
    assert CPU["cpu"] in section(CASES["no-reference"])
