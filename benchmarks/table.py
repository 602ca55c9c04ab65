"""Rows of the benchmark's tables: paired samples, their ratios, targets and whether they are met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

HEADER = ("figure", "ours", "peer or limit", "ratio", "target", "met?")


class BenchError(Exception):
    """The benchmark can't go on; ``str()`` is the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that the issue sets: ``low`` <= value <= ``high``; ``text`` is how the table says it."""

    text: str
    high: float
    low: float = float("-inf")

    def met(self, value: float) -> bool:
        """Whether a value lies within; NaN does not."""
        return self.low <= value <= self.high


def at_most(limit: float, what: str = "") -> Target:
    """A ratio of at most ``limit``."""
    return Target(f"≤ {limit:g}{what}", limit)


def within(share: float) -> Target:
    """A ratio of 1 ± ``share``."""
    return Target(f"1 ± {share:g}", 1 + share, 1 - share)


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``value`` is what the target is held against (the ratio, unless said otherwise)."""

    figure: str
    ours: str
    limit: str = ""
    ratio: float | None = None
    target: Target | None = None
    value: float | None = None
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        judged = self.ratio if self.value is None else self.value
        return judged is not None and self.target.met(judged)

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands in the table, column by column."""
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}" if self.ratio >= 0.1 else f"{self.ratio:.5f}"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return self.figure, self.ours, self.limit, ratio, self.target.text if self.target else "", met

    def as_json(self) -> dict[str, Any]:
        """The row with its raw samples."""
        return {
            "figure": self.figure,
            "ours": self.ours,
            "limit": self.limit,
            "ratio": self.ratio,
            "target": self.target.text if self.target else None,
            "met": self.met,
            **self.samples,
        }


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """median(ours) / median(theirs)."""
    return statistics.median(ours) / statistics.median(theirs)


def median_of_ratios(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs; what a round's state of the machine does to both drops out."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def seconds(value: float) -> str:
    """A time in a readable unit."""
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def size(n_bytes: float) -> str:
    """Bytes in a readable unit (decimal)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}" if n_bytes < 100 * scale else f"{n_bytes / scale:,.0f} {unit}"
    return f"{n_bytes:.0f} B"


def paired(
    figure: str, ours: Sequence[float], theirs: Sequence[float], target: Target | None = None, *, limit: str
) -> Row:
    """A row of times (seconds) of paired rounds: both medians and the median of the rounds' ratios.

    Args:
        limit: what theirs is, in a word or two.
    """
    return _compared(figure, ours, theirs, target, limit=limit, show=seconds, unit="s")


def peaks(figure: str, ours: Sequence[int], theirs: Sequence[int], target: Target | None = None, *, limit: str) -> Row:
    """A row of peak memories (bytes) of paired rounds."""
    return _compared(figure, ours, theirs, target, limit=limit, show=size, unit="bytes")


def _compared(
    figure: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    target: Target | None,
    *,
    limit: str,
    show: Callable[[float], str],
    unit: str,
) -> Row:
    return Row(
        figure,
        show(statistics.median(ours)),
        f"{limit}: {show(statistics.median(theirs))}",
        median_of_ratios(ours, theirs),
        target,
        samples={f"ours_{unit}": list(ours), f"limit_{unit}": list(theirs)},
    )


def render(title: str, rows: Sequence[Row]) -> str:
    """A Markdown table under its title."""
    lines = [
        f"### {title}",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|--:|--:|--:|--:|---|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
