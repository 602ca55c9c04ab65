"""Puts our section into a model card and takes it out again; every byte outside it stays as it is. Pure.

The section stands between a line that begins with ``<!-- quantcard:begin`` and a line ``<!-- quantcard:end -->``.
Such lines inside code fences, comments and ``<pre>`` are text, not markers. What we add around the section (blank
lines) is written into the begin marker as ``pad=before,after``, so that removing it restores the card exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bot.publish.blocks import Line, top_lines
from core.errors import QuantcardError

BEGIN = "<!-- quantcard:begin"
END = "<!-- quantcard:end -->"
#: Version of the section's format (docs/section-format.md). It is raised when what stands in a section changes so that
#: a reader must know; a card with an older one is left as it is until its figures change.
SECTION_VERSION = 2

_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
_ATTRIBUTE = re.compile(r"\b(v|key|pad)=([\w,]+)")
_RULE = re.compile(r"---[ \t]*")


class CardError(QuantcardError):
    """The card's quantcard markers are damaged (one missing, or two sections); a person must mend them."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Section:
    """Our section as found in a card: ``start`` and ``end`` are offsets, ``end`` behind its final newline.

    ``version`` of its format; a marker that names none is of the first.
    """

    start: int
    end: int
    key: str | None
    pad: tuple[int, int]
    newline: str
    last_newline: str
    version: int = 1


def _scan(card: str) -> tuple[list[Line], int | None]:
    """(headings and lines of HTML behind the front matter, the offset of code never closed or None)."""
    return top_lines(card, _front_matter_end(card), marker=BEGIN)


def _front_matter_end(card: str) -> int:
    """Offset behind the YAML front matter (which the Hub also takes behind blank lines), or behind a BOM."""
    begin = 1 if card.startswith("\ufeff") else 0
    opened = False
    for match in _LINE.finditer(card, begin):
        if not match[0]:
            break
        if _RULE.fullmatch(match[1]):
            if opened:
                return match.end()
            opened = True
        elif not opened and match[1].strip():
            break
    return begin


def front_matter_span(card: str) -> tuple[int, int] | None:
    """(offset of the front matter's first line, offset of the ``---`` that closes it), or None where there is none."""
    end = _front_matter_end(card)
    rules = [line for line in _LINE.finditer(card, 0, end) if _RULE.fullmatch(line[1].removeprefix("\ufeff"))]
    return (rules[0].end(), rules[-1].start()) if len(rules) > 1 else None


def find(card: str) -> Section | None:
    """Our section in a card, or None.

    Raises:
        CardError: a marker without its partner, or more than one section.
    """
    begin: Line | None = None
    section: Section | None = None
    for line in _scan(card)[0]:
        if line.text.startswith(BEGIN):
            if begin or section:
                raise CardError("The card has more than one quantcard section; leave one and remove the others.")
            begin = line
        elif line.text.rstrip() == END:
            if begin is None:
                raise CardError("The card has a quantcard end marker without a begin; remove it or restore the begin.")
            attributes = dict(_ATTRIBUTE.findall(begin.text))
            section = Section(
                begin.start,
                line.end,
                attributes.get("key"),
                _pad(attributes),
                begin.newline,
                line.newline,
                _version(attributes),
            )
            begin = None
    if begin:
        raise CardError("The card has a quantcard begin marker without an end; remove it or restore the end.")
    return section


def _version(attributes: dict[str, str]) -> int:
    found = re.fullmatch(r"[1-9][0-9]{0,3}", attributes.get("v", ""), re.ASCII)
    return int(found[0]) if found else 1


