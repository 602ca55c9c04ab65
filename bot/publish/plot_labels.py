"""Where names stand in a plot: beside their points, on nothing else, the same for the same points. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Pixels between a point's middle and its name, and how far away a name may stand.
_NEAR, _STEP, _FAR = 16.0, 14.0, 700.0
#: Pixels from which on a line leads from the point to its name.
LEADS_FROM = 30.0
#: Directions in which a name is tried; the upper right first, where a falling front leaves room.
_DIRECTIONS = tuple(
    (math.cos(math.radians(a)), math.sin(math.radians(a)))
    for a in (45, 0, 67, 22, 90, 135, 180, 112, 157, -22, -45, -67, -90, -112, -135, -157)
)
#: What it costs, in pixels of distance: a direction further down the list, a point or a line under a name, and a line
#: to a name across another name, another such line, or a point.
_DIRECTION, _POINT, _LINE, _CROSSED, _TANGLED = 2.0, 300.0, 90.0, 150.0, 60.0
_ROUNDS = 3

Segment = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box, *, by: float = 0.0) -> bool:
        """Whether two boxes share more than an edge; ``by``: with so much room between them."""
        return (
            self.left < other.right + by
            and other.left < self.right + by
            and self.bottom < other.top + by
            and other.bottom < self.top + by
        )

    def within(self, other: Box) -> bool:
        """Whether it lies in another one."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Its point nearest to another one."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    area: Box,
    lines: Sequence[Segment] = (),
    besides: Sequence[tuple[float, float]] = (),
    taken: Sequence[Box] = (),
    radius: float = 9.0,
    far: float = _FAR,
) -> list[Box | None]:
    """A box for each point's name (width, height in pixels), none of which overlap; None where there is no room.

    Args:
        lines: what had better not be written upon.
        besides: other points without names.
        taken: boxes where nothing may stand.
        radius: of a point's marker.
        far: how far from its point a name may stand.
    """
    markers = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in (*points, *besides)]
    found: list[Box | None] = [None] * len(points)
    # Where it is crowded the first ones choose; the later rounds mend what that spoiled for others.
    crowd = [sum(abs(x - a) < 120 and abs(y - b) < 60 for a, b in points) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: (-crowd[i], points[i]))
    for _ in range(_ROUNDS):
        before = list(found)
        for i in order:
            others = [(points[j], box) for j, box in enumerate(found) if box is not None and j != i]
            room = _Room(
                area=area,
                markers=[marker for j, marker in enumerate(markers) if j != i],
                boxes=[*(box for _, box in others), *taken],
                lines=lines,
                leads=[lead for point, box in others if (lead := leading(point, box))],
            )
            found[i] = _best(points[i], sizes[i], room, far)
        if found == before:
            break
    return found


@dataclass(frozen=True, slots=True)
class _Room:
    """What a name finds where it is to stand: the area, and what is there already."""

    area: Box
    markers: Sequence[Box]
    boxes: Sequence[Box]
    lines: Sequence[Segment]
    leads: Sequence[Segment]

    def cost(self, point: tuple[float, float], box: Box) -> float:
        """What it costs to stand there, besides the distance; infinite where another name is."""
        if not box.within(self.area) or any(box.overlaps(other, by=3.0) for other in self.boxes):
            return math.inf
        cost = _POINT * sum(box.overlaps(marker) for marker in self.markers)
        cost += _LINE * sum(crosses(line, box) for line in self.lines)
        cost += _CROSSED * sum(crosses(lead, box) for lead in self.leads)
        if own := leading(point, box):
            cost += _CROSSED * sum(crosses(own, other) for other in self.boxes)
            cost += _TANGLED * sum(crosses(own, marker) for marker in self.markers)
            cost += _TANGLED * sum(_cross(own, other) for other in self.leads)
        return cost


def leading(point: tuple[float, float], box: Box) -> Segment | None:
    """The line from a point to its name, where that stands so far away that one is needed."""
    x, y = box.nearest(*point)
    return (*point, x, y) if math.hypot(x - point[0], y - point[1]) >= LEADS_FROM else None


def _best(point: tuple[float, float], size: tuple[float, float], room: _Room, far: float) -> Box | None:
    best, least = None, math.inf
    for away, penalty, box in _candidates(point, size, far):
        if away >= least:
            break
        cost = away + penalty + room.cost(point, box)
        if cost < least:
            best, least = box, cost
    return best


def _candidates(
    point: tuple[float, float], size: tuple[float, float], far: float
) -> Iterator[tuple[float, float, Box]]:
    """(distance, cost of the direction, box), the nearest first."""
    (x, y), (width, height) = point, size
    away = _NEAR
    while away <= far:
        for rank, (dx, dy) in enumerate(_DIRECTIONS):
            # Straight above it is centred; at an angle its nearest corner leads.
            cx = x + away * dx + min(max(1.5 * dx, -1), 1) * width / 2
            cy = y + away * dy + min(max(1.5 * dy, -1), 1) * height / 2
            yield away, _DIRECTION * rank, Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        away += _STEP


def crosses(line: Segment, box: Box) -> bool:
    """Whether a line enters a box (Liang and Barsky)."""
    x, y, to_x, to_y = line
    dx, dy = to_x - x, to_y - y
    start, end = 0.0, 1.0
    for p, q in ((-dx, x - box.left), (dx, box.right - x), (-dy, y - box.bottom), (dy, box.top - y)):
        if p == 0:
            if q <= 0:
                return False
            continue
        at = q / p
        if p < 0:
            start = max(start, at)
        else:
            end = min(end, at)
    return start < end


def _cross(a: Segment, b: Segment) -> bool:
    """Whether two lines cross."""

    def side(line: Segment, x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return side(a, *b[:2]) * side(a, *b[2:]) < 0 and side(b, *a[:2]) * side(b, *a[2:]) < 0
