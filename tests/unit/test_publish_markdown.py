"""Strangers' strings in Markdown: text, whatever they hold."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bot.publish.markdown import code, escape, fenced, file_url, link

TEXT = st.text(
    alphabet=st.one_of(st.characters(blacklist_categories=()), st.sampled_from("\\`*_[]()|~#$<>&!-+@:/w.\n\r"))
)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tokens(markdown: str) -> list[str]:
    """The kinds of everything a parser sees in it."""
    found = []
    for block in PARSER.parse(markdown):
        found += [block.type, *(child.type for child in block.children or [])]
    return found


def shown(markdown: str) -> str:
    """What a reader of it sees."""
    return "".join(
        child.content for block in PARSER.parse(markdown) for child in block.children or [] if child.type == "text"
    )


@settings(max_examples=1500, deadline=None)
@given(TEXT)
@example("<!-- quantcard:end -->")
@example("a\\")
@example("1. x")
@example("- x")
@example("=")
@example("__x__ _y_")
def test_escaped_text_is_text(text: str) -> None:
    safe = str(escape(text))
    assert not re.search(r"[<>\n\r]", safe)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]]", safe)
    assert not re.search(r"(?<!\\)(?:\\\\)*\\$", safe), "it would escape what follows"
    assert "<!--" not in safe and "@" not in safe and "://" not in safe and "www." not in safe.lower()
    assert not [c for c in safe if unicodedata.category(c) in ("Cf", "Cc", "Co", "Cs")]
    assert set(tokens(safe)) <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_what_is_read_is_what_was_given(text: str) -> None:
    kept = "".join(c if c.isprintable() else " " for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))
    expected = " ".join(kept.split())
    if 0 < len(expected) <= 300:
        assert shown(f"x {escape(text)} x") == f"x {expected} x"


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_a_table_cell_stays_one_cell(text: str) -> None:
    for safe in (escape(text), code(text), link(text, "https://x.y/z")):
        found = tokens(f"| a | b |\n|---|---|\n| {safe} | end |\n")
        assert found.count("td_open") == 2 and found.count("tr_open") == 2


@settings(max_examples=1000, deadline=None)
@given(TEXT)
@example("``` ` ``")
@example("")
def test_code_is_code_and_nothing_else(text: str) -> None:
    found = tokens(f"x {code(text)} y *z*")
    assert found.count("code_inline") == 1 and found.count("em_open") == 1 and "html_inline" not in found


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_a_link_is_one_link(text: str) -> None:
    found = tokens(f"{link(text, file_url('https://hf.co', 'a/b', text))} and *more*")
    assert found.count("link_open") == 1 and found.count("em_open") == 1
    assert not {"html_inline", "code_inline", "image"} & set(found)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_a_fenced_block_ends_where_it_should(text: str) -> None:
    block = fenced(text, "sh")
    if block is None:
        assert not all(line.isprintable() for line in text.split("\n"))
    else:
        assert tokens(f"{block}\n\nend")[:2] == ["fence", "paragraph_open"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q4_K_M", "Q4_K_M"), ("a_ _b", "a\\_ \\_b"), ("50 % & <b>", "50 % &amp; &lt;b&gt;"), ("2.5 MB", "2.5 MB"),
        ("@everyone", "&#64;everyone"), ("https://x.y", "https:&#47;&#47;x.y"), ("WWW.x.y", "WWW&#46;x.y"),
        ("evil\u202efdp", "evilfdp"), ("a\r\nb\tc", "a b c"), ("x" * 301, "x" * 299 + "…"),
    ],
)  # fmt: skip
def test_escapes_by_hand(text: str, expected: str) -> None:
    assert str(escape(text)) == expected


def test_addresses_are_quoted() -> None:
    assert (
        file_url("https://hf.co", "a/b", "x (1)/é|`.gguf")
        == "https://hf.co/a/b/blob/main/x%20%281%29/%C3%A9%7C%60.gguf"
    )
    assert file_url("https://hf.co", "a/b", "\ud800.gguf").endswith("/%3F.gguf")
