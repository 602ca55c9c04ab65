"""Two figures with separate standard errors: what differs, how sure that is, and the sentence. Pure.

For variants whose tokens are not at hand. The errors are taken as independent, though both come of the same text: this
rather calls two files equal than one of them better. :mod:`core.pairs` sees more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.pairs import ALPHA, number, p_text
from core.verdict import Z95


@dataclass(frozen=True, slots=True)
class Gap:
    """A − B with its 95 % interval and two-sided p (normal); without both errors neither is known."""

    a: float
    b: float
    low: float | None
    high: float | None
    p_value: float | None

    @property
    def difference(self) -> float:
        """A − B."""
        return self.a - self.b

    @property
    def measurable(self) -> bool:
        """Whether chance is ruled out."""
        return self.p_value is not None and self.p_value < ALPHA


def gap(a: float, a_stderr: float | None, b: float, b_stderr: float | None) -> Gap:
    """The difference of two figures."""
    if a_stderr is None or b_stderr is None:
        return Gap(a, b, None, None, None)
    error = math.hypot(a_stderr, b_stderr)
    if error == 0:
        return Gap(a, b, a - b, a - b, 1.0 if a == b else 0.0)
    half = Z95 * error
    return Gap(a, b, a - b - half, a - b + half, math.erfc(abs(a - b) / error / math.sqrt(2)))


def sentence(one: str, other: str, kld: Gap) -> str:
    """The comparison of two mean KLDs in plain words; the names as they are given."""
    if kld.low is None or kld.high is None or kld.p_value is None:
        return f"Whether {one} and {other} differ can't be told: their figures came without errors."
    half = (kld.high - kld.low) / 2
    amount, low, high = (number(value, half) for value in (kld.difference, kld.low, kld.high))
    if not kld.measurable:
        return (
            f"No measurable difference by their separate intervals: the mean KLD of {one} less that of {other} is "
            f"{amount} (95 % interval {low} to {high}, {p_text(kld.p_value)})."
        )
    better, worse = (one, other) if kld.difference < 0 else (other, one)
    least, most = sorted((abs(kld.low), abs(kld.high)))
    return (
        f"{better} is closer to the reference than {worse}: its mean KLD is {number(abs(kld.difference), half)} lower "
        f"(95 % interval {number(least, half)} to {number(most, half)}, {p_text(kld.p_value)}, by their separate "
        "intervals)."
    )
