"""What a section says of machines, repetitions and texts; what a pull's body says of the bot; a deleted file's diff."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rows import CPU, ENDPOINT, GPU, LINKS, PROTOCOL, row

from bot.hub.diff import unified
from bot.intake.repo_config import RepoConfig, parse_config, with_known
from bot.publish.method import Machines, corpus_words, speed_cell
from bot.publish.render import render_pull_body, render_section
from bot.publish.section import Section, make_section
from core.canonical import canonical_json
from core.dataset import DatasetRow
from core.protocol import DEMO_TEXT, Corpus


def section(rows: list[DatasetRow]) -> str:
    return render_section(rows, project_url="", **LINKS)


def speed_of(environment: dict[str, Any], *, repetitions: int = 5) -> str:
    samples = {"samples_ts": [1.0] * repetitions, "samples_ns": [1] * repetitions}
    tests = [{"n_prompt": 512, "n_gen": 0, **samples}, {"n_prompt": 0, "n_gen": 128, **samples}]
    return canonical_json({"environment": environment, "tests": tests})


def line_of(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| [{label}]"))


def test_a_row_says_which_machine_measured_what() -> None:
    other = GPU | {"driver": "580.1"}
    rows = [
        row("Q8_0"),
        row("Q6_K", speed_json=speed_of(GPU)),
        row("Q5_K_M", environment=GPU),
        row("Q4_K_M", environment=other, without="speed"),
        row("Q3_K_M", without="quality", environment=CPU),
        row("Q2_K", without="quality speed", state="failed"),
    ]
    text = section(rows)
    marks = {label: line_of(text, label).split(" | ")[-1] for label in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")}
    assert marks["Q8_0"].startswith("machine A") and marks["Q3_K_M"].startswith("machine A")
    assert marks["Q6_K"].startswith("quality on machine A, speed on B")
    assert marks["Q5_K_M"].startswith("machine B") and marks["Q4_K_M"].startswith("machine C")
    assert "machine" not in line_of(text, "Q2_K")
    assert "- Machine A: AMD EPYC 7B13, 8 CPU threads; " in text
    assert "- Machine B: NVIDIA L4, driver 570.86, 8" in text and "- Machine C: NVIDIA L4, driver 580.1, 8" in text
    assert "compare them only where the machine is the same (see below)." in text


def test_machines_that_read_alike_are_said_to_differ() -> None:
    rows = [row("Q8_0"), row("Q4_K_M", environment=CPU | {"repack": False})]
    assert section(rows).count("in another environment.") == 2


def test_one_machine_has_no_letter_and_an_imported_speed_none_at_all() -> None:
    rows = [row("Q8_0"), row("Q4_K_M", environment=GPU, quality_imported="x", speed_imported="llama-bench")]
    assert Machines(rows).mark(rows[0]) is None and len(Machines(rows).known) == 1
    assert "only with each other, and with no imported one." in section(rows)
    assert "machine named below" not in section([row("Q8_0", speed_imported="llama-bench")])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "mean ± standard deviation of the repetitions"),
        ({"speed_json": speed_of(CPU, repetitions=1)}, "one repetition each"),
        ({"speed_json": speed_of(CPU, repetitions=2)}, "mean ± standard deviation of the repetitions"),
        (
            {"protocol_json": canonical_json(PROTOCOL.model_copy(update={"repetitions": 1}).model_dump())},
            "one repetition",
        ),
        ({"pp_ts_stddev": None, "tg_ts_stddev": None}, "mean of the repetitions"),
    ],
)
def test_one_repetition_has_no_spread(changes: dict[str, Any], said: str) -> None:
    one = row("Q8_0", **changes)
    for prompt in (True, False):
        assert ("±" in (speed_cell(one, prompt=prompt) or "")) is ("±" in said)
    assert f"Speeds: {said}" in section([one])


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        (PROTOCOL.corpus, "`wikitext-2-raw-v1.zip` of the dataset [ggml-org/ci](https://huggingface.co/datasets/ggml-"),
        (DEMO_TEXT, "`heldout.txt`, which comes with quantcard"),
        (Corpus(name="mine | <b>", sha256="ab" * 32), "a text that whoever runs this bot chose: `mine ¦ <b>`"),
    ],
)
def test_the_text_of_the_commands_can_be_had(corpus: Corpus, said: str) -> None:
    one = row("Q8_0", protocol_json=canonical_json(PROTOCOL.model_copy(update={"corpus": corpus}).model_dump()))
    words = corpus_words(one, ENDPOINT)
    assert said in words and corpus.sha256 in words
    for text in (section([one]), render_pull_body([one], key="k", **LINKS)):
        assert f"`CORPUS.txt` is {words}" in text


def test_files_are_named_by_their_sha256() -> None:
    rows = [row("Q8_0"), row("Q4_K_M", n_files=2)]
    text = section(rows)
    assert all(f"{one.label} {one.variant_key[:12]}" in text for one in rows) and "of its parts' sha256s" in text


def test_the_mark_of_the_unbeaten_is_left_out_where_it_tells_nothing() -> None:
    for rows in ([row("Q8_0"), row("Q4_K_M")], [row("Q8_0")]):
        assert "◆" not in section(rows).split("<details>")[0]
    beaten = section([row("Q8_0"), row("Q4_K_M", kld_mean=0.5), row("Q3_K_M")])
    assert beaten.split("<details>")[0].count("◆") == 3 and "◆" not in line_of(beaten, "Q4_K_M")


def test_a_dispute_is_told_to_its_500th_character() -> None:
    words = "No. " + "x" * 491 + " end."
    text = section([row("Q8_0", disputed=words)])
    assert len(words) == 500 and f"> **Disputed by this repo's owner:** “{words}”\n" in text
    assert "The figures are measured again" not in text
    assert f"{words[:-1]}…”\n" in section([row("Q8_0", disputed=f"{words} And more.")])


def test_a_pull_says_who_runs_the_bot() -> None:
    assert "written by a bot, quantcard. It" in render_pull_body([row("Q8_0")], key="k", **LINKS)
    names = {"operator": "[me](x) @you <b>", "project_url": "https://p.example"}
    told = render_pull_body([row("Q8_0")], key="k", **names, **LINKS)
    assert r"a bot, [quantcard](https://p.example), run by \[me\](x) &#64;you &lt;b&gt;. It" in told


# what an owner wishes


def made(config: RepoConfig) -> Section:
    return make_section([row("Q8_0")], config, endpoint=ENDPOINT, project_url="", leaderboard_url="")


CARD = "---\nlicense: mit\n---\n# T\n\ntext\n\n## Files\n\nx\n\n## Use\n\ny\n"


@pytest.mark.parametrize("metadata", [False, True])
def test_a_card_says_it_only_where_it_is_wanted(metadata: bool) -> None:
    wishes = [
        RepoConfig(metadata=metadata),
        RepoConfig(position="top", metadata=metadata),
        RepoConfig(position="after", after="Files", metadata=metadata),
    ]
    placed = {config: made(config).on(CARD).card for config in wishes}
    for config in wishes:
        said = [other for other, card in placed.items() if made(config).says(card, main=CARD)]
        assert said == [config]
        # Where main has the section, it stays where it is.
        assert all(made(config).says(card, main=card) for card in placed.values())


KNOWN = ("wiki512", "wiki2048", "demo", "my-own")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("protocols: [wiki512]", None),
        ("protocols: [my-own, demo]", None),
        ("", None),
        ("enabled: false\nprotocols: [wiki-512]", None),
        (
            "protocols: [wiki-512]",
            "'protocols' has no 'wiki-512' (did you mean 'wiki512'?); there are wiki512, wiki20",
        ),
        ("protocols: [wiki512, zzz]", "'protocols' has no 'zzz'; there are wiki512, wiki2048, demo, my-own."),
    ],
)
def test_protocols_that_there_are_not_are_a_problem(text: str, says: str | None) -> None:
    config = parse_config(text.encode())
    found = with_known(config, KNOWN)
    if says is None:
        assert found == config
        return
    assert not found.enabled and found.problem and says in found.problem and len(found.problem) <= 900
    assert found.digest and found.digest == with_known(config, [*KNOWN, "another"]).digest
    assert RepoConfig.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_file_that_is_deleted_has_a_diff_that_git_reads() -> None:
    assert "".join(unified("a\nb\n", None, path="x")) == "--- a/x\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n"
