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
        ("/quantcard dispute", [Command("unknown", "dispute")]),
        ("/quantcard", [Command("unknown")]),
        ("/quantcard please stop", [Command("unknown", "please stop")]),
        ("/quantcard stop now", [Command("unknown", "stop now")]),
        ("/quantcard stopp", [Command("unknown", "stopp")]),
        # No commands: not at the start of a line, in code, quoted, hidden, or another word.
        ("please /quantcard stop", []),
        ("`/quantcard stop`", []),
        ("    /quantcard stop", []),
        ("\t/quantcard stop", []),
        ("> /quantcard stop", []),
        ("- /quantcard stop", []),
        ("/quantcardstop", []),
        ("/quantcards stop", []),
        ("```\n/quantcard stop\n```", []),
        ("```sh\n/quantcard stop", []),
        ("~~~\n/quantcard stop\n```\n/quantcard stop\n~~~\n/quantcard remeasure", [AGAIN]),
        ("````\n```\n/quantcard stop\n````\n/quantcard remeasure", [AGAIN]),
        ("``` not a fence `\n/quantcard stop", [STOP]),
        ("<!-- /quantcard stop -->", []),
        ("<!--\n/quantcard stop\n-->\n/quantcard remeasure", [AGAIN]),
        ("<!--\n-->/quantcard stop", []),
        ("<!-- never closed\n/quantcard stop", []),
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
    "text",
    ["/quantcard x" + " " * 20_000 + "y", "<!--" * 5_000, "`" * 20_000, "/quantcard stop\n" * 1_300, "\n" * 20_000],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.perf_counter()
    parse_words(text)
    assert time.perf_counter() - began < 1


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["/quantcard", " stop", " dispute", " ", "\n", "```", "<!--", "-->", "> ", "x"])))
def test_any_mixture_is_read(parts: list[str]) -> None:
    for command in parse_words("".join(parts)):
        assert (command.word in ("stop", "remeasure")) <= (command.text == "")
        assert (command.word == "dispute") <= bool(command.text)
