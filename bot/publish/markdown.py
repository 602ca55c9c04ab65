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
_MAX = 300


def escape(text: str) -> Markup:
    """``text`` as inert inline Markdown, fit for a table cell: no markup, HTML, mentions, newlines or bidi tricks."""
    kept = "".join(c if c.isprintable() else " " for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))
    kept = " ".join(kept.split())
    kept = kept if len(kept) <= _MAX else kept[: _MAX - 1] + "…"
    kept = kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    kept = _SPECIAL.sub(r"\\\1", kept)
    kept = _LONE_UNDERSCORE.sub(r"\\_", kept)
    # A mention notifies people, a bare address becomes a link: neither is a file name's to do.
    return Markup(kept.replace("@", "&#64;").replace("://", ":&#47;&#47;").replace("www.", "www&#46;"))


def code(text: str) -> Markup:
    """``text`` as inline code that it can't break out of."""
    kept = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("|", "¦")
    fence = "`" * (max((len(run) for run in re.findall("`+", kept)), default=0) + 1)
    pad = " " if kept.startswith("`") or kept.endswith("`") else ""
    return Markup(f"{fence}{pad}{kept}{pad}{fence}")


def link(text: str, url: str) -> Markup:
    """A link whose text is escaped; ``url`` must be made with :func:`file_url` or be the operator's own."""
    return Markup(f"[{escape(text)}]({url})") if url else escape(text)


def file_url(endpoint: str, repo_id: str, path: str) -> str:
    """The page of a file in a model repo."""
    return f"{endpoint}/{quote(repo_id)}/blob/main/{quote(path, safe='/')}".replace("(", "%28").replace(")", "%29")
