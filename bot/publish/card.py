"""Puts our section into a model card and takes it out again; every byte outside it stays as it is. Pure.

The section stands between a line that begins with ``<!-- quantcard:begin`` and a line ``<!-- quantcard:end -->``.
Lines inside code fences are text, not markers. What we add around the section (blank lines) is written into the
begin marker as ``pad=before,after``, so that removing the section restores the card exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from core.errors import QuantcardError

BEGIN = "<!-- quantcard:begin"
END = "<!-- quantcard:end -->"
SECTION_VERSION = 1

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|\Z)")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")
_ATTRIBUTE = re.compile(r"\b(v|key|pad)=([\w,]+)")
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*(?:\r\n|\n|\r).*?^---[ \t]*(?:\r\n|\n|\r|\Z)", re.DOTALL | re.MULTILINE)


class CardError(QuantcardError):
    """The card's quantcard markers are damaged (one missing, or two sections); a person must mend them."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Section:
    """Our section as found in a card: ``start`` and ``end`` are offsets, ``end`` behind its final newline."""

    start: int
    end: int
    key: str | None
    pad: tuple[int, int]


def _lines(card: str) -> Iterator[tuple[int, str]]:
    """(offset, line without its newline) of every line that lies outside closed code fences."""
    at = _front_matter_end(card)
    fence: tuple[str, int] | None = None
    for match in _LINE.finditer(card, at):
        line = match[0].rstrip("\r\n")
        if not match[0]:
            break
        found = _FENCE.match(line)
        if fence is None:
            if found and not (found[1][0] == "`" and "`" in found[2]):
                fence = (found[1][0], len(found[1]))
            else:
                yield match.start(), line
        elif found and found[1][0] == fence[0] and len(found[1]) >= fence[1] and not found[2].strip():
            fence = None


def _front_matter_end(card: str) -> int:
    found = _FRONT_MATTER.match(card)
    return found.end() if found else (1 if card.startswith("\ufeff") else 0)


def _open_fence(card: str) -> int | None:
    """Offset of a code fence that is never closed, or None."""
    fence: tuple[str, int, int] | None = None
    for match in _LINE.finditer(card, _front_matter_end(card)):
        found = _FENCE.match(match[0].rstrip("\r\n"))
        if not match[0]:
            break
        if fence is None and found and not (found[1][0] == "`" and "`" in found[2]):
            fence = (found[1][0], len(found[1]), match.start())
        elif fence and found and found[1][0] == fence[0] and len(found[1]) >= fence[1] and not found[2].strip():
            fence = None
    return fence[2] if fence else None


def find(card: str) -> Section | None:
    """Our section in a card, or None.

    Raises:
        CardError: a marker without its partner, or more than one section.
    """
    start: int | None = None
    attributes: dict[str, str] = {}
    section: Section | None = None
    for offset, line in _lines(card):
        if line.startswith(BEGIN):
            if start is not None or section is not None:
                raise CardError("The card has more than one quantcard section; leave one and remove the others.")
            start, attributes = offset, dict(_ATTRIBUTE.findall(line))
        elif line.rstrip() == END:
            if start is None:
                raise CardError("The card has a quantcard end marker without a begin; remove it or restore the begin.")
            newline = re.compile(r"\r\n|\n|\r").match(card, offset + len(line))
            section = Section(
                start, newline.end() if newline else offset + len(line), attributes.get("key"), _pad(attributes)
            )
            start = None
    if start is not None:
        raise CardError("The card has a quantcard begin marker without an end; remove it or restore the end.")
    return section


def _pad(attributes: dict[str, str]) -> tuple[int, int]:
    found = re.fullmatch(r"([0-2]),([0-2])", attributes.get("pad", ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def newline_of(card: str) -> str:
    """The card's line ending: CRLF where most lines end so, else LF."""
    return "\r\n" if card.count("\r\n") * 2 > card.count("\n") else "\n"


def splice(card: str, body: str, *, key: str, position: str = "end") -> str:
    """The card with ``body`` as our section: in place of the one it has, else at ``position`` (end or top).

    ``top`` is behind the first heading, or behind the front matter of a card that has none.

    Raises:
        CardError: see :func:`find`.
    """
    newline = newline_of(card)
    found = find(card)
    if found:
        block = _block(body, key=key, pad=found.pad, newline=newline)
        if not card[found.start : found.end].endswith(("\n", "\r")):
            block = block.removesuffix(newline)
        return card[: found.start] + block + card[found.end :]
    offset = _place(card, position)
    before, after = card[:offset], card[offset:]
    pad = (_gap_before(before), 1 if after and not re.match(r"[ \t]*(\r\n|\n|\r)", after) else 0)
    block = _block(body, key=key, pad=pad, newline=newline)
    return before + newline * pad[0] + block + newline * pad[1] + after


def remove(card: str) -> str:
    """The card without our section, byte for byte as it was before :func:`splice` put it in.

    Raises:
        CardError: see :func:`find`.
    """
    found = find(card)
    if not found:
        return card
    before, after = card[: found.start], card[found.end :]
    newline = newline_of(card)
    for _ in range(found.pad[0]):
        before = before.removesuffix(newline)
    for _ in range(found.pad[1]):
        after = after.removeprefix(newline)
    return before + after


def _block(body: str, *, key: str, pad: tuple[int, int], newline: str) -> str:
    marker = f"{BEGIN} v={SECTION_VERSION} key={key} pad={pad[0]},{pad[1]} -->"
    text = f"{marker}\n{body.strip()}\n{END}\n"
    return text.replace("\n", newline)


def _gap_before(before: str) -> int:
    """Newlines to add so that the section stands after a blank line."""
    if not before.strip("\ufeff"):
        return 0
    if not before.endswith(("\n", "\r")):
        return 2
    return 0 if re.search(r"(?:\r\n|\n|\r)[ \t]*(?:\r\n|\n|\r)\Z", before) else 1


def _place(card: str, position: str) -> int:
    """Where a new section goes; never inside a code fence that somebody forgot to close."""
    limit = _open_fence(card)
    end = len(card) if limit is None else limit
    if position != "top":
        return end
    for offset, line in _lines(card):
        if offset >= end:
            break
        if re.match(r" {0,3}#{1,6}(\s|$)", line):
            newline = re.compile(r"\r\n|\n|\r").match(card, offset + len(line))
            return newline.end() if newline else len(card)
    return min(_front_matter_end(card), end)
