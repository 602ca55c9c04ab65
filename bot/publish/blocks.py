"""Which lines of a card are headings or HTML at its top level, outside code: CommonMark's blocks, GFM's tables. Pure.

No tree is built: of each line it is only asked which list items and quotes it stands in, and what it opens or ends
there (the specification's appendix, 'block structure'). What is open in an item or a quote ends with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
#: List items and quotes within one another that are followed; renderers stop somewhere as well.
_MAX_NESTING = 32

_SPACES = re.compile(" *")
_HEADING = re.compile(r"#{1,6}(?: |$)")
_FENCE = re.compile(r"`{3,}(?=[^`]*$)|~{3,}")
_UNDERLINE = re.compile(r"(?:=+|-+)$")
_BREAK = re.compile(r"(?:(?:\* *){3,}+|(?:- *){3,}+|(?:_ *){3,}+)$")
_ITEM = re.compile(r"(?:[-+*]|(\d{1,9})[.)])(?= |$)")
#: The second line of a table; a link's definition, which is no text that an underline could make a heading.
_DELIMITERS = re.compile(r"(?!- )\|? *:?-+:? *(?:\| *:?-+:? *)*\|?$")
_DEFINITION = re.compile(r"\[[^\[\]]*[^\[\]\s][^\[\]]*\]: *\S+$")

#: HTML that ends with a string of its own, also behind blank lines: what begins it, and what ends it.
_LITERAL = "script|pre|style|textarea"
_HTML = (
    (re.compile(rf"<(?:{_LITERAL})(?:[\s>]|$)", re.I), re.compile(rf"</(?:{_LITERAL})>", re.I)),
    (re.compile(r"<!--"), re.compile(r"-->")),
    (re.compile(r"<\?"), re.compile(r"\?>")),
    (re.compile(r"<![a-z]", re.I), re.compile(r">")),
    (re.compile(r"<!\[CDATA\["), re.compile(r"\]\]>")),
)
#: HTML that ends at a blank line; a tag alone on its line only where no text goes before it.
_TAG = re.compile(
    r"</?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|"
    r"dir|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|legend|li|"
    r"link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|search|section|summary|table|tbody|td|tfoot|th|"
    r"thead|title|tr|track|ul)(?:\s|/?>|$)",
    re.I,
)
_ATTRIBUTE = r"\s+[a-z_:][a-z0-9_.:-]*+(?:\s*=\s*(?>[^\s\"'=<>`]+|'[^']*'|\"[^\"]*\"))?"
_LONE_TAG = re.compile(rf"<(?:[a-z][a-z0-9-]*+(?:{_ATTRIBUTE})*+\s*/?|/[a-z][a-z0-9-]*+\s*)>\s*$", re.I)

#: What is open: nothing, text, a table, a fence, HTML with an end of its own, HTML that ends at a blank line.
_Leaf = Literal["", "text", "table", "fence", "literal", "html"]
#: A quote among the widths of list items.
_QUOTE = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A heading (with ``#``) or a line of HTML at the card's top level; ``newline`` is "" at the card's end.

    ``raw``: it stands in HTML that goes on until a blank line, where no Markdown is read.
    """

    start: int
    text: str
    newline: str
    heading: bool
    raw: bool

    @property
    def end(self) -> int:
        """Offset behind its newline."""
        return self.start + len(self.text) + len(self.newline)


def top_lines(card: str, start: int, *, marker: str) -> tuple[list[Line], int | None]:
    """(headings and lines of HTML behind offset ``start``, the offset of code or HTML that is never closed, or None).

    Args:
        marker: what a comment begins with that counts as closed on its line, even if it was cut short.
    """
    scan = _Scan(marker)
    end = start
    for text, newline in _LINE.findall(card, start):
        start, end = end, end + len(text) + len(newline)
        scan.line(start, text, newline)
    return scan.lines, scan.unclosed


