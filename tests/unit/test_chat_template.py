"""Chat templates as text: diffs, what only whitespace changes, what is said of a repo's files."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.intake.templates import MemoryShelf, judge, templates_of_config, usual_template
from bot.store.templates import BaseTemplates
from core.audit import Inspection, inspect
from core.chat_template import MAX_LINES, MAX_TEMPLATE, MAX_WIDTH, compare, printable, sha256_of, unified
from core.gguf_header import GGUFHeader, SkippedArray

LINES = st.lists(st.sampled_from(["a", "b", "{% if x %}", "", " a", "c\r"]), max_size=25)


def applied(before: list[str], diff_lines: tuple[str, ...]) -> list[str]:
    """What a unified diff makes of ``before``; its context is checked on the way."""
    after: list[str] = []
    at = 0
    for line in diff_lines:
        if line.startswith("@@"):
            start, _, length = line.split()[1][1:].partition(",")
            begin = int(start) - (length != "0")
            after += before[at:begin]
            at = begin
        elif line[0] == "+":
            after.append(line[1:])
        else:
            assert printable(before[at]) == line[1:]
            if line[0] == " ":
                after.append(line[1:])
            at += 1
    return [*after, *before[at:]]


@given(LINES, LINES)
def test_a_diff_makes_one_text_of_the_other(theirs: list[str], ours: list[str]) -> None:
    found = compare("\n".join(ours), "\n".join(theirs))
    before, after = "\n".join(theirs).split("\n"), "\n".join(ours).split("\n")
    if len(found.diff_lines) <= MAX_LINES:
        assert [printable(line) for line in applied(before, found.diff_lines)] == [printable(line) for line in after]
    assert found.added - found.removed == len(after) - len(before)
    assert found.same == (not found.diff_lines) == (ours == theirs or "\n".join(ours) == "\n".join(theirs))
    hunks = [line for line in found.diff_lines if line.startswith("@@")]
    assert len(hunks) == len(set(hunks))


@given(LINES, LINES)
def test_the_other_way_round_counts_are_swapped_or_no_worse(a: list[str], b: list[str]) -> None:
    one, other = compare("\n".join(a), "\n".join(b)), compare("\n".join(b), "\n".join(a))
    assert one.added - one.removed == other.removed - other.added
    assert (one.same, one.only_whitespace, one.only_newlines) == (
        other.same,
        other.only_whitespace,
        other.only_newlines,
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("a\nb", "a\nb", "the same"),
        ("a\nx\nb", "a\nb", "+1 −0 lines"),
        ("a\nb", "a\nc\nb\nd", "+0 −2 lines"),
        ("a\r\nb", "a\nb", "+1 −1 lines, line endings only"),
        ("a\nb\n", "a\nb", "+1 −0 lines, line endings only"),
        ("a\n  b", "a\nb", "+1 −1 lines, whitespace only"),
        ("a b", "ab", "+1 −1 lines, whitespace only"),
        ("", "a", "+1 −1 lines"),
    ],
)
def test_what_is_said_of_a_difference(ours: str, theirs: str, said: str) -> None:
    found = compare(ours, theirs)
    assert found.said == said
    assert (found.ours_sha256, found.theirs_sha256) == (sha256_of(ours), sha256_of(theirs))
    assert not found.only_newlines or found.only_whitespace


def test_far_changes_are_hunks_of_their_own() -> None:
    before = [str(i) for i in range(60)]
    after = [*before[:10], "x", *before[10:50], *before[51:]]
    found = compare("\n".join(after), "\n".join(before))
    assert [line for line in found.diff_lines if line[0] in "@+-"] == [
        "@@ -8,6 +8,7 @@", "+x", "@@ -48,7 +49,6 @@", "-50",
    ]  # fmt: skip
    assert unified(found, ours="f.gguf", theirs="Org/B")[:2] == ["--- Org/B", "+++ f.gguf"]


def test_hostile_texts_are_bounded_and_printable() -> None:
    evil = "\x1b[2J\u202e<b>\x00" + "x" * 10_000
    found = compare("\n".join([evil] * 3000), "harmless")
    assert len(found.diff_lines) == MAX_LINES + 1 and found.added == 3000
    assert all(len(line) <= MAX_WIDTH + 1 and line.isprintable() for line in found.diff_lines)
    assert "\\x1b[2J\\u202e<b>\\x00" in found.diff_lines[2]


def test_texts_that_would_take_long_are_counted() -> None:
    # Ten thousand equal lines on both sides, and no two neighbours alike.
    ours = "\n".join(f"{i % 7}" for i in range(20_000))
    theirs = "\n".join(f"{i % 11}" for i in range(20_000))
    found = compare(ours, theirs)
    assert len(found.diff_lines) == 1 and "too long" in found.diff_lines[0]
    assert found.added == found.removed > 0


def test_templates_of_tokenizer_settings() -> None:
    assert templates_of_config(json.dumps({"chat_template": "x"})) == ["x"]
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}, {"name": "no"}, 7]
    assert templates_of_config(json.dumps({"chat_template": named})) == ["d", "t"]
    for text in ("", "[]", "{}", '{"chat_template": 7}', "[" * 100_000, '{"chat_template": null}', "\x00", "1" * 9999):
        assert templates_of_config(text) == []
    assert templates_of_config(json.dumps({"chat_template": "x" * (MAX_TEMPLATE + 1)})) == []


def variant(template: str | None, *, vocabulary: str = "1", shards: int = 1) -> Inspection:
    kv = {"general.architecture": "llama", "tokenizer.ggml.tokens": SkippedArray(8, 9, vocabulary)}
    if template is not None:
        kv["tokenizer.chat_template"] = template
    return inspect([GGUFHeader(3, kv, (), 64)], size_bytes=1, name="M.gguf", shards_expected=shards)


def said(
    *templates: str | None, base: str | None = None, others: tuple[str, ...] = (), complete: bool = True
) -> list[str]:
    """The flags of files with these templates, as 'number: code: detail'."""
    shelf = MemoryShelf()
    shelf.keep([text for text in (*templates, base, *others) if text])
    known = None
    if base is not None:
        hashes = tuple(sha256_of(one) for one in others)
        known = BaseTemplates("Org/B", "c", sha256_of(base) if base else None, hashes, complete, None, 0.0)
    found = judge({i: variant(one) for i, one in enumerate(templates)}, base=known, shelf=shelf)
    return [f"{i}: {flag.code}: {flag.detail}" for i, flags in sorted(found.items()) for flag in flags]


def test_files_beside_each_other() -> None:
    assert said("a", "a", "a") == said(None, None) == said("a") == []
    assert said("a", "a", "b") == [
        "2: template-differs-among-files: Its chat template is not the one that 2 other files here have (+1 −1 lines)."
    ]
    assert said("a", None, "a") == ["1: template-missing: It has no chat template, though 2 other files here have one."]
    both = said("a", "b")
    assert len(both) == 2 and all("2 different chat templates" in one for one in both)
    assert said("a\n", "a", "a") == [], "a last newline is nobody's business"
    assert usual_template([None, None]) is None and usual_template(["x", "y", "y", None]) == "y"


def test_files_beside_the_base_model() -> None:
    assert (
        said("a", base="a") == said("a", base="b", others=("a",)) == said("a\n", base="a") == said("a", base="") == []
    )
    assert said("a\nx", base="a") == [
        "0: template-differs-from-base: Its chat template is not that of Org/B (+1 −0 lines)."
    ]
    assert "whitespace only" in said("a  b", base="a b")[0]
    assert said("b", base="a", complete=False) == [], "another of its files may have it"
    assert said(None, base="a") == ["0: template-missing: It has no chat template, though Org/B has one."]


def test_models_of_one_repo_are_held_apart() -> None:
    shelf = MemoryShelf()
    found = {"a": variant("x", vocabulary="1"), "b": variant("y", vocabulary="2"), "c": variant("y", vocabulary="2")}
    assert judge(found, base=None, shelf=shelf) == {}
    without_first_shard = {"a": variant("x"), "b": variant("x"), "c": variant(None, shards=2)}
    assert judge(without_first_shard, base=None, shelf=shelf) == {}


def test_a_template_that_was_not_kept_is_known_by_its_checksum() -> None:
    found = judge({"a": variant("x"), "b": variant("x"), "c": variant("y")}, base=None, shelf=MemoryShelf())
    assert [flag.detail for flag in found["c"]] == ["Its chat template is not the one that 2 other files here have."]


def test_a_file_can_differ_from_both() -> None:
    codes = [one.split(": ")[1] for one in said("a", "a", "b", base="c")]
    assert codes == ["template-differs-from-base"] * 3 + ["template-differs-among-files"]
