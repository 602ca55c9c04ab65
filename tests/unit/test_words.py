"""What owners may tell the bot in a comment, and what is none of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.publish.words import MAX_COMMANDS, MAX_TEXT, Command, parse_words

STOP, AGAIN = Command("stop"), Command("remeasure")


@pytest.mark.parametrize(
    ("comment", "found"),
    [
        ("/quantcard stop", [STOP]),
        ("/QuantCard STOP", [STOP]),
        ("   /quantcard\tstop  ", [STOP]),
        ("Thanks, but no.\r\n/quantcard stop\r\nBye", [STOP]),
        ("/quantcard remeasure\n/quantcard stop", [AGAIN, STOP]),
        ("/quantcard remeasure\n/quantcard remeasure", [AGAIN]),
        ("/quantcard dispute Q4_K_M is 0.004 here", [Command("dispute", "Q4_K_M is 0.004 here")]),
        ("/quantcard dispute   a \t b ", [Command("dispute", "a b")]),
        ("/quantcard dispute: a", [Command("dispute", "a")]),
        ("/quantcard dispute", [Command("unknown", "dispute")]),
        ("/quantcard dispute :-", [Command("unknown", "dispute :-")]),
        ("/quantcard", [Command("unknown")]),
        ("/quantcard please", [Command("unknown", "please")]),
        ("/quantcard don't stop", [Command("unknown", "don't stop")]),
        ("/quantcard stopp", [Command("unknown", "stopp")]),
        # A no is a no however it is put.
        ("/quantcard stop please", [STOP]),
        ("/quantcard please stop", [STOP]),
        ("/quantcard stop now", [STOP]),
        ("/quantcard stop.", [STOP]),
        ("/quantcard stop!", [STOP]),
        ("/quantcard stop, the figures are wrong", [STOP]),
        ("/quantcard: stop", [STOP]),
        ("/quantcard - stop", [STOP]),
        ("@quantbot /quantcard stop", [STOP]),
        ("@quantbot, @someone: /quantcard stop", [STOP]),
        ("**/quantcard stop**", [STOP]),
        ("**/quantcard** stop", [STOP]),
        ("_/quantcard stop_", [STOP]),
        ("**@quantbot** /quantcard stop", [STOP]),
        ("/quantcard stop\u00a0", [STOP]),
        ("/quantcard\u00a0stop", [STOP]),
        ("\u200b/quantcard stop", [STOP]),
        ("/quantcard remeasure, please!", [AGAIN]),
        ("/quantcard remeasure. Thank you \U0001f64f", [AGAIN]),
        ("/quantcard remeasure Q4_K_M only", [Command("unknown", "remeasure Q4_K_M only")]),
        # No commands: not at the start of a line, in code, quoted, hidden, or another word.
        ("please /quantcard stop", []),
        ("~~/quantcard stop~~", []),
        ("`/quantcard stop`", []),
        ("    /quantcard stop", []),
        ("\t/quantcard stop", []),
        ("> /quantcard stop", []),
        ("- /quantcard stop", []),
        ("/quantcardstop", []),
        ("/quantcards stop", []),
        ("/quantcard.yml is a file", []),
        ("```\n/quantcard stop\n```", []),
        ("```sh\n/quantcard stop", []),
        ("~~~\n/quantcard stop\n```\n/quantcard stop\n~~~\n/quantcard remeasure", [AGAIN]),
        ("````\n```\n/quantcard stop\n````\n/quantcard remeasure", [AGAIN]),
        ("``` not a fence `\n/quantcard stop", [STOP]),
        # Code in lists and quotes ends where they end.
        ("- ```\n  /quantcard stop\n  ```", []),
        ("- ```\n  /quantcard stop\n  ```\n\n/quantcard remeasure", [AGAIN]),
        ("- ```\n  never closed\n\n/quantcard stop", [STOP]),
        ("1. So:\n\n   ```\n   /quantcard stop\n   ```\n/quantcard remeasure", [AGAIN]),
        ("* a\n  - b\n\n      ```\n      /quantcard stop\n      ```\n/quantcard remeasure", [AGAIN]),
        ("-\n  ```\n  /quantcard stop\n  ```\n/quantcard remeasure", [AGAIN]),
        ("-     /quantcard stop\n\n  /quantcard stop", []),
        ("* * *\n  ```\n/quantcard stop\n  ```\n/quantcard remeasure", [AGAIN]),
        ("- item\n/quantcard stop", [STOP]),
        ("> ```\n> /quantcard stop\n> ```\n/quantcard remeasure", [AGAIN]),
        ("> ```\n/quantcard stop", [STOP]),
        ("<pre>\n/quantcard stop\n</pre>\n/quantcard remeasure", [AGAIN]),
        ("<pre>/quantcard stop</pre>\n/quantcard remeasure", [AGAIN]),
        ("<!-- /quantcard stop -->", []),
        ("<!--\n/quantcard stop\n-->\n/quantcard remeasure", [AGAIN]),
        ("<!--\n-->/quantcard stop", []),
        ("<!-- a --> /quantcard stop", []),
        ("<!-- never closed\n/quantcard stop", []),
        ("text <!--\n/quantcard stop\n--> more\n/quantcard remeasure", [AGAIN]),
        ("text <!-- never closed here\n\n/quantcard stop", [STOP]),
        ("a <!-- b --> c <!--\n/quantcard stop -->\n/quantcard remeasure", [AGAIN]),
        ("/quantcard stop <!--\nwhy -->", [STOP]),
        ("```\n<!--\n```\n/quantcard stop", [STOP]),
        ("", []),
    ],
)
def test_words(comment: str, found: list[Command]) -> None:
    assert parse_words(comment) == found


def test_they_are_bounded() -> None:
    many = "\n".join(f"/quantcard dispute number {n}" for n in range(100))
    assert len(parse_words(many)) == MAX_COMMANDS
    [long] = parse_words("/quantcard dispute " + "x " * 5000)
    assert len(long.text) == MAX_TEXT and long.text.endswith("…")
    [unknown] = parse_words("/quantcard " + "x" * 20_000)
    assert len(unknown.text) == MAX_TEXT


@pytest.mark.parametrize(
    "part",
    [
        "/quantcard stop\n", "\n", "<!--", "<!---->", "a <!--\n", "`", "<pre>\n", "- ", "- \n", "> ", "\t", "*", "@a ",
        "/quantcard please ", "\u200b", "/quantcard x     ", "***@a*** ", "1. ```\n", "please ",
    ],
)  # fmt: skip
def test_no_text_takes_long(part: str) -> None:
    began = time.perf_counter()
    for before in ("", "/quantcard ", "text "):
        parse_words(before + part * (65_536 // len(part)))
    assert time.perf_counter() - began < 1


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["/quantcard", " stop", " dispute", " please", " ", "\n", "```", "<!--", "-->", "> ", "- ", "  ", "*", "x"]
        )
    )
)
def test_any_mixture_is_read(parts: list[str]) -> None:
    for command in parse_words("".join(parts)):
        assert (command.word in ("stop", "remeasure")) <= (command.text == "")
        assert (command.word == "dispute") <= bool(command.text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["text", "- a", "  b", "```", "<!-- c -->", "> d", "", "* * *", "    e"])))
def test_a_stop_at_the_end_is_heard_unless_a_fence_is_open(lines: list[str]) -> None:
    found = parse_words("\n".join([*lines, "~~~", "/quantcard remeasure", "~~~", "", "/quantcard stop"]))
    assert AGAIN not in found or "```" in lines
    assert STOP in found or "```" in lines
