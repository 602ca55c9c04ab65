"""Size against KLD as a plotly figure: a front per base model, protocol and environment, in any theme. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from core.verdict import Candidate, pareto
from space.data import Entry
from space.text import clean, esc, plural, significant, size

Figure = Literal["kld_mean", "kld_p99_9"]
TITLES: dict[str, str] = {"kld_mean": "Mean KLD (nats)", "kld_p99_9": "99.9 % KLD (nats)"}
#: More fronts than this in one picture are a thicket.
MAX_GROUPS = 8

#: Okabe and Ito's palette without its black and yellow: told apart by colour-blind people, seen on white and black.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D46")
_SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
#: Readable on white and on near-black; the page's CSS sharpens it to the theme's own text colour.
_INK, _RULE = "#7d8590", "rgba(125, 133, 144, 0.22)"


@dataclass(frozen=True, slots=True)
class Plot:
    """The figure (None where there is nothing to draw) and a sentence on what it shows and leaves out."""

    figure: Any | None
    caption: str


@dataclass(frozen=True, slots=True)
class _Point:
    entry: Entry
    value: float
    y: float

    @property
    def floored(self) -> bool:
        return self.value <= 0


def size_vs_kld(entries: Sequence[Entry], *, figure: Figure = "kld_mean") -> Plot:
    """Draw measured variants: size to the right, KLD up on a log axis, uploaders by colour and shape.

    The reference is left out (its KLD is the noise floor, close to no value on a log axis); a KLD of zero or
    less is drawn open at the lower edge, with its true value in the hover text.
    """
    usable = [e for e in entries if _value(e, figure) is not None and e.row.size_bytes > 0]
    measured = [e for e in usable if e.row.state == "measured" and not e.row.is_reference]
    if not measured:
        return Plot(None, "Nothing to plot: no measured file matches.")
    kept_groups = [g for g, _ in Counter(e.group for e in measured).most_common(MAX_GROUPS)]
    left_out = len({e.group for e in measured}) - len(kept_groups)
    kept = [e for e in measured if e.group in kept_groups]
    points = _points(kept, figure)

    drawing = go.Figure()
    for group in kept_groups:
        _front(drawing, [p for p in points if p.entry.group == group])
    counts = Counter(p.entry.row.owner for p in points)
    owners = sorted(counts, key=lambda owner: (-counts[owner], owner))
    named = _named(points)
    for i, owner in enumerate(owners):
        _uploader(drawing, owner, [p for p in points if p.entry.row.owner == owner], i, named)
    floor = _noise_floor(drawing, kept, points) if figure == "kld_mean" else ""
    _style(drawing, points, figure)
    return Plot(drawing, _caption(usable, points, left_out, floor))


def _value(entry: Entry, figure: Figure) -> float | None:
    value = entry.row.kld_mean if figure == "kld_mean" else entry.row.kld_p99_9
    return value if value is not None and math.isfinite(value) else None


def _points(entries: Sequence[Entry], figure: Figure) -> list[_Point]:
    values = [(e, value) for e in entries if (value := _value(e, figure)) is not None]
    positive = [value for _, value in values if value > 0]
    edge = min(positive) / 2 if positive else 1e-6
    return [_Point(e, value, value if value > 0 else edge) for e, value in values]


def _front(drawing: Any, points: Sequence[_Point]) -> None:
    """The Pareto front of one group by the figure that is drawn (it need not be the mean's)."""
    points = [p for p in points if p.entry.row.quality_imported is None]
    candidates = [
        Candidate(p.entry.row.label, p.entry.row.size_bytes, p.value, 0.0, p.entry.row.same_top or 0.0) for p in points
    ]
    on_front = [p for p, best in zip(points, pareto(candidates), strict=True) if best]
    on_front.sort(key=lambda p: (p.entry.row.size_bytes, -p.value))
    if len(on_front) > 1:
        drawing.add_trace(
            go.Scatter(
                x=[p.entry.row.size_bytes for p in on_front],
                y=[p.y for p in on_front],
                mode="lines",
                line={"color": _INK, "width": 1.5, "dash": "dot"},
                hoverinfo="skip",
                showlegend=False,
                name="Pareto front",
            )
        )


def _uploader(drawing: Any, owner: str, points: Sequence[_Point], i: int, named: set[int]) -> None:
    shape = _SHAPES[i % len(_SHAPES)]
    drawing.add_trace(
        go.Scatter(
            x=[p.entry.row.size_bytes for p in points],
            y=[p.y for p in points],
            mode="markers+text",
            text=[esc(p.entry.row.label, limit=20) if id(p) in named else "" for p in points],
            textposition="top right",
            textfont={"size": 10, "color": _INK},
            name=esc(owner, limit=40),
            marker={
                "color": _COLOURS[i % len(_COLOURS)],
                "size": 10,
                "symbol": [f"{shape}-open" if p.floored else shape for p in points],
                "line": {"width": 1.5 if any(p.floored for p in points) else 0.5, "color": _COLOURS[i % 7]},
            },
            customdata=[[_hover(p)] for p in points],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    )


def _named(points: Sequence[_Point]) -> set[int]:
    """Which points get their name beside them: the front's first, and only where no other name stands yet.

    Reckoned for a picture of 900 × 330 pixels; the hover text names every point anyway.
    """
    sizes = [p.entry.row.size_bytes for p in points]
    heights = [math.log10(p.y) for p in points]
    wide, high = max(sizes) - min(sizes) or 1, max(heights) - min(heights) or 1
    taken: list[tuple[float, float, str]] = []
    named = set()
    for p, height in sorted(zip(points, heights, strict=True), key=lambda pair: (not pair[0].entry.on_front, pair[1])):
        x = 900 * (p.entry.row.size_bytes - min(sizes)) / wide
        y = 330 * (height - min(heights)) / high
        label = p.entry.row.label
        # The same name twice in one cluster says nothing new.
        if all(abs(y - b) > (45 if label == other else 14) or abs(x - a) > 62 for a, b, other in taken):
            taken.append((x, y, label))
            named.add(id(p))
    return named


def _hover(point: _Point) -> str:
    row = point.entry.row
    below = " (drawn at the edge)" if point.floored else ""
    lines = [
        f"<b>{esc(row.label, limit=40)}</b>",
        esc(row.variant, limit=80),
        esc(row.repo_id, limit=80),
        f"{size(row.size_bytes)} · KLD {significant(point.value)}{below}",
        esc(clean(row.protocol_name, limit=40)),
        *(["imported, not ranked"] if row.quality_imported else []),
    ]
    return "<br>".join(lines)


def _noise_floor(drawing: Any, entries: Sequence[Entry], points: Sequence[_Point]) -> str:
    """A line at the highest noise floor where it lies in the picture; else a clause that says how low it is."""
    floors = [abs(e.row.noise_floor) for e in entries if e.row.noise_floor is not None]
    if not floors:
        return ""
    floor = max(floors)
    if floor > 0 and floor >= min(p.y for p in points) / 30:
        drawing.add_hline(
            y=floor,
            line={"color": _INK, "width": 1, "dash": "dash"},
            annotation={"text": "noise floor", "font": {"size": 10, "color": _INK}},
            annotation_position="bottom right",
        )
        return "The dashed line is the noise floor: the reference measured against itself."
    return f"The noise floor ({significant(floor)}) lies below the picture." if floor > 0 else "The noise floor is 0."


def _style(drawing: Any, points: Sequence[_Point], figure: Figure) -> None:
    sizes = [p.entry.row.size_bytes for p in points]
    ticks = _size_ticks(min(sizes), max(sizes))
    spread = max(max(sizes) - min(sizes), max(sizes) // 5)
    axis = {
        "gridcolor": _RULE, "zeroline": False, "linecolor": _RULE, "tickfont": {"size": 11},
        "fixedrange": True,  # no accidental zoom while scrolling on a phone
    }  # fmt: skip
    drawing.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _INK, "size": 12, "family": "system-ui, sans-serif"},
        margin={"l": 58, "r": 16, "t": 16, "b": 8},
        height=440,
        autosize=True,
        dragmode=False,
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": -0.16, "x": 0, "yanchor": "top", "font": {"size": 11}},
        xaxis={**axis, "title": {"text": "File size", "standoff": 8}, "tickvals": ticks,
            # Room for the last point's name on the right.
            "range": [min(sizes) - 0.06 * spread, max(sizes) + 0.12 * spread],
               "ticktext": [_tick(t) for t in ticks]},
        yaxis={**axis, "title": {"text": TITLES[figure]}, "type": "log", "exponentformat": "power",
               "dtick": "D2" if _decades(points) < 3.3 else 1},
    )  # fmt: skip


def _decades(points: Sequence[_Point]) -> float:
    values = [p.y for p in points]
    return math.log10(max(values) / min(values))


def _tick(n_bytes: int) -> str:
    number, unit = size(n_bytes).split()
    return f"{float(number):g} {unit}"


def _size_ticks(least: int, most: int, n: int = 6) -> list[int]:
    """Round numbers of bytes (1, 2 or 5 times a power of ten apart) from below ``least`` to above ``most``."""
    spread = max(most - least, most / 5, 1)
    raw = spread / n
    power = 10 ** math.floor(math.log10(raw))
    step = max(1, int(next(m * power for m in (1, 2, 5, 10) if m * power >= raw)))
    return list(range(least // step * step, most + step + 1, step))


def _caption(usable: Sequence[Entry], points: Sequence[_Point], left_out: int, floor: str) -> str:
    groups: dict[str, int] = defaultdict(int)
    for p in points:
        groups[p.entry.group] += 1
    parts = [
        f"{plural(len(points), 'file')}; lower and further left is better. Dotted: the Pareto front"
        + (" of each base model, protocol and environment." if len(groups) > 1 else ".")
    ]
    if any(e.row.is_reference for e in usable):
        parts.append("The reference is left out: its KLD is the noise floor.")
    if floor:
        parts.append(floor)
    if n := sum(p.floored for p in points):
        parts.append(f"{plural(n, 'file')} with a KLD of zero or less: drawn open, at the lower edge.")
    if left_out:
        parts.append(f"{plural(left_out, 'group')} more left out: choose a base model.")
    return " ".join(parts)
