"""model-index entries in the front matter: what the Hub reads back, and not a byte or a meaning changed beside them."""

from __future__ import annotations

import random

import pytest
import yaml
from golden import compare
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import row

from bot.publish import card as cards
from bot.publish.model_index import BEGIN, END, Metadata, metadata_key, remove_metadata, splice_metadata
from core.canonical import canonical_json
from core.dataset import DatasetRow
from core.protocol import DEMO_TEXT, Protocol

ROWS = [row(label) for label in ("F16", "Q8_0", "Q4_K_M", "Q2_K")]
KEY, OTHER = "3f1c9a7be210", "0123456789ab"
URL = "https://huggingface.co/spaces/quantcard/leaderboard"
MESSY = (
    "---\r\nbase_model: org/Model   # keep me\r\ntags: [ a,b ]\r\nversion: 1.10\r\n\r\ndescription: |\r\n  # Title\r\n"
    "  text\r\n\r\n'quoted': \"a\\tb\"\r\n---  \r\n\r\n# Messy  \r\nno newline at the end"
)


def put(card: str, rows: list[DatasetRow] = ROWS, *, key: str = KEY) -> Metadata:
    return splice_metadata(card, rows, key=key, enabled=True, source_url=URL)


def taken(card: str) -> Metadata:
    return splice_metadata(card, ROWS, key=KEY, enabled=False)


def meaning(card: str) -> dict[str, object]:
    span = cards.front_matter_span(card)
    assert span is not None
    return yaml.safe_load(card[span[0] : span[1]]) or {}


def test_card_as_agreed() -> None:
    found = put(MESSY)
    assert found.note is None
    compare("model-index-card.md", found.card)


def test_the_hub_reads_it_back() -> None:
    card = ModelCard(put("---\nlicense: mit\n---\n# T\n").card)
    assert card.data.license == "mit" and card.data.model_name == "Model-GGUF"
    told = {one.metric_name: one for one in card.data.eval_results or []}
    assert len(told) == 4 * 3, "the reference is not told"
    one = told["mean KLD (Q4_K_M)"]
    assert (one.task_type, one.dataset_type, one.dataset_config, one.dataset_split, one.metric_value) == (
        "text-generation", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", 0.00861,
    )  # fmt: skip
    assert (one.source_name, one.source_url) == ("quantcard", URL)
    assert told["same top p (Q2_K)"].metric_value == 0.726 and told["PPL ratio (Q8_0)"].metric_value == 1.0004
    assert isinstance(told["99.9 % KLD (Q8_0)"].metric_value, float)
    assert one.dataset_args == {
        "protocol": "wiki512", "fingerprint": ROWS[0].protocol_fingerprint[:12], "n_ctx": 512, "n_chunks": 196,
        "n_tokens": 49_980,
    }  # fmt: skip


def test_another_corpus_is_named_as_it_is() -> None:
    protocol = Protocol(name="demo", corpus=DEMO_TEXT)
    rows = [row("Q8_0", protocol_json=canonical_json(protocol.model_dump(mode="json")))]
    [result] = (ModelCard(put("---\na: b\n---\n", rows).card).data.eval_results or [])[:1]
    assert (result.dataset_type, result.dataset_name) == ("text", DEMO_TEXT.name)


def test_only_what_may_be_ranked_is_told() -> None:
    rows = [
        row("Q8_0"),
        row("Q6_K", quality_imported="llama-perplexity"),
        row("Q4_K_M", reference_key="0" * 64),
        row("Q2_K", without="quality speed", state="failed"),
    ]
    told = ModelCard(put("---\na: b\n---\n", rows).card).data.eval_results or []
    assert {one.metric_name for one in told} == {
        f"{name} (Q8_0)" for name in ("mean KLD", "99.9 % KLD", "same top p", "PPL ratio")
    }


def test_nothing_to_tell_is_nothing_written() -> None:
    had = put(MESSY).card
    for rows in ([row("F16")], [row("Q8_0", without="quality")]):
        assert put(MESSY, rows) == Metadata(MESSY, "There is no quality figure for a model-index yet.")
        assert put(had, rows).card == MESSY


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("# no front matter\n", "no front matter"),
        ("", "no front matter"),
        ("---\nlicense: mit\nnot closed\n", "no front matter"),
        ("---\nmodel-index:\n- name: own\n---\n", "of its own"),
        ("---\n'model-index': []\n---\n", "of its own"),
        ("---\n{license: mit}\n---\n", "without changing|not valid"),
        ("---\n- a\n- b\n---\n", "not a mapping"),
        ("---\na: [\n---\n", "not valid YAML"),
        ("---\na: b\n...\n---\n", "without changing|not a mapping|not valid"),
        ("---\na: 'open\n  string\n---\n", "not valid YAML"),
        ('---\na: "\\U00110000"\n---\n', "not valid YAML"),
        (f"---\na: b\n{BEGIN} v=1\n---\n", "damaged"),
        (f"---\n{END}\n{BEGIN}\n---\n", "damaged"),
        (f"---\n{BEGIN}\n{END}\n{BEGIN}\n{END}\n---\n", "damaged"),
        (f"---\n{BEGIN}\nlicense: mit\n{END}\n---\n", "more than"),
        (f'---\na: "x\n{BEGIN}\n{END}\n y"\n---\n', "more than"),
        ("---\n" + "a: b\n" * 60_000 + "---\n", "too long"),
    ],
)
def test_where_it_can_not_be_the_card_stays(card: str, said: str) -> None:
    found = put(card)
    assert found.card == card and found.note
    assert any(part in found.note for part in said.split("|")), found.note
    assert remove_metadata(card) == card


