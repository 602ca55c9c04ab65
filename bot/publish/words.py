"""What a repo's owner tells the bot in a comment: lines that start with ``/quantcard``. Pure.

Comments are strangers' text: bounded, and what is quoted, code or an HTML comment is no command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Word = Literal["remeasure", "stop", "dispute", "unknown"]

#: Commands of one comment that are followed; characters of a dispute that are kept.
MAX_COMMANDS = 5
MAX_TEXT = 500
_MAX_LINES = 2_000

_COMMAND = re.compile(r" {0,3}/quantcard(?:[ \t]+(?P<word>\S+))?(?:[ \t]+(?P<text>.*))?", re.I)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """One command; ``text`` is what a dispute says, or what was not understood."""

    word: Word
    text: str = ""


def parse_words(comment: str) -> list[Command]:
    """The commands of a comment, in order, each once, :data:`MAX_COMMANDS` at most."""
    # As many lines as there were, and what follows a comment on its line begins none.
    plain = _COMMENT.sub(lambda found: "\n" * found[0].count("\n") + "<!---->", comment)
    found: list[Command] = []
    fence = ""
    for line in re.split(r"\r\n|\n|\r", plain)[:_MAX_LINES]:
        mark = _FENCE.fullmatch(line)
        if fence:
            if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not mark[2].strip():
                fence = ""
            continue
        if mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
            continue
        command = _COMMAND.fullmatch(line.rstrip())
        if command and (read := _read(command["word"] or "", command["text"] or "")) not in found:
            found.append(read)
            if len(found) == MAX_COMMANDS:
                break
    return found


def _read(word: str, text: str) -> Command:
    match word.lower():
        case "remeasure" | "stop" as known if not text:
            return Command(known)
        case "dispute" if text:
            return Command("dispute", _cut(text))
    return Command("unknown", _cut(f"{word} {text}".strip()))


def _cut(text: str) -> str:
    kept = " ".join(text.split())
    return kept if len(kept) <= MAX_TEXT else kept[: MAX_TEXT - 1] + "…"
