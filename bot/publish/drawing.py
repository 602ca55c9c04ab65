"""Draws plots as PNG: the same bytes for the same values, whatever the machine's fonts and matplotlib's settings.

On a light ground of its own, since a card is read in light and dark; blue and grey, and filled and hollow markers,
are told apart by everybody. The library is loaded when the first plot is drawn, without a display or a cache.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bot.publish.plot_files import MARK
from bot.publish.plot_labels import Box, Segment, leading, place
from bot.publish.plots import Picture, Point
from core.sandbox.scratch import scratch_folder

#: Pixels of a plot's width, and of its height by the number of names in it.
_WIDTH, _HEIGHTS = 1280, ((12, 960), (24, 1040), (10_000, 1280))
_DPI = 200
#: Pixels to the left of the plot proper.
_LEFT = 148
#: Points whose names are drawn; of more the front's first.
_MAX_NAMED = 48
#: Others' points among which names are no thicket yet.
_MAX_OTHERS_NAMED = 30
_GROUND, _INK, _MUTED, _GRID = "#f6f8fa", "#1f2328", "#57606a", "#d5dae0"
_BLUE, _OTHERS = "#0072b2", "#8c959f"
_SHAPES = ("s", "D", "^", "v", "P", "X")
#: Colours in the file: enough for smooth letters.
_COLOURS = 48
#: Matplotlib has global settings.
_LOCK = threading.Lock()


@functools.lru_cache(maxsize=32)
def draw(picture: Picture) -> bytes:
    """A picture as PNG with our mark."""
    matplotlib = _library()
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.usetex"] = False
        pixels = _Drawing(picture).pixels()
    from PIL import Image, PngImagePlugin

    image = Image.fromarray(pixels).quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    told, out = PngImagePlugin.PngInfo(), io.BytesIO()
    told.add_text(*MARK)
    image.save(out, "PNG", optimize=True, pnginfo=told)
    return out.getvalue()


@functools.cache
def _library() -> Any:
    """Matplotlib; its first import makes a list of fonts and looks for settings, which must not lie in the home."""
    name = "MPLCONFIGDIR"
    before = os.environ.get(name)
    with scratch_folder() as folder:
        os.environ[name] = str(folder)
        try:
            import matplotlib
            import matplotlib.backends.backend_agg
            import matplotlib.figure
            import matplotlib.font_manager
            import matplotlib.style

            # Asked once and remembered, so that nothing is made later where the home is.
            matplotlib.get_configdir()
            matplotlib.get_cachedir()
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
    return matplotlib


def _font(*, points: float, bold: bool = False) -> Any:
    """DejaVu Sans as matplotlib ships it."""
    matplotlib = _library()
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return matplotlib.font_manager.FontProperties(
        fname=str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size=points
    )


@functools.cache
def _known_characters() -> frozenset[int]:
    return frozenset(_library().font_manager.get_font(_font(points=8).get_file()).get_charmap())


def _legible(text: str) -> str:
    """A text without what the font has no letters for."""
    return "".join(c if ord(c) in _known_characters() else "?" for c in text)


class _Drawing:
    """One plot while it is drawn."""

    def __init__(self, picture: Picture) -> None:
        matplotlib = _library()
        self._picture = picture
        height = next(height for most, height in _HEIGHTS if len(picture.points) <= most)
        self._figure = matplotlib.figure.Figure(
            figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=_GROUND, edgecolor=_GRID, linewidth=1.5
        )
        self._canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(self._figure)
        self._height = height
        # The figure's parts from above: title, what is better, who is who, the name of the axis; below the other's.
        self._top = height - 178 - (46 if picture.others else 0)
        self._axes = self._figure.add_axes(
            (_LEFT / _WIDTH, 116 / height, 1 - (_LEFT + 40) / _WIDTH, (self._top - 116) / height)
        )
        self._named_size = next(s for most, s in ((12, 10.5), (24, 8.6), (10_000, 6.8)) if len(picture.points) <= most)

    def pixels(self) -> Any:
        """The picture, rows by columns by red, green and blue."""
        import numpy as np

        self._frame()
        lines = self._front()
        self._original()
        self._others()
        lines += self._bars()
        self._markers()
        self._names(lines)
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy()

    def _frame(self) -> None:
        axes, picture = self._axes, self._picture
        axes.set_facecolor(_GROUND)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_MUTED)
            axes.spines[side].set_linewidth(0.6)
        axes.set_yscale("log")
        points = self._all()
        axes.set_xlim(*self._x_range(points))
        low = min(min(p.y, (p.y_interval or (p.y,))[0] or p.y) for p in points)
        high = max(max(p.y, (p.y_interval or (p.y, p.y))[1]) for p in points)
        low, high = max(low, min(p.y for p in points) / 3), min(high, max(p.y for p in points) * 3)
        room = max(math.log10(high / low), 0.3)
        axes.set_ylim(low / 10 ** (0.07 * room), high * 10 ** (0.09 * room))
        axes.grid(True, which="major", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, pad=5)
        axes.minorticks_off()
        font = _font(points=9.2)
        y_ticks = log_ticks(*axes.get_ylim())
        axes.set_yticks(y_ticks, [f"{tick:.10f}".rstrip("0").rstrip(".") for tick in y_ticks])
        x_ticks = linear_ticks(*axes.get_xlim())
        axes.set_xticks(x_ticks, _counts(x_ticks) if picture.larger_is_better else _sizes(x_ticks))
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set(fontproperties=font, color=_MUTED, parse_math=False)
        self._text(_LEFT - 112, self._height - 62, picture.title, points=12.5, bold=True)
        self._text(_LEFT - 112, self._height - 104, _reading(picture), points=8.8, colour=_MUTED)
        self._text(_LEFT - 112, self._top + 20, picture.y_title, points=8.8, colour=_MUTED)
        self._text(_LEFT, 34, picture.x_title, points=9.0, colour=_MUTED)
        if bars := _bars_told(picture):
            self._text(_WIDTH - 40, 34, bars, points=8.4, colour=_MUTED).set_horizontalalignment("right")

    def _text(self, x: float, y: float, text: str, *, points: float, colour: str = _INK, bold: bool = False) -> Any:
        return self._figure.text(
            x / _WIDTH,
            y / self._height,
            _legible(text),
            fontproperties=_font(points=points, bold=bold),
            color=colour,
            parse_math=False,
        )

    def _all(self) -> list[Point]:
        return [*self._picture.points, *(p for _, theirs in self._picture.others for p in theirs)]

    def _x_range(self, points: Sequence[Point]) -> tuple[float, float]:
        low, high = min(p.x - p.x_half for p in points), max(p.x + p.x_half for p in points)
        if self._shown_original():
            low, high = min(low, self._picture.original or low), max(high, self._picture.original or high)
        spread = max(high - low, high / 10)
        middle = (low + high) / 2
        return max(0.0, min(low - 0.06 * spread, middle - 0.55 * spread)), max(
            high + 0.08 * spread, middle + 0.55 * spread
        )

    def _shown_original(self) -> bool:
        """Whether the original's speed is near enough that showing it squeezes nothing."""
        original = self._picture.original
        if original is None:
            return False
        low, high = min(p.x for p in self._picture.points), max(p.x for p in self._picture.points)
        return low - (high - low) <= original <= high + (high - low)

    def _front(self) -> list[Segment]:
        """A stair through the points that are not beaten, and where it runs in pixels."""
        picture = self._picture
        front = sorted((p for p in picture.points if p.front), key=lambda p: (p.x, -p.y))
        if len(front) < 2:
            return []
        where = "pre" if picture.larger_is_better else "post"
        xs, ys = [p.x for p in front], [p.y for p in front]
        self._axes.step(xs, ys, where=where, color=_BLUE, linewidth=1.1, alpha=0.55, zorder=2)
        found: list[Segment] = []
        for a, b in itertools.pairwise(front):
            corner = (a.x, b.y) if picture.larger_is_better else (b.x, a.y)
            (ax, ay), (cx, cy), (bx, by) = (self._at(*one) for one in ((a.x, a.y), corner, (b.x, b.y)))
            found += [(ax, ay, cx, cy), (cx, cy, bx, by)]
        return found

    def _original(self) -> None:
        if not self._shown_original():
            return
        original = self._picture.original
        self._axes.axvline(original, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)

    def _others(self) -> None:
        entries = []
        shapes = (*_SHAPES, *["."] * len(self._picture.others))
        for (owner, theirs), shape in zip(self._picture.others, shapes, strict=False):
            self._axes.plot(
                [p.x for p in theirs], [p.y for p in theirs], shape, color=_OTHERS, markersize=4.2, zorder=3, mew=0
            )
            entries.append((shape, owner))
        if not entries:
            return
        x, y = _LEFT - 112.0, self._height - 148.0
        for shape, owner in [("o", "this repo"), *entries]:
            text = self._text(x + 26, y - 8, owner, points=8.6, colour=_MUTED)
            width = text.get_window_extent(self._canvas.get_renderer()).width
            if x + 26 + width > _WIDTH - 90:
                text.set_text("…")
                return
            colour = _BLUE if owner == "this repo" and shape == "o" else _OTHERS
            line = _library().lines.Line2D(
                [(x + 8) / _WIDTH], [y / self._height], marker=shape, color=colour, markersize=5, mew=0, linestyle=""
            )
            self._figure.add_artist(line)
            x += 26 + width + 34

    def _bars(self) -> list[Segment]:
        found: list[Segment] = []
        low_edge = self._axes.get_ylim()[0]
        style = {"color": _BLUE, "linewidth": 0.9, "alpha": 0.6, "zorder": 3, "solid_capstyle": "butt"}
        for p in self._picture.points:
            spans = []
            if p.y_interval:
                spans.append(((p.x, max(p.y_interval[0], low_edge)), (p.x, p.y_interval[1])))
            if p.x_half:
                spans.append(((p.x - p.x_half, p.y), (p.x + p.x_half, p.y)))
            for a, b in spans:
                self._axes.plot([a[0], b[0]], [a[1], b[1]], **style)
                found.append((*self._at(*a), *self._at(*b)))
        return found

    def _markers(self) -> None:
        for front in (False, True):
            points = [p for p in self._picture.points if p.front is front]
            self._axes.plot(
                [p.x for p in points],
                [p.y for p in points],
                "o",
                color=_BLUE,
                markersize=5.2,
                markerfacecolor=_BLUE if front else _GROUND,
                markeredgewidth=1.2,
                zorder=4 + front,
            )

    def _names(self, lines: list[Segment]) -> None:
        named = sorted(self._picture.points, key=lambda p: not p.front)[:_MAX_NAMED]
        beyond = [p for p in self._picture.points if p not in named]
        theirs = [p for _, some in self._picture.others for p in some]
        frame = self._axes.get_window_extent(self._canvas.get_renderer())
        # To the right there is a margin without ticks.
        area = Box(frame.x0 + 4, frame.y0 + 4, _WIDTH - 14, frame.y1 + 8)
        taken = self._original_name(frame)
        for points, dots, colour, size_, far in (
            (named, [*beyond, *theirs], _INK, self._named_size, 700.0),
            # Others' names are told where there is room right beside them.
            (theirs if len(theirs) <= _MAX_OTHERS_NAMED else [], [*named, *beyond], _MUTED, 6.2, 18.0),
        ):
            if not points:
                continue
            texts = [self._text(0, 0, p.name, points=size_, colour=colour) for p in points]
            sizes = []
            for text in texts:
                extent = text.get_window_extent(self._canvas.get_renderer())
                sizes.append((extent.width + 2, extent.height + 2))
            spots = [self._at(p.x, p.y) for p in points]
            boxes = place(
                spots,
                sizes,
                area=area,
                lines=lines,
                besides=[self._at(p.x, p.y) for p in dots],
                taken=taken,
                far=far,
            )
            for text, box, spot in zip(texts, boxes, spots, strict=True):
                if box is None:
                    text.remove()
                    continue
                taken.append(box)
                text.set_position(((box.left + 1) / _WIDTH, (box.bottom + box.top) / 2 / self._height))
                text.set_verticalalignment("center_baseline")
                self._lead(spot, box)

    def _original_name(self, frame: Any) -> list[Box]:
        """Names the line of the original's speed; the box that this takes."""
        if not self._shown_original():
            return []
        x, _ = self._at(float(self._picture.original or 0), 1.0)
        text = self._text(x + 8, frame.y0 + 10, "the original", points=7.0, colour=_MUTED)
        extent = text.get_window_extent(self._canvas.get_renderer())
        return [Box(extent.x0 - 4, extent.y0 - 4, extent.x1 + 4, extent.y1 + 4)]

    def _lead(self, spot: tuple[float, float], box: Box) -> None:
        found = leading(spot, box)
        if found is None:
            return
        x, y, to_x, to_y = found
        start = 11 / math.hypot(to_x - x, to_y - y)
        xs, ys = [x + (to_x - x) * start, to_x], [y + (to_y - y) * start, to_y]
        line = _library().lines.Line2D(
            [x / _WIDTH for x in xs], [y / self._height for y in ys], color=_OTHERS, linewidth=0.6
        )
        self._figure.add_artist(line)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        """A value's place in pixels."""
        px, py = self._axes.transData.transform((x, y))
        return float(px), float(py)


