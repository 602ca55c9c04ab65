"""Reads a section of any version back from a card: its key, verdict, picks, table and data block. Pure.

Cards are anybody's: what does not look like ours is left out, never guessed. docs/section-format.md says what each
version has.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bot.publish import card as cards
from bot.publish.data_block import DataBlock, decode

#: Titles of columns, in every version, by the name that ``.quantcard.yml`` has for them.
_TITLES = (
    ("bpw", re.compile(r"bpw")),
    ("size", re.compile(r"Size")),
    ("kld", re.compile(r"Mean KLD")),
    ("kld-99.9", re.compile(r"99\.9 % KLD")),
    ("same-top", re.compile(r"Same top p")),
    ("ppl-ratio", re.compile(r"PPL ratio")),
    ("pp", re.compile(r"pp\d+ t/s")),
    ("tg", re.compile(r"tg\d+ t/s")),
    ("memory", re.compile(r"Memory")),
)
_NOTES = ("", "Notes")
_MOST_ROWS = 5_000
_CELLS = re.compile(r"(?<!\\)((?:\\\\)*)\|")
_LINK = re.compile(r"\[((?:\\.|[^\]\\])*)\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)")
_ESCAPED = re.compile(r"\\([\\`*\[\]|~#$_+=.)-])|\\(?=\d)")
_NUMBER = re.compile(r"(-?[\d,]+(?:\.\d+)?)(?: ± ([\d,]+(?:\.\d+)?))?(?: (%|B|kB|MB|GB|TB))?")
_UNITS = {None: 1.0, "%": 0.01, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True, slots=True)
class Read:
    """A printed figure: bytes, nats, fractions or tokens per second; ``half`` of its ± where there is one."""

    value: float
    half: float | None = None


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A line of the table. ``figures`` by column (:data:`bot.intake.repo_config.COLUMNS`), tasks by their title."""

    label: str
    figures: dict[str, Read]
    on_front: bool
    notes: str


@dataclass(frozen=True, slots=True)
class ReadPick:
    """A line of the 'which file?' table: ``files`` by label; several can't be told apart."""

    purpose: str
    files: tuple[str, ...]
    because: str


@dataclass(frozen=True, slots=True)
class ReadSection:
    """A section as it stands. Of a version that is newer than this reader only version, key and data are told."""

    version: int
    key: str | None
    verdict: str
    picks: tuple[ReadPick, ...]
    rows: tuple[ReadRow, ...]
    data: DataBlock | None


def read_section(card: str) -> ReadSection | None:
    """The section on a card, or None where it has none.

    Raises:
        CardError: its markers are damaged.
    """
    found = cards.find(card)
    if found is None:
        return None
    text = re.sub(r"\r\n?", "\n", card[found.start : found.end])
    data = decode(text)
    text = text.replace("\u00a0", " ")
    if found.version > cards.SECTION_VERSION:
        return ReadSection(found.version, found.key, "", (), (), data)
    lines = text.split("\n")
    picks = [cells for cells in _table(lines, "If you want")[1:] if len(cells) == 3]
    return ReadSection(
        version=found.version,
        key=found.key,
        verdict=_verdict(lines),
        picks=tuple(ReadPick(_plain(purpose), _files(files), _plain(why)) for purpose, files, why in picks),
        rows=tuple(_rows(_table(lines, "Quant"))),
        data=data,
    )


def _verdict(lines: Sequence[str]) -> str:
    """The first paragraph behind the heading, without its marks."""
    at = next((at for at, line in enumerate(lines) if line.startswith("## ")), None)
    if at is None:
        return ""
    told = next((line for line in lines[at + 1 :] if line.strip()), "")
    return "" if told.startswith(("|", "<", "!", ">")) else _plain(re.sub(r"(?<!\\)\*\*", "", told))


def _table(lines: Sequence[str], first: str) -> list[list[str]]:
    """The cells of the first table whose first column is called so: its head, then its lines."""
    at = next((at for at, line in enumerate(lines) if line.startswith(f"| {first} |")), None)
    if at is None or at + 1 >= len(lines) or not re.fullmatch(r"\|(?:-+:?\|)+", lines[at + 1]):
        return []
    found = [_split(lines[at])]
    for line in lines[at + 2 : at + 2 + _MOST_ROWS]:
        if not line.startswith("|"):
            break
        found.append(_split(line))
    return found


def _split(line: str) -> list[str]:
    marked = _CELLS.sub("\\1\0", line.strip())
    return [cell.strip() for cell in marked.strip("\0").split("\0")]


def _rows(table: Sequence[Sequence[str]]) -> list[ReadRow]:
    if not table:
        return []
    head, *lines = table
    names = [_name(title) for title in head[1:]]
    found = []
    for cells in lines:
        if len(cells) != len(head):
            continue
        told = list(zip(names, cells[1:], strict=True))
        notes = next((cell for name, cell in told if name is None), "")
        figures = {name: figure for name, cell in told if name is not None and (figure := _figure(cell))}
        label, mark = re.sub(r" ◆$", "", cells[0]), cells[0].endswith(" ◆")
        # In version 1 the mark stood before the notes.
        on_front = mark or notes == "◆" or notes.startswith("◆ · ")
        found.append(ReadRow(_plain(label), figures, on_front, _plain(re.sub(r"^◆(?: · )?", "", notes))))
    return found


def _name(title: str) -> str | None:
    """A column by its title; None: the notes."""
    if title in _NOTES:
        return None
    return next((name for name, pattern in _TITLES if pattern.fullmatch(title)), _plain(title))


def _figure(cell: str) -> Read | None:
    found = _NUMBER.match(cell)
    if not found:
        return None
    unit = _UNITS[found[3]]
    value, half = (float(text.replace(",", "")) * unit if text else None for text in (found[1], found[2]))
    return None if value is None else Read(value, half)


def _files(cell: str) -> tuple[str, ...]:
    return tuple(_unescaped(text) for text in _LINK.findall(cell))


def _plain(text: str) -> str:
    """A cell's text as it was before it was escaped; of links the text."""
    return _unescaped(_LINK.sub(lambda found: found[1], text))


def _unescaped(text: str) -> str:
    return html.unescape(_ESCAPED.sub(lambda found: found[1] or "", text))