class _Scan:
    """What is open behind the lines so far: quotes and list items (by width, the columns of their text), and a leaf."""

    def __init__(self, marker: str) -> None:
        self.lines: list[Line] = []
        self._marker = marker
        self._inside: list[int] = []
        self._bare_item = False  # the innermost item has nothing in it yet
        self._leaf: _Leaf = ""
        self._began = 0  # of a fence or HTML: where, and what ends it
        self._ends = _SPACES
        self._last = ""  # the last line of a text, which may be a table's head
        self._defines = False  # of a text: it holds nothing but a link's definition

    @property
    def unclosed(self) -> int | None:
        """Where code or HTML began that nothing ends."""
        return self._began if self._leaf in ("fence", "literal") and not self._inside else None

    def line(self, start: int, line: str, newline: str) -> None:
        """Go on by a line."""
        if self._leaf in ("", "text") and not self._inside and (not line or line[0].isalpha()):
            self._leaf, self._last, self._defines = "text" if line else "", line, False  # the common cases
            return
        text = line.expandtabs(4).rstrip(" ")
        at, depth = self._matched(text)
        if depth == len(self._inside) and self._leaf in ("fence", "literal"):
            rest = text[at:]
            if self._ends.match(rest) if self._leaf == "fence" else self._ends.search(rest):
                self._leaf = ""
            return
        heading = False
        if at >= len(text):
            self._leave(depth)
            self._bare_item = False
        elif depth < len(self._inside) or self._leaf != "html":
            heading = self._open(start, line, text, at, depth)
        if not self._inside and (heading or (line[:1] == "<" and self._leaf in ("", "html"))):
            self.lines.append(Line(start, line, newline, heading, self._leaf == "html"))

    def _matched(self, text: str) -> tuple[int, int]:
        """(where the line goes on behind the marks of what it stands in, how many items and quotes that are)."""
        at = 0
        for depth, width in enumerate(self._inside):
            indent = _indent(text, at)
            if width == _QUOTE:
                if indent > 3 or not text.startswith(">", at + indent):
                    return at, depth
                at = _behind_quote(text, at + indent)
            elif at + indent >= len(text):
                if self._bare_item and depth == len(self._inside) - 1:
                    return at, depth
            elif indent >= width:
                at += width
            else:
                return at, depth
        return at, len(self._inside)

    def _leave(self, depth: int) -> None:
        """End what is open, but for the outer items and quotes."""
        del self._inside[depth:]
        self._leaf = ""

    def _open(self, start: int, line: str, text: str, at: int, depth: int) -> bool:
        """Take a line that is no more of a fence or of HTML, from offset ``at`` on; whether it is a heading."""
        here = depth == len(self._inside)
        if not here and self._leaf != "text":
            self._leave(depth)
        self._bare_item = False
        while True:
            indent = _indent(text, at)
            at += indent
            if indent > 3:
                if self._leaf != "text":
                    self._leave(depth)  # indented code
                self._last = ""
                return False
            in_text = here and self._leaf == "text"
            if in_text and self._in_text(text, at):
                return False
            if _BREAK.match(text, at):
                self._leave(depth)
                return False
            behind = self._item_or_quote(text, at, indent, depth, in_text=in_text)
            if behind is None:
                break
            at, depth, here = behind, len(self._inside), True
            if at >= len(text):
                return False
        return self._leaf_of(start, line, text, at, depth, here=here)

    def _in_text(self, text: str, at: int) -> bool:
        """Whether a line makes a table of the text's last line, or a heading of it all."""
        if _DELIMITERS.match(text, at) and "|" in self._last and _cells(self._last) == _cells(text[at:]):
            self._leaf = "table"
            return True
        if not self._defines and _UNDERLINE.match(text, at):
            self._leaf = ""
            return True
        return False

    def _item_or_quote(self, text: str, at: int, indent: int, depth: int, *, in_text: bool) -> int | None:
        """Enter the quote or the list item that begins here: where its own text begins, or None."""
        if len(self._inside[:depth]) >= _MAX_NESTING:
            return None
        if text.startswith(">", at):
            self._leave(depth)
            self._inside.append(_QUOTE)
            return _behind_quote(text, at)
        item = _ITEM.match(text, at)
        if not item or (in_text and (item.end() >= len(text) or item[1] not in (None, "1"))):
            return None
        self._leave(depth)
        gap = _indent(text, item.end())
        self._bare_item = item.end() >= len(text)
        # Code may begin an item: then one space is the item's and the others are the code's.
        behind = item.end() + (gap if 1 <= gap <= 4 else 1)
        self._inside.append(indent + behind - at)
        return behind

    def _leaf_of(self, start: int, line: str, text: str, at: int, depth: int, *, here: bool) -> bool:
        """Take what a line says within its items and quotes; whether it is a heading."""
        if _HEADING.match(text, at):
            self._leave(depth)
            return True
        if fence := _FENCE.match(text, at):
            self._leave(depth)
            self._leaf, self._began = "fence", start
            self._ends = re.compile(rf" {{0,3}}{fence[0][0]}{{{len(fence[0])},}}$")
            return False
        for begins, ends in _HTML:
            if begins.match(text, at):
                self._leave(depth)
                if not ends.search(text, at) and not line.startswith(self._marker):
                    self._leaf, self._began, self._ends = "literal", start, ends
                return False
        if _TAG.match(text, at) or (self._leaf not in ("text", "table") and _LONE_TAG.match(text, at)):
            self._leave(depth)
            self._leaf = "html"
        elif self._leaf == "text":
            # Text goes on, even where it is not indented or quoted as its item or quote asks for.
            self._last, self._defines = text[at:] if here else "", False
        elif self._leaf != "table":
            self._leave(depth)
            self._leaf, self._last = "text", text[at:]
            self._defines = _DEFINITION.match(text, at) is not None
        return False


def _indent(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    return found.end() - at if found else 0


def _behind_quote(text: str, at: int) -> int:
    """Offset behind a ``>`` and the space that belongs to it."""
    return at + (2 if text.startswith(" ", at + 1) else 1)


def _cells(row: str) -> int:
    """Cells of a table's row: an escaped pipe is text."""
    parts = re.split(r"(?<!\\)\|", row.strip())
    return len(parts) - (not parts[0]) - (len(parts) > 1 and not parts[-1])