def _reading(picture: Picture) -> str:
    """How to read it, in a line."""
    where, better = ("further right", "faster") if picture.larger_is_better else ("further left", "smaller")
    here = "in this repo" if picture.others else "here"
    return f"Lower and {where} is better. Filled: no other file {here} is both {better} and closer."


def _bars_told(picture: Picture) -> str:
    known = any(p.y_interval for p in picture.points)
    if any(p.x_half for p in picture.points):
        return "Bars: standard deviation, 95 % interval" if known else "Bars: standard deviation"
    return "Bars: 95 % intervals" if known else ""


def _counts(ticks: Sequence[float]) -> list[str]:
    return [f"{tick:,.10g}" for tick in ticks]


def _sizes(ticks: Sequence[float]) -> list[str]:
    """Sizes in one unit, with as many decimals as tell them apart."""
    at = min(max(int(math.log10(max(ticks[-1], 1)) // 3), 0), 4)
    shown = [tick / 1000**at for tick in ticks]
    decimals = next((n for n in range(9) if len({f"{one:.{n}f}" for one in shown}) == len(shown)), 9)
    step = shown[1] - shown[0] if len(shown) > 1 else 1.0
    decimals = max(decimals, next((n for n in range(9) if abs(round(step, n) - step) < step / 100), 0))
    return [f"{one:.{decimals}f} {('B', 'kB', 'MB', 'GB', 'TB')[at]}" for one in shown]


def linear_ticks(low: float, high: float, n: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 10) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers; where they are few also 3, or 2 and 5 times them, or even steps."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, enough in (((1,), 4), ((1, 3), 4), ((1, 2, 5), 3)):
        found = [m * 10.0**p for p in powers for m in factors if low <= m * 10.0**p <= high]
        if len(found) >= enough:
            return found
    return [tick for tick in linear_ticks(low, high) if tick > 0]
