"""Badges: a small SVG that says what is measured of a repo or a variant. Pure; no script, nothing from elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bot.publish.render import distinct_labels
from core.dataset import DatasetRow
from core.format import significant
from core.verdict import CLOSE, NEAR

#: How far a variant lies from the original, by the verdict's limits.
Closeness = Literal["near", "close", "far"]
State = Literal["measured", "waiting", "no reference", "failed", "stale", "unknown"]

#: Background of the message; white text on each has a contrast of 4.5 to 1 or more.
COLOURS: dict[Closeness | State, str] = {
    "near": "#2e7d32",
    "close": "#8a6100",
    "far": "#b3261e",
    "measured": "#0b62a8",
    "waiting": "#5f6b76",
    "no reference": "#5f6b76",
    "failed": "#7a3b8f",
    "stale": "#5f6b76",
    "unknown": "#5f6b76",
}
LABEL_COLOUR = "#3c4248"
NAME = "quantcard"
_MAX_LABEL = 40
_PAD = 6.0
_FONT_SIZE = 11
#: Verdana's advance widths in thousandths of an em, ASCII from the space on; most systems draw badges in it.
_WIDTHS = (
    352, 394, 459, 818, 636, 1076, 727, 269, 454, 454, 636, 818, 364, 454, 364, 454, 636, 636, 636, 636, 636, 636, 636,
    636, 636, 636, 454, 454, 818, 818, 818, 545, 1000, 684, 686, 698, 771, 632, 575, 775, 751, 421, 455, 693, 557, 843,
    748, 787, 603, 787, 695, 684, 616, 732, 684, 989, 685, 615, 685, 454, 454, 454, 818, 636, 636, 601, 623, 521, 623,
    596, 352, 623, 633, 274, 344, 592, 274, 973, 633, 607, 623, 623, 427, 521, 394, 633, 592, 818, 592, 592, 525, 635,
    454, 635, 818,
)  # fmt: skip
_OTHER, _WIDE = 700, 1000


@dataclass(frozen=True, slots=True)
class Badge:
    """What a badge says: ``label`` on the left, ``message`` on the right, its colour by ``kind``."""

    label: str
    message: str
    kind: Closeness | State


UNKNOWN = Badge(NAME, "not measured yet", "unknown")


def closeness(row: DatasetRow) -> Closeness | None:
    """How close a quantized variant that was measured here is to the original; None where that is not known.

    The limits are the verdict's (:data:`core.verdict.NEAR`, :data:`core.verdict.CLOSE`).
    """
    if row.state != "measured" or row.kld_mean is None or row.same_top is None:
        return None
    if row.is_reference or row.quality_imported:
        return None
    if row.kld_mean <= NEAR[0] and row.same_top >= NEAR[1]:
        return "near"
    return "close" if row.kld_mean <= CLOSE[0] and row.same_top >= CLOSE[1] else "far"


def repo_badge(rows: Sequence[DatasetRow]) -> Badge:
    """The badge of a repo from its current rows; :data:`UNKNOWN` without any."""
    quants = [row for row in rows if not row.is_reference]
    measured = sum(row.kld_mean is not None and not row.quality_imported and row.state == "measured" for row in quants)
    if measured:
        return Badge(NAME, f"{measured} quant{'' if measured == 1 else 's'} measured", "measured")
    if not quants:
        return UNKNOWN
    states = [_state(row) for row in quants]
    for state, message in _MESSAGES.items():
        if state in states:
            return Badge(NAME, message, state)
    return Badge(NAME, "imported figures only", "stale")


#: What is said of a repo without a measured quant, the first that is true of one of them; of a variant likewise.
_MESSAGES: dict[State, str] = {
    "waiting": "waiting to be measured",
    "no reference": "no reference to measure against",
    "failed": "could not be measured",
    "stale": "figures are outdated",
}


def _state(row: DatasetRow) -> State:
    if row.state in ("failed", "stale"):
        return row.state
    if row.state == "no-reference":
        return "no reference"
    if row.kld_mean is not None:
        return "measured"
    return "no reference" if row.reference_key is None else "waiting"


def find_variant(rows: Sequence[DatasetRow], wanted: str) -> DatasetRow | None:
    """The row that somebody means by a label as the section shows it, a file's path, or a file's name.

    Exactly, else in either case; None where none fits, or several do.
    """
    shown = distinct_labels(rows)
    names = [(row.label, row.variant, row.first_file or row.variant, row.variant.rsplit("/", 1)[-1]) for row in shown]
    for fold in (str, str.casefold):
        for at in range(4):
            found = [row for row, name in zip(shown, names, strict=True) if fold(name[at]) == fold(wanted)]
            if len(found) == 1:
                return found[0]
    return None


def variant_badge(rows: Sequence[DatasetRow], wanted: str) -> Badge:
    """The badge of one variant (see :func:`find_variant`); :data:`UNKNOWN` where there is no such."""
    row = find_variant(rows, wanted)
    if row is None:
        return UNKNOWN
    state = _state(row)
    if state in _MESSAGES:
        return Badge(row.label, _MESSAGES[state], state)
    if row.is_reference:
        return Badge(row.label, "the original", "measured")
    kld = f"KLD {significant(max(row.kld_mean or 0.0, 0.0), 2)}"
    if row.quality_imported:
        return Badge(row.label, f"{kld} (imported)", "stale")
    return Badge(row.label, kld, closeness(row) or "measured")


def text_width(text: str) -> float:
    """About how wide a text is in pixels in the badge's font; ``textLength`` makes every font keep to it."""
    return sum(map(_width, text)) * _FONT_SIZE / 1000


def _width(char: str) -> int:
    at = ord(char) - 32
    if 0 <= at < len(_WIDTHS):
        return _WIDTHS[at]
    if unicodedata.combining(char):
        return 0
    return _WIDE if unicodedata.east_asian_width(char) in "WF" else _OTHER


def _shown(text: str) -> str:
    """Characters that can be seen and that XML takes, single spaces, not too many."""
    kept = "".join(c if c.isprintable() else " " for c in text if unicodedata.category(c) not in ("Cf", "Co", "Cs"))
    kept = " ".join(kept.split())
    return kept if len(kept) <= _MAX_LABEL else kept[: _MAX_LABEL - 1] + "…"


def _load(name: str) -> str:
    return files("templates").joinpath(name).read_text(encoding="utf-8")


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    loader=FunctionLoader(_load),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_badge(badge: Badge) -> str:
    """The badge as SVG, 20 pixels high; whatever its texts hold is text."""
    label, message = _shown(badge.label) or NAME, _shown(badge.message)
    widths = [round(text_width(text), 1) for text in (label, message)]
    left, right = (round(width + 2 * _PAD) for width in widths)
    return _ENVIRONMENT.get_template("badge.svg.j2").render(
        label=label,
        message=message,
        label_width=widths[0],
        message_width=widths[1],
        left=left,
        right=right,
        label_colour=LABEL_COLOUR,
        colour=COLOURS[badge.kind],
    )
