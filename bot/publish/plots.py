"""What the plots of a section show: which points, what stands at them, and a sentence for those who can't see. Pure.

A plot's figures are a section's, so that it is another one only where :func:`bot.publish.section.section_key` is
another one too. Others' figures are drawn as known when a section is made; that they changed is no reason for a pull.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bot.intake.repo_config import RepoConfig
from bot.publish.plot_files import SIZE_PLOT, SPEED_PLOT, Plot
from bot.publish.ranking import distinct_labels, rank
from core.canonical import canonical_json
from core.dataset import DatasetRow
from core.format import significant, size
from core.verdict import Z95, Candidate, pareto

#: Fewer points than this tell nothing that the table does not.
MIN_POINTS = 3
#: Points of other uploaders that are drawn, those of the most files first.
MAX_OTHERS = 60
#: Characters of the sentence that stands for a plot.
MAX_ALT = 280
#: Names in it.
_NAMED = 5
_MAX_NAME, _MAX_OWNER = 28, 24
#: Characters that all names may begin with before they are left out.
_MAX_SHARED = 10


@dataclass(frozen=True, slots=True)
class Point:
    """A file in a plot; ``x_half``: half of the interval to both sides; ``y_interval``: from where to where."""

    name: str
    x: float
    y: float
    x_half: float = 0.0
    y_interval: tuple[float, float] | None = None
    front: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot as values: x (bytes, or tokens per second) against a KLD (nats) on a log axis.

    ``points`` of the repo, ``others`` by uploader. ``larger_is_better``: of x. ``original``: the x of what it was
    measured against, where that is to be shown.
    """

    path: str
    title: str
    x_title: str
    y_title: str
    points: tuple[Point, ...]
    others: tuple[tuple[str, tuple[Point, ...]], ...] = ()
    larger_is_better: bool = False
    original: float | None = None
    alt: str = ""

    @property
    def plot(self) -> Plot:
        """What the section says of it."""
        return Plot(self.path, self.alt)


def pictures(rows: Sequence[DatasetRow], config: RepoConfig, *, others: Sequence[DatasetRow] = ()) -> list[Picture]:
    """The plots of a repo's rows, as its owner wishes; none where there are too few points.

    Args:
        others: rows of other repos of the same base model; used where the owner wants them shown.
    """
    if config.plots is False:
        return []
    shown = others if config.plots == "others" else ()
    return [made for made in (_size_plot(rows, shown), _speed_plot(rows)) if made]


def plot_wish(rows: Sequence[DatasetRow], config: RepoConfig) -> str:
    """What a section's key has of a wish for plots: nothing where it is the usual one or nothing could be drawn."""
    if config.plots is True or not (_size_points(rows) or _speed_points(rows)):
        return ""
    return "others" if config.plots == "others" else "none"


def _ranked(rows: Sequence[DatasetRow]) -> list[DatasetRow]:
    """The quantized files that may be compared, under names that tell them apart, the smallest first."""
    found = [row for row, c in rank(distinct_labels(rows)).ranked if not c.is_reference]
    return sorted(found, key=lambda row: (row.size_bytes, row.variant, row.id))


def _size_points(rows: Sequence[DatasetRow]) -> list[tuple[DatasetRow, Point]]:
    found = [row for row in _ranked(rows) if _drawn(row.kld_p99_9) and row.size_bytes > 0]
    if len(found) < MIN_POINTS:
        return []
    names = _names([row.label for row in found])
    points = [
        Point(name, float(row.size_bytes), float(row.kld_p99_9 or 0), y_interval=_p99_9_interval(row))
        for row, name in zip(found, names, strict=True)
    ]
    return list(zip(found, _with_front(points), strict=True))


def _size_plot(rows: Sequence[DatasetRow], others: Sequence[DatasetRow]) -> Picture | None:
    pairs = _size_points(rows)
    if not pairs:
        return None
    points = [point for _, point in pairs]
    like, own = pairs[0][0], {row.variant_key for row in rows}
    beside = [
        row
        for row in others
        if (row.protocol_fingerprint, row.reference_key) == (like.protocol_fingerprint, like.reference_key)
        and not (row.is_reference or row.quality_imported or row.disputed or row.variant_key in own)
        and (row.state, row.owner != like.owner) == ("measured", True)
        and _drawn(row.kld_p99_9)
    ]
    theirs = _by_uploader(beside)
    return Picture(
        SIZE_PLOT,
        "99.9 % KLD against file size",
        "File size",
        "99.9 % KLD (nats, log scale)",
        tuple(points),
        theirs,
        alt=_alt("file size", "99.9 % KLD", points, theirs, lambda p: size(round(p.x)), "smaller"),
    )


def _by_uploader(rows: Sequence[DatasetRow]) -> tuple[tuple[str, tuple[Point, ...]], ...]:
    unique = {row.variant_key: row for row in sorted(rows, key=lambda row: (row.repo_id, row.variant), reverse=True)}
    counts = Counter(row.owner for row in unique.values())
    found: list[tuple[str, tuple[Point, ...]]] = []
    left = MAX_OTHERS
    for owner in sorted(counts, key=lambda one: (-counts[one], one)):
        theirs = sorted((r for r in unique.values() if r.owner == owner), key=lambda r: (r.size_bytes, r.id))[:left]
        left -= len(theirs)
        if theirs:
            names = _names([row.label for row in theirs])
            points = (
                Point(name, float(row.size_bytes), float(row.kld_p99_9 or 0))
                for name, row in zip(names, theirs, strict=True)
            )
            found.append((_cut(owner, _MAX_OWNER), tuple(points)))
    return tuple(found)


