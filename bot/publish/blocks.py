"""Which lines of a card stand at its top level, outside code and HTML: CommonMark's blocks, with GFM's tables. Pure.

No tree is built: of each line it is only asked which list items and quotes it stands in, and what it opens or ends
there (the specification's appendix, 'Phase 1: block structure'). The card's bytes stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")
#: List items and quotes in one another that are followed; markdown renderers stop as well.
_MAX_NESTING = 32

_HEADING = re.compile(r"#{1,6}(?: |$)")
_FENCE = re.compile(r"(`{3,}(?=[^`]*$)|~{3,})")
_UNDERLINE = re.compile(r"(?:=+|-+) *$")
_BREAK = re.compile(r"(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$")
_ITEM = re.compile(r"(?:[-+*]|(\d{1,9})[.)])(?= |$)")
#: A row of a table's second line, and a link definition: nothing else on its line.
_DELIMITERS = re.compile(r"\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$")
_DEFINITION = re.compile(r"\[(?:[^\[\]\\]|\\.)*[^ \[\]\\](?:[^\[\]\\]|\\.)*\]: *(?:<[^<>]*>|[^ <]\S*) *$")

#: HTML that ends with a string of its own, and not at a blank line: what begins it, what ends it.
_LITERAL = "script|pre|style|textarea"
_HTML = (
    (re.compile(rf"<(?:{_LITERAL})(?:[\s>]|$)", re.I), re.compile(rf"</(?:{_LITERAL})>", re.I)),
    (re.compile(r"<!--"), re.compile(r"-->")),
    (re.compile(r"<\?"), re.compile(r"\?>")),
    (re.compile(r"<![a-z]", re.I), re.compile(r">")),
    (re.compile(r"<!\[CDATA\["), re.compile(r"\]\]>")),
)
#: HTML that ends at a blank line; a tag alone on its line does not break into a paragraph.
_TAG = re.compile(
    r"</?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|"
    r"dir|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|legend|li|"
    r"link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|search|section|summary|table|tbody|td|tfoot|th|"
    r"thead|title|tr|track|ul)(?:\s|/?>|$)",
    re.I,
)
_ATTRIBUTE = r"(?>\s+[a-z_:][a-z0-9_.:-]*(?>\s*=\s*(?>[^\s\"'=<>`]+|'[^']*'|\"[^\"]*\"))?)"
_LONE_TAG = re.compile(rf"(?:<[a-z][a-z0-9-]*(?>{_ATTRIBUTE}*)\s*/?>|</[a-z][a-z0-9-]*\s*>)\s*$", re.I)

#: What is open within the innermost list item or quote: nothing, text, a table, a code fence, HTML of either kind.
_Leaf = Literal["", "text", "table", "fence", "literal", "html"]
_QUOTE = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line at the card's top level that is no code: where it starts, its text, its newline ("" at the card's end).

    ``heading``: it is one, with ``#``; ``raw``: it stands in HTML that ends at the next blank line.
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
    """(headings and lines of HTML at the top level behind offset ``start``, the offset of code never closed, or None).

    Args:
        marker: what a comment begins with that counts as closed on its own line, even if it was cut short.
    """
    scan = _Scan(marker)
    end = start
    for text, newline in _LINE.findall(card, start):
        start, end = end, end + len(text) + len(newline)
        scan.line(start, text, newline)
    return scan.lines, scan.unclosed


class _Scan:
    """What is open at a line's end.

    ``_inside`` holds the list items and quotes: the columns that an item's lines are indented by, or :data:`_QUOTE`.
    """

    def __init__(self, marker: str) -> None:
        self.lines: list[Line] = []
        self._marker = marker
        self._inside: list[int] = []
        self._leaf: _Leaf = ""
        self._ends = re.compile("")
        self._began = 0
        self._bare_item = False  # the innermost item has nothing in it yet
        self._header = ""  # the text's last line, which a table may begin with

    @property
    def unclosed(self) -> int | None:
        """Where code at the top level began that is still open; what stands in a list or a quote ends with it."""
        return self._began if self._leaf in ("fence", "literal") and not self._inside else None

    def line(self, start: int, line: str, newline: str) -> None:
        """Go on by a line."""
        if line[:1].isalpha() and not self._inside and self._leaf in ("", "text"):
            self._leaf, self._header = "text", line  # the common case
            return
        text = line.expandtabs(4).rstrip(" ")
        at, depth = self._matched(text)
        if depth == len(self._inside) and self._goes_on(text[at:]):
            raw = self._leaf == "html"
            heading = False
        else:
            heading = self._opens(start, text, at, depth)
            raw = self._leaf == "html"
        if not self._inside and self._leaf in ("", "html") and line[:1] in ("#", "<", " "):
            self.lines.append(Line(start, line, newline, heading, raw))

    def _matched(self, text: str) -> tuple[int, int]:
        """(where the line goes on within the items and quotes that it stands in, how many of those that are)."""
        at = 0
        for depth, width in enumerate(self._inside):
            indent = _indent(text, at)
            if width == _QUOTE:
                if indent > 3 or text[at + indent : at + indent + 1] != ">":
                    return at, depth
                at += indent + 1
                at += text[at : at + 1] == " "
            elif at + indent >= len(text):
                if self._bare_item and depth == len(self._inside) - 1:
                    return at, depth
            elif indent >= width:
                at += width
            else:
                return at, depth
        return at, len(self._inside)

    def _goes_on(self, rest: str) -> bool:
        """Whether a line is more of the code or HTML that is open; closes it where it ends."""
        match self._leaf:
            case "fence":
                if _indent(rest) <= 3 and self._ends.fullmatch(rest.lstrip(" ")):
                    self._close()
            case "literal":
                if self._ends.search(rest):
                    self._close()
            case "html":
                if not rest.strip(" "):
                    self._leaf = ""
            case _:
                return False
        return True

    def _close(self) -> None:
        # Not "": the line that ends code is none that may be a marker or a heading.
        self._leaf = "table"
        self._header = ""
