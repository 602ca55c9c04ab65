"""Files to be compared with one another: their figures with intervals, and who is measurably closer. Pure.

Every comparison is between 95 % intervals (by chunk where they are known), or of the two files on the same tokens
where that was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

#: Speeds closer than this share are never called different: loading the same file anew moves them as much.
SAME_SPEED = 0.02

#: Whether one file is closer (-1), the other (1), or neither measurably (0), on the same tokens; None: not known.
Pairs = Callable[[str, str], int | None]
Limits = tuple[float, float]
Answer = Literal["yes", "no", "unsure"]


def no_pairs(_one: str, _other: str) -> int | None:
    """Where no tokens are kept."""
    return None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second; ``half`` of its 95 % interval is None for a single repetition."""

    value: float
    half: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A measured quantized file. ``label`` is put into the texts as it is; ``key`` is what picks name.

    Args:
        kld: mean KLD in nats; ``tail``: the 99.9 % KLD where its interval is known.
        top: same top p, a fraction.
        prompt: speed at reading, ``gen`` at writing, where it may be compared with the others'.
        need: bytes of memory at :data:`bot.publish.verdict.CONTEXT` tokens.
    """

    key: str
    label: str
    size_bytes: int
    kld: Figure
    top: Figure
    tail: Figure | None = None
    prompt: Rate | None = None
    gen: Rate | None = None
    need: int | None = None


def sign(a: Figure, b: Figure) -> int:
    """-1: ``a`` is measurably lower, 1: ``b`` is, 0: their difference lies within its 95 % interval.

    The two errors are taken as independent, so this rather calls two figures equal than one of them lower.
    """
    low, high = (a, b) if a.value <= b.value else (b, a)
    if high.value - low.value <= math.hypot(low.high - low.value, high.value - high.low):
        return 0
    return -1 if low is a else 1


def within(one: Entry, limits: Limits) -> Answer:
    """Whether mean KLD and same top p keep to the limits; unsure where an interval reaches across one."""
    if one.kld.high <= limits[0] and one.top.low >= limits[1]:
        return "yes"
    return "no" if one.kld.low > limits[0] or one.top.high < limits[1] else "unsure"


class Field:
    """All files, the smallest first, and how any two compare: -1, 0 or 1 as the first, neither or the second wins."""

    def __init__(self, entries: list[Entry], pairs: Pairs) -> None:
        self.all = entries
        self._pairs = pairs

    def kld(self, a: Entry, b: Entry) -> int:
        """By mean KLD."""
        paired = self._pairs(a.key, b.key)
        return sign(a.kld, b.kld) if paired is None else paired

    @staticmethod
    def tail(a: Entry, b: Entry) -> int:
        """By 99.9 % KLD; neither where an interval is not known."""
        return sign(a.tail, b.tail) if a.tail and b.tail else 0

    @staticmethod
    def top(a: Entry, b: Entry) -> int:
        """By same top p."""
        return -sign(a.top, b.top)

    def beats(self, a: Entry, b: Entry) -> bool:
        """Whether ``a`` is measurably closer, and by no metric farther."""
        return self.kld(a, b) < 0 and self.tail(a, b) <= 0 and self.top(a, b) <= 0

    def closest(self, among: Sequence[Entry]) -> list[Entry]:
        """The closest, and all that it does not beat."""
        if not among:
            return []
        best = min(among, key=lambda one: (one.kld.value, one.size_bytes, one.label, one.key))
        return [one for one in among if one is best or not self.beats(best, one)]

    def smallest(self, limits: Limits) -> list[Entry]:
        """The smallest that surely keep to the limits: several only of one size that can't be told apart."""
        found = [one for one in self.all if within(one, limits) == "yes"]
        return self.closest([one for one in found if one.size_bytes == found[0].size_bytes])

    def smaller_unsure(self, than: Entry, limits: Limits) -> list[Entry]:
        """Smaller files of which can't be told whether they keep to the limits."""
        return [one for one in self.all if one.size_bytes < than.size_bytes and within(one, limits) == "unsure"]

    def split(self, among: Iterable[Entry]) -> tuple[Entry, Entry, str] | None:
        """The first two on which the metrics disagree: (closer by mean KLD, closer by the other, the other's name)."""
        for one, other in combinations(among, 2):
            by_kld = self.kld(one, other)
            for name, by in (("99.9 % KLD", self.tail(one, other)), ("same top p", self.top(one, other))):
                if by_kld * by < 0:
                    return (one, other, name) if by_kld < 0 else (other, one, name)
        return None


def slower(one: Rate, other: Rate) -> bool:
    """Whether ``one`` is measurably slower than ``other``."""
    if one.half is None or other.half is None:
        return False
    return other.value - one.value > max(math.hypot(one.half, other.half), SAME_SPEED * other.value)


def in_field(entries: Sequence[Entry], pairs: Pairs) -> Field:
    """The files as they are compared; in which order they are given does not matter."""
    return Field(sorted(entries, key=lambda one: (one.size_bytes, one.kld.value, one.label, one.key)), pairs)


def joined(labels: Sequence[str]) -> str:
    """Labels as words: ``A``, ``A and B``, ``A, B and C``."""
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)