def _pad(attributes: dict[str, str]) -> tuple[int, int]:
    found = re.fullmatch(r"([0-2]),([0-2])", attributes.get("pad", ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def newline_of(card: str) -> str:
    """The card's line ending: CRLF where most lines end so, CR where there is nothing else, else LF."""
    if "\n" not in card:
        return "\r" if "\r" in card else "\n"
    return "\r\n" if card.count("\r\n") * 2 > card.count("\n") else "\n"


def splice(card: str, body: str, *, key: str, position: str = "end", after: str | None = None) -> str:
    """The card with ``body`` as our section: in place of the one it has, else at ``position`` (end, top or after).

    ``top`` is behind the first heading, or behind the front matter of a card that has none. ``after`` is the end of
    the part under the heading with that text, up to the next heading of its level; the card's end if there is none.

    Raises:
        CardError: see :func:`find`.
        ValueError: ``body`` has a marker or unclosed code in it, so that the section would not be found again.
    """
    found = find(card)
    if found:
        block = _block(body, key=key, pad=found.pad, newline=found.newline, last_newline=found.last_newline)
        start, before, after = found.start, card[: found.start], card[found.end :]
    else:
        newline = newline_of(card)
        offset = _place(card, position, after)
        before, after = card[:offset], card[offset:]
        pad = (_gap_before(before, newline), 1 if after and not re.match(r"[ \t]*(\r\n|\n|\r)", after) else 0)
        block = _block(body, key=key, pad=pad, newline=newline, last_newline=newline)
        before, after = before + newline * pad[0], newline * pad[1] + after
        start = len(before)
    new = before + block + after
    if (again := find(new)) is None or (again.start, again.end) != (start, start + len(block)):
        raise CardError("The section can't be put into this card so that it would be found again; look at its code.")
    return new


def remove(card: str) -> str:
    """The card without our section, byte for byte as it was before :func:`splice` put it in.

    Raises:
        CardError: see :func:`find`.
    """
    found = find(card)
    if not found:
        return card
    before, after = card[: found.start], card[found.end :]
    for _ in range(found.pad[0]):
        before = before.removesuffix(found.newline)
    for _ in range(found.pad[1]):
        after = after.removeprefix(found.newline)
    return before + after


def _block(body: str, *, key: str, pad: tuple[int, int], newline: str, last_newline: str) -> str:
    text = re.sub(r"\r\n?", "\n", body).strip()
    lines, unclosed = _scan("text\n\n" + text)
    if unclosed is not None or any(line.text.startswith(BEGIN) or line.text.rstrip() == END for line in lines):
        raise ValueError("a section's body must close its code and hold no marker")
    marker = f"{BEGIN} v={SECTION_VERSION} key={key} pad={pad[0]},{pad[1]} -->"
    return f"{marker}\n{text}\n{END}".replace("\n", newline) + last_newline


def _gap_before(before: str, newline: str) -> int:
    """Newlines to add so that the section stands after a blank line."""
    if before in ("", "\ufeff"):
        return 0
    ends = [match for match in _LINE.finditer(before, max(0, len(before) - 4096)) if match[0]][-2:]
    if not ends[-1][2]:
        return 2
    if not ends[-1][1].strip(" \t"):
        return 0
    # After a lone CR a single LF would make it a CRLF, and no blank line.
    return 2 if ends[-1][2] == "\r" and newline == "\n" else 1


def _place(card: str, position: str, after: str | None = None) -> int:
    """Where a new section goes; never inside code that somebody forgot to close."""
    lines, unclosed = _scan(card)
    end = len(card) if unclosed is None else unclosed
    headings = [line for line in lines if line.heading]
    if position == "after":
        named = next((at for at, line in enumerate(headings) if _words(line.text) == _words(after or "")), None)
        if named is None:
            return end
        level = _level(headings[named].text)
        return next((line.start for line in headings[named + 1 :] if _level(line.text) <= level), end)
    if position != "top":
        return end
    return headings[0].end if headings else min(_front_matter_end(card), end)


def _level(heading: str) -> int:
    return len(heading.strip()) - len(heading.strip().lstrip("#"))


def _words(heading: str) -> str:
    """A heading's text for comparison: without its marks and case, in single spaces."""
    return " ".join(heading.strip().strip("#").split()).casefold()
