"""Escaping for what we write into Markdown. Pure.

In templates every string is escaped unless it is :class:`Markup`, so that a file name can't become markup.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

from markupsafe import Markup

_SPECIAL = re.compile(r"([\\`*\[\]|~#$])")
_LONE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_WWW = re.compile(r"(?i)(www)\.")
#: What would begin a list, a heading's underline or a rule, were the text to stand at the beginning of a line.
_LEADING = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
_MAX = 300
_MAX_LINK = 80


def _one_line(text: str, most: int) -> str:
    """Printable characters only (no controls, no bidi or other invisible ones), single spaces, at most ``most``."""
    kept = "".join(c if c.isprintable() else " " for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))
    kept = " ".join(kept.split())
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def escape(text: str, *, most: int = _MAX) -> Markup:
    """``text`` as inert inline Markdown, fit for a table cell: no markup, HTML, mentions, newlines or bidi tricks."""
    kept = _one_line(text, most)
    kept = kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    kept = _SPECIAL.sub(r"\\\1", kept)
    kept = _LONE_UNDERSCORE.sub(r"\\_", kept)
    kept = _LEADING.sub(lambda found: f"{found[1]}\\" if found[1].isdigit() else f"\\{found[1]}", kept)
    # A mention notifies people, a bare address becomes a link: neither is a file name's to do.
    return Markup(_WWW.sub(r"\1&#46;", kept.replace("@", "&#64;").replace("://", ":&#47;&#47;")))


def code(text: str) -> Markup:
    """``text`` as inline code that it can't break out of."""
    kept = _one_line(text, _MAX).replace("|", "¦") or "–"
    fence = "`" * (max((len(run) for run in re.findall("`+", kept)), default=0) + 1)
    pad = " " if kept.startswith("`") or kept.endswith("`") else ""
    return Markup(f"{fence}{pad}{kept}{pad}{fence}")


def fenced(text: str, language: str) -> Markup | None:
    """``text`` as a fenced block, or None where it holds characters that would not be seen when it is copied."""
    if not all(line.isprintable() for line in text.split("\n")):
        return None
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def link(text: str, url: str) -> Markup:
    """A link whose text is escaped; ``url`` must be made with :func:`file_url` or be the operator's own."""
    shown = escape(text, most=_MAX_LINK) or Markup("unnamed")
    return Markup(f"[{shown}]({url})") if url else shown


def file_url(endpoint: str, repo_id: str, path: str) -> str:
    """The page of a file in a model repo."""
    return f"{endpoint}/{quote(repo_id, errors='replace')}/blob/main/{quote(path, safe='/', errors='replace')}"
