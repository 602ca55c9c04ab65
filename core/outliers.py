"""Figures that do not go with those of the same model's other files. Pure.

A file decides its own logits, and a machine elsewhere may tell what it likes: what stands out is measured again where
somebody else has the say, before it is told.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

#: Other files that say what is usual.
AT_LEAST = 4
#: ln(mean KLD) this far off the others' line stands out, at least; and in scatters of the others around it.
_LEAST, _SCATTERS = math.log(3.0), 4.0
#: Median absolute deviation to standard deviation, for a normal distribution.
_MAD = 1.4826


def stands_out(bpw: float, kld: float, others: Sequence[tuple[float, float]]) -> Literal["low", "high"] | None:
    """Whether a mean KLD is far lower or higher than the bits per weight lead one to expect.

    ln(mean KLD) falls about evenly with bits per weight; the line through the others is Theil and Sen's (the median
    of all slopes), which a few odd ones among them do not move.

    Args:
        others: (bits per weight, mean KLD in nats) of the same model's other quantized files.
    """
    points = [(one, math.log(value)) for one, value in others if value > 0]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] != a[0]]
    if len(points) < AT_LEAST or not slopes:
        return None
    slope = statistics.median(slopes)
    level = statistics.median(y - slope * x for x, y in points)
    scatter = _MAD * statistics.median(abs(y - slope * x - level) for x, y in points)
    off = (math.log(kld) if kld > 0 else -math.inf) - slope * bpw - level
    if abs(off) <= max(_LEAST, _SCATTERS * scatter):
        return None
    return "low" if off < 0 else "high"


def agree(one: float, stderr: float, other: float, other_stderr: float) -> bool:
    """Whether two runs gave the same mean KLD: within 2 %, or within three standard errors of their difference."""
    return abs(one - other) <= max(0.02 * max(one, other), 3 * math.hypot(stderr, other_stderr))
