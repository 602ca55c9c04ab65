"""Foreign strings made harmless, figures made readable: the small functions under every table. Pure."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from datetime import UTC, datetime
from urllib.parse import quote

from core.verdict import Z95

#: What stands where there is no figure.
NONE = "–"

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_REPO = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
# Gradio renders gr.HTML through JS template strings and Handlebars, Markdown reads pipes, stars and backticks:
# as entities they are the same characters on the page and nothing to any of the three.
_TEMPLATE = str.maketrans({c: f"&#{ord(c)};" for c in "{}$`|*_[]~\\"})


def _visible(text: str) -> str:
    return "".join(c if unicodedata.category(c) not in _UNSEEN else ("\ufffd" if c > " " else " ") for c in text)


def clean(text: object, *, limit: int = 300) -> str:
    """``text`` on one line, without control and direction-changing characters (which can disguise a name)."""
    line = " ".join(_visible(str(text)[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _escaped(text: str) -> str:
    return html.escape(text, quote=True).translate(_TEMPLATE)


def esc(text: object, *, limit: int = 300) -> str:
    """A foreign string as text for HTML and Markdown alike: no tag, attribute, link or template survives."""
    return _escaped(clean(text, limit=limit))


def esc_block(text: str) -> str:
    """Like :func:`esc` for text whose lines and indents matter (JSON, a command): for a ``<pre>``."""
    return "\n".join(_escaped(_visible(line)) for line in text[:200_000].splitlines())


def repo_link(repo_id: str, hub_url: str, *, shown: str | None = None) -> str:
    """A link to a repo on the Hub; plain text where the id is not one."""
    name = esc(shown if shown is not None else repo_id)
    if not _REPO.match(repo_id):
        return name
    return f'<a href="{esc(hub_url)}/{quote(repo_id)}" target="_blank" rel="noopener nofollow">{name}</a>'


def size(n_bytes: int | None) -> str:
    """Bytes as the Hub shows them, in decimal units: ``4.37 GB``."""
    if n_bytes is None:
        return NONE
    value, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.{0 if unit == 'B' or value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def _scientific(value: float, decimals: int) -> str:
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with so many significant digits; powers of ten only where zeros would bury it."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return _scientific(value, digits - 1)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def interval(value: float | None, stderr: float | None, *, scale: float = 1, decimals: int | None = None) -> str:
    """``value ± its 95 % interval``, rounded where the interval begins: digits beyond it say nothing."""
    if value is None or not math.isfinite(value):
        return NONE
    value *= scale
    half = None if stderr is None or not math.isfinite(stderr) or stderr <= 0 else Z95 * stderr * scale
    if half is None:
        return significant(value) if decimals is None else f"{value:.{decimals}f}"
    if decimals is None:
        if abs(value) < 1e-4:
            return f"{_scientific(value, 1)} ± {_scientific(half, 0)}"
        exponent = math.floor(math.log10(half))
        decimals = max(0, -exponent + (1 if half / 10**exponent < 2.95 else 0))
    if round(half, decimals) == 0:
        return f"{value:.{decimals}f} ± <{10**-decimals:.{decimals}f}"
    return f"{value:.{decimals}f} ± {half:.{decimals}f}"


def speed(tokens_per_second: float | None) -> str:
    """Tokens per second: whole above a hundred."""
    if tokens_per_second is None or not math.isfinite(tokens_per_second):
        return NONE
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def percent(share: float | None, decimals: int = 1) -> str:
    """A fraction as a percentage."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def ago(then: datetime, now: datetime) -> str:
    """How long ago, in one unit: ``3 hours ago``."""
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = max(0, int((now - then).total_seconds()))
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            n = seconds // length
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"


def plural(n: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2 files``, ``1,234 files``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