def _speed_points(rows: Sequence[DatasetRow]) -> list[tuple[DatasetRow, Point]]:
    """Points of the machine that timed the most files; speeds of two machines are not compared."""
    timed = [
        (row, machine)
        for row in _ranked(rows)
        if _drawn(row.kld_mean) and row.tg_ts and math.isfinite(row.tg_ts) and (machine := _machine(row))
    ]
    counts = Counter(machine for _, machine in timed)
    most = max(counts, key=lambda one: (counts[one], one), default="")
    found = [row for row, machine in timed if machine == most]
    if len(found) < MIN_POINTS:
        return []
    names = _names([row.label for row in found])
    points = [
        Point(name, float(row.tg_ts or 0), float(row.kld_mean or 0), _half(row.tg_ts_stddev), _mean_interval(row))
        for row, name in zip(found, names, strict=True)
    ]
    return list(zip(found, _with_front(points, larger_is_better=True), strict=True))


def _speed_plot(rows: Sequence[DatasetRow]) -> Picture | None:
    pairs = _speed_points(rows)
    if not pairs:
        return None
    points, machine = [point for _, point in pairs], _machine(pairs[0][0])
    original = next((row.tg_ts for row in rows if row.is_reference and _machine(row) == machine), None)
    n_gen = pairs[0][0].n_gen or 128
    return Picture(
        SPEED_PLOT,
        "Mean KLD against speed",
        f"Tokens per second writing {n_gen} tokens",
        "Mean KLD (nats, log scale)",
        tuple(points),
        larger_is_better=True,
        original=original if original and math.isfinite(original) else None,
        alt=_alt("speed", "Mean KLD", points, (), lambda p: f"{p.x:,.0f} tokens/s", "faster"),
    )


def _machine(row: DatasetRow) -> str:
    """The environment of a row's speeds; empty where it has none of ours."""
    if row.tg_ts is None or row.speed_imported:
        return ""
    found: Any = json.loads(row.speed_json).get("environment") if row.speed_json else None
    return canonical_json(found) if found else row.environment_json or ""


def _drawn(value: float | None) -> bool:
    """Whether a KLD has a place on a log axis."""
    return value is not None and math.isfinite(value) and value > 0


def _half(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) and value > 0 else 0.0


def _mean_interval(row: DatasetRow) -> tuple[float, float] | None:
    half = Z95 * _half(row.kld_stderr)
    return (row.kld_mean - half, row.kld_mean + half) if row.kld_mean is not None and half else None


def _p99_9_interval(row: DatasetRow) -> tuple[float, float] | None:
    """The 95 % interval by chunks, where the whole result is at hand."""
    found: Any = json.loads(row.quality_json) if row.quality_json else {}
    interval = (found.get("intervals") or {}).get("kld_p99_9") or {}
    low, high = (float(interval.get(end, math.nan)) for end in ("low", "high"))
    return (low, high) if 0 <= low <= high < math.inf else None


def _with_front(points: Sequence[Point], *, larger_is_better: bool = False) -> list[Point]:
    """The points with those marked that no other beats in both."""
    sign = -1 if larger_is_better else 1
    # Speeds are no sizes, but what beats what is the same rule.
    candidates = [Candidate(p.name, round(sign * p.x * 1000), p.y, 0.0, 0.0) for p in points]
    return [
        Point(p.name, p.x, p.y, p.x_half, p.y_interval, best)
        for p, best in zip(points, pareto(candidates), strict=True)
    ]


def _alt(
    x: str,
    y: str,
    points: Sequence[Point],
    others: Sequence[tuple[str, Sequence[Point]]],
    shown: Any,
    better: str,
) -> str:
    least, most = min(points, key=lambda p: (p.y, p.x)), max(points, key=lambda p: (p.y, p.x))
    front = [p.name for p in sorted(points, key=lambda p: (p.y, p.x)) if p.front]
    n_others = sum(len(theirs) for _, theirs in others)
    beside = f", and {n_others} of other uploaders in grey" if n_others else ""
    said = (
        f"{y} against {x} of {len(points)} files{beside}: from {least.name} ({shown(least)}, {significant(least.y)}) "
        f"to {most.name} ({shown(most)}, {significant(most.y)})"
    )
    for n in range(_NAMED, 0, -1):
        names = ", ".join(front[:n]) + (f" and {len(front) - n} more" if len(front) > n else "")
        whole = f"{said}; no file here is both {better} and closer than {names}."
        if len(whole) <= MAX_ALT:
            return whole
    return f"{said}."


def _names(labels: Sequence[str]) -> list[str]:
    """Labels that fit beside a point and still tell each other apart."""
    if len(common := _shared(labels)) > _MAX_SHARED:
        labels = [f"…{label[len(common) :]}" for label in labels]
    names = [_cut(label, _MAX_NAME) for label in labels]
    names = [
        name if names.count(name) == 1 else _cut(label, 2 * _MAX_NAME)
        for name, label in zip(names, labels, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({at + 1})" for at, name in enumerate(names)]


def _shared(labels: Sequence[str]) -> str:
    """What all labels begin with, up to where a part of a name ends."""
    first, last = min(labels), max(labels)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[: max(first.rfind(c, 0, common) for c in "-_. ") + 1]


def _cut(text: str, most: int) -> str:
    """Both ends of a text: names of files differ at either."""
    kept = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "?"
    head = most // 3
    return kept if len(kept) <= most else f"{kept[:head]}…{kept[len(kept) - (most - head - 1) :]}"