def test_a_bomb_of_aliases_is_only_text() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(20)]
    card = "---\n" + "\n".join(lines) + "\n---\n"
    found = put(card)
    assert found.note is None and remove_metadata(found.card) == card


def test_updates_in_place_and_goes_when_it_is_switched_off() -> None:
    once = put(MESSY)
    moved = once.card.replace("version: 1.10\r\n", "").replace("---  \r\n", "version: 1.10\r\n---  \r\n", 1)
    assert metadata_key(moved) == KEY and metadata_key(MESSY) is None
    again = put(moved, [row("Q8_0")], key=OTHER)
    assert again.note is None and metadata_key(again.card) == OTHER
    start, end = again.card.index(BEGIN), again.card.index(END)
    assert again.card[:start] == moved[: moved.index(BEGIN)] and again.card[end:] == moved[moved.index(END) :]
    assert put(again.card, key=KEY).card == moved
    assert taken(again.card) == Metadata(
        MESSY.replace("version: 1.10\r\n", "").replace("---  ", "version: 1.10\r\n---  ")
    )


def test_an_own_model_index_beside_ours_wins() -> None:
    card = "---\nmodel-index:\n- name: own\n---\n"
    ours = put("---\n---\n").card
    both = ours.replace("---\n", "---\nmodel-index:\n- name: own\n", 1)
    assert put(both) == Metadata(card, "The card has a model-index of its own; it is left alone.")


def test_it_and_the_section_do_not_see_each_other() -> None:
    whole = cards.splice(put(MESSY).card, "## Section\n", key="abc123")
    assert whole == put(cards.splice(MESSY, "## Section\n", key="abc123")).card
    assert cards.remove(remove_metadata(whole)) == remove_metadata(cards.remove(whole)) == MESSY
    found = cards.find(whole)
    assert found is not None and found.key == "abc123"


FRONT = [
    "license: mit", "tags: [ a,b ]", "tags:\n- a\n-  b", "version: 1.10", "# a comment", "", "   ",
    "a: |\n  text\n\n  # x", "b: >-\n  folded\n  text", "c: |+\n  kept\n\n", 'd: "x \\\n  y"', "e: 'its'",
    "f: {x: 1, y: [2]}", "g: &anchor 1", "h: *anchor", "? complex\n: value", "i: !!str 1", "j: ~", "k: 2024-01-01",
    "l: yes  ", "m: plain\n  goes on", f"n: |\n  {BEGIN} v=1\n  {END}", "o: '---'", "p: >\n\n  x", "model_name: Y",
    "\ufeffq: 1", "x: \u2028y",
]  # fmt: skip
BODY = ["# Title", "text", "---", "```", BEGIN, END, "", "<!-- a -->"]


def some_card(seed: int) -> str:
    """A card with front matter as people and scripts write it, most of it valid YAML."""
    rng = random.Random(seed)
    newline = rng.choice(["\n", "\n", "\r\n", "\r"])
    front = rng.sample(FRONT, rng.randint(0, 6))
    if "h: *anchor" in front and "g: &anchor 1" not in front:
        front.remove("h: *anchor")
    lines = [*rng.choice([[], [""]]), "---", *front, rng.choice(["---", "---", "---  "])]
    lines += rng.choices(BODY, k=rng.randint(0, 5))
    text = rng.choice(["", "", "\ufeff"]) + newline.join(lines).replace("\n", newline if newline != "\r\n" else "\n")
    text = text.replace("\r\n", "\n").replace("\n", newline)
    return text + newline if rng.random() < 0.6 else text


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 40), st.sampled_from([ROWS, ROWS[:2]]))
def test_there_and_back(seed: int, rows: list[DatasetRow]) -> None:
    card = some_card(seed)
    found = put(card, rows)
    if found.note:
        assert found.card == card
        return
    span, new_span = cards.front_matter_span(card), cards.front_matter_span(found.card)
    assert span and new_span
    assert found.card.startswith(card[: span[1]]) and found.card.endswith(card[span[1] :])
    assert found.card[new_span[1] :] == card[span[1] :]
    assert remove_metadata(found.card) == taken(found.card).card == card
    assert put(found.card, rows) == found, "putting it in again changes nothing"
    told = meaning(found.card)
    assert told.pop("model-index") and told == meaning(card)
    block = found.card[span[1] : new_span[1]]
    newline = next(end for end in ("\r\n", "\n", "\r") if end in card)
    assert block.count(newline) == len(block.splitlines()) and block.replace(newline, "").isprintable()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=100), st.text(max_size=100), st.floats(-1e12, 1e12))
def test_hostile_names_stay_values(label: str, corpus: str, figure: float) -> None:
    protocol = canonical_json({"corpus": {"name": corpus, "sha256": "0" * 64}})
    rows = [row("Q8_0", label=label, protocol_json=protocol, protocol_name=corpus, kld_mean=figure)]
    card = "---\nlicense: mit\n---\n"
    found = put(card, rows)
    assert found.note is None
    told = meaning(found.card)
    index = told.pop("model-index")
    assert told == {"license": "mit"} and remove_metadata(found.card) == card
    [result] = index[0]["results"]  # type: ignore[index]
    assert [set(metric) for metric in result["metrics"]] == [{"type", "name", "value"}] * 4
    assert all(isinstance(metric["value"], float) for metric in result["metrics"])
    assert abs(result["metrics"][0]["value"] - figure) < 1e-6


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\r\n-:#[]{}'\"&* |>")), max_size=120))
def test_any_front_matter_is_kept_or_left_alone(text: str) -> None:
    card = f"---\n{text}\n---\n# T\n"
    found = put(card)
    assert remove_metadata(found.card) == card
    assert (found.card == card) == (found.note is not None)
