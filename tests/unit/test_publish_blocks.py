"""What stands at a card's top level outside code, held against a CommonMark parser that others wrote."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bot.publish import card as cards
from bot.publish.blocks import top_lines

SECTION = "## Which file?\n\n| a |\n|---|\n| b |\n\n```sh\nrun\n```"
MARKDOWN = MarkdownIt("commonmark").enable("table")
#: Words, marks and HTML in every state. No link definitions and no tables in lists: there the parser goes its own ways.
WORDS = [
    "# Title", "## Sub #", "#no", "words", "words [x]", "    code", "\tcode", "  two", "   three", "", "", "", "",
    "```", "```sh", "````", "~~~", "~~~~ x", "text ```", "``x", "  ```", "   ~~~", "    ```",
    "---", "- - -", "***", "* * *", "_ _ _", "===", "=", "-", "+", "*", "2.", "3) x", "1.", "10. x",
    "<div>", '<div align="center">', "</div>", "<details><summary>x</summary>", "</details>", "<table", "<b>", "<br/>",
    "</b >", "<span", "<a href='x'>", "<a href='x>' b>", "<img src='a'", "alt='b'>", "<http://x.y>",
    "<!-- c", "-->", "<!-- c -->", "<!-->", "<pre>", "</pre>", "<PRE class=a", "<script>",
    "</script>", "<style", "<textarea>",
    "<?php", "?>", "<!DOCTYPE", "<!X", "<!doctype html>", "<![CDATA[", "]]>", "\\", "`", "$$", "\x0b", "\xa0", "&",
]  # fmt: skip
ROWS = ["|a|b|", "|---|---|", "a | b", "--|--", "- | -", "|", "|:-|", "| a \\| b |"]
LINES = st.one_of(
    st.sampled_from(WORDS + ROWS),
    st.builds(
        "{}{}".format, st.sampled_from(["- ", "1. ", "> ", ">", "- > ", "> - ", "+ 2) "]), st.sampled_from(WORDS)
    ),
)
NEWLINES = st.sampled_from(["\n", "\n", "\r\n", "\r"])


@st.composite
def some_cards(draw: st.DrawFn) -> str:
    card = draw(NEWLINES).join(draw(st.lists(LINES, min_size=1, max_size=10))) + draw(st.sampled_from(["", "\n"]))
    assume(cards.front_matter_span(card) is None)
    return card


def headings(card: str) -> list[int]:
    """The lines of headings with ``#`` at the top level, as the other parser sees them."""
    found = (token for token in MARKDOWN.parse(card) if token.type == "heading_open")
    return [token.map[0] for token in found if token.map and token.level == 0 and token.markup.startswith("#")]


def compared(html: str) -> str:
    """HTML for comparison: blank space in comments is nobody's."""
    return "".join(html.split())


@settings(max_examples=4000, deadline=None)
@given(some_cards())
def test_headings_are_those_of_another_parser(card: str) -> None:
    lines, _ = top_lines(card, 0, marker=cards.BEGIN)
    text = card.replace("\r\n", "\n").replace("\r", "\n")
    at = [card[: line.start].replace("\r\n", "\n").replace("\r", "\n").count("\n") for line in lines if line.heading]
    assert at == headings(text)


@settings(max_examples=4000, deadline=None)
@given(some_cards(), st.sampled_from(["end", "top", "after"]))
def test_the_section_is_seen_as_a_section_and_the_rest_as_before(card: str, position: str) -> None:
    new = cards.splice(card, SECTION, key="abc", position=position, after="Sub")
    before, found, rest = MARKDOWN.render(new).partition(cards.BEGIN)
    section, ended, after = rest.partition(cards.END)
    assert found and ended, new
    whole = MARKDOWN.render(SECTION)
    marker = f" v={cards.SECTION_VERSION} key=abc{section.split('key=abc')[1].split('-->')[0]}-->"
    assert compared(section) == compared(f"{marker}{whole}"), new
    assert compared(before + after) == compared(MARKDOWN.render(card)), new


@pytest.mark.parametrize(
    ("card", "n_headings"),
    [
        ("* * *\n  ```\n  # Usage\n  ```\nend\n", 0),  # no list item: the fence is nobody's
        ("- item\n---\n  ```\n# x\n", 0),
        ("-\n  ```\n# x\n", 1),  # an item that begins on its second line
        ("-\n\n  ```\n# x\n", 0),  # one that has nothing in it is over
        ("===\n<b>\n# x\n", 1),  # no text is open above, so no heading, but text
        ("text\n===\n<b>\n# x\n", 0),  # a heading, and HTML until a blank line
        ("[x]: http://y\n===\n<b>\n# x\n", 1),
        ("<!DOCTYPE\n# x\n\n# y\n>\n# z\n", 1),
        ("<!X\n\n# x\n", 0),
        ("text\n2. ```\n# x\n", 1),  # a list in text begins with 1
        ("|a|\n|-|\n2. ```\n# x\n", 1),
        ("> text\n2. ```\n# x\n", 1),
        ("- a\n\n      ```\n# x\n", 1),  # code in the item
        ("- a\n\n     ```\n# x\n", 1),
        (">     ```\n# x\n", 1),
        ("> ```\n\n# x\n", 1),
        ("text\n    ```\n# x\n", 1),
        ("```\n~~~\n# x\n```\n# y\n", 1),
        ("- # x\n", 0),
        ("  ### x\n    # y\n", 1),
    ],
)
def test_headings(card: str, n_headings: int) -> None:
    lines, _ = top_lines(card, 0, marker=cards.BEGIN)
    assert sum(line.heading for line in lines) == n_headings


@pytest.mark.parametrize(
    ("card", "unclosed"),
    [
        ("a\n```\nb\n", 2),
        ("a\n<!DOCTYPE html\n\nb", 2),
        ("a\n<!-- b\n\n", 2),
        ("a\n<!-- b -->\n", None),
        ("- ```\n  b\n", None),  # it ends with the list
        ("> <!-- b\n", None),
        ("<div>\n```\n", None),  # that ends at the blank line before a section
        ("<div>\n\n```\n", 7),
    ],
)
def test_code_that_nobody_closed(card: str, unclosed: int | None) -> None:
    assert top_lines(card, 0, marker=cards.BEGIN)[1] == unclosed
