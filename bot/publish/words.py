"""What a repo's owner tells the bot in a comment: lines that start with ``/quantcard``. Pure.

Comments are strangers' text: bounded. What is quoted, code (also in lists) or an HTML comment is no command. A 'stop'
is understood however it is put: politely, in bold, with a reason behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Word = Literal["remeasure", "stop", "dispute", "unknown"]

#: Commands of one comment that are followed; characters of a dispute that are kept.
MAX_COMMANDS = 5
MAX_TEXT = 500
_MAX_LINES = 2_000

#: Perhaps in bold, perhaps behind the bot's name.
_COMMAND = re.compile(
    r"[*_]{0,3}(?:@[\w.-]{1,64}[*_]{0,3}[,:]?\s{1,8}[*_]{0,3}){0,3}/quantcard[*_]{0,3}"
    r"(?:[:,;]|[.!]?(?=\s|\Z))(?P<said>.*)",
    re.I | re.DOTALL,
)
_WORD = re.compile(r"[\W_]*([^\W_]+)")
#: Words around a command that change nothing.
_POLITE = frozenset(["please", "pls", "plz", "kindly", "thanks", "thank", "you", "thx", "ty", "again", "now"])
_FENCE = re.compile(r"(`{3,}|~{3,})(.*)", re.DOTALL)
_RULE = re.compile(r"([-*_])[ ]*(?:\1[ ]*){2,}")
_ITEM = re.compile(r"((?:[-+*]|\d{1,9}[.)])(?= |\Z))( {0,4})( *)")
#: HTML whose text is shown as it stands, whatever it says, up to its end.
_RAW = re.compile(r"<(?:pre|script|style|textarea)(?=[\s>]|\Z)", re.I)
_RAW_END = re.compile(r"</(?:pre|script|style|textarea)>", re.I)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff]")


@dataclass(frozen=True, slots=True)
class Command:
    """One command; ``text`` is what a dispute says, or what was not understood."""

    word: Word
    text: str = ""


def parse_words(comment: str) -> list[Command]:
    """The commands of a comment, in order, each once, :data:`MAX_COMMANDS` at most."""
    found: list[Command] = []
    for line in _plain_lines(re.split(r"\r\n|\n|\r", comment)[:_MAX_LINES]):
        command = _COMMAND.fullmatch(line.strip())
        if command and (read := _read(command["said"])) not in found:
            found.append(read)
            if len(found) == MAX_COMMANDS:
                break
    return found


def _plain_lines(lines: list[str]) -> Iterator[str]:
    """The lines that are neither in code, in a list, quoted, nor hidden in an HTML comment.

    A list's items are told by how far they are indented: a line that stands before an item's text has left it.
    """
    ends, blanks = _next(["-->" in line for line in lines]), _next([not line.strip() for line in lines])
    fence, item, at = "", 0, 0
    while at < len(lines):
        line = _INVISIBLE.sub("", lines[at]).expandtabs(4).rstrip(" ")
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        at += 1
        mark = _FENCE.fullmatch(text) if indent < 4 else None
        if fence:
            if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not mark[2].strip():
                fence = ""
            continue
        if not text or (item and indent >= item):
            continue
        item = 0
        if indent >= 4 or text[0] == ">":
            continue
        if mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
        elif (starts := _ITEM.match(text)) and not _RULE.fullmatch(text):
            # Code in an item is indented by four more; an item may also begin with an empty line.
            gap = 1 if starts[3] or not starts[2] else len(starts[2])
            item = indent + len(starts[1]) + gap
        elif _RAW.match(text):
            while not _RAW_END.search(text) and at < len(lines):
                text = lines[at]
                at += 1
        elif "<!--" in text:
            if not text.startswith("<!--"):
                yield line
            # What follows a comment on its last line begins no command.
            at = _comment_end(lines, at - 1, ends, blanks) + 1
        else:
            yield line


def _comment_end(lines: list[str], at: int, ends: list[int], blanks: list[int]) -> int:
    """The line on which the HTML comments end that begin on a line; that line itself where there are none.

    One that begins a line and is never closed hides all that follows; within a paragraph it must be closed there.

    Args:
        ends: for each line, the next one (or itself) with an end of a comment.
        blanks: for each line, the next one (or itself) that is blank.
    """
    block, begin = lines[at].lstrip().startswith("<!--"), 0
    while (begin := lines[at].find("<!--", begin)) >= 0:
        end = lines[at].find("-->", begin + 4)
        if end < 0:
            last = ends[at + 1]
            if last == len(lines) or (not block and blanks[at] < last):
                return last if block else at
            at, end = last, lines[last].find("-->")
        begin, block = end + 3, False
    return at


def _next(marks: list[bool]) -> list[int]:
    """For each place, and the one behind the last, the next (or that one itself) that is marked."""
    found = [len(marks)] * (len(marks) + 1)
    for at in range(len(marks) - 1, -1, -1):
        found[at] = at if marks[at] else found[at + 1]
    return found


def _read(said: str) -> Command:
    """The command in what follows ``/quantcard``."""
    rest = said
    word = ""
    while (first := _WORD.match(rest)) and (word := first[1].lower()) in _POLITE:
        rest = rest[first.end() :]
    behind = rest[first.end() :] if first else ""
    match word:
        case "stop":
            return Command("stop")
        case "remeasure" if all(more.lower() in _POLITE for more in re.findall(r"[^\W_]+", behind)):
            return Command("remeasure")
        case "dispute" if text := _cut(behind.lstrip(" \t:;,.!*_-\u2013\u2014")):
            return Command("dispute", text)
    return Command("unknown", _cut(said))


def _cut(text: str) -> str:
    kept = " ".join(text.split())
    return kept if len(kept) <= MAX_TEXT else kept[: MAX_TEXT - 1] + "…"
