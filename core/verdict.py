"""What the figures mean for somebody choosing a file: Pareto front, ties, picks. Pure; intervals are honoured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.format import significant, with_interval

#: Two-sided 95 % of a normal distribution.
Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Candidate:
    """One measured variant: size in bytes, mean KLD (nats) with its standard error, same top p (fraction)."""

    label: str
    size_bytes: int
    kld: float
    kld_stderr: float
    same_top: float
    is_reference: bool = False


def tied(a: Candidate, b: Candidate) -> bool:
    """Whether two mean KLDs can't be told apart: their difference lies within its 95 % interval.

    The errors are taken as independent. Both were measured on the same tokens, so the true interval is narrower:
    this rather calls two files equal than one of them better.
    """
    error = (a.kld_stderr**2 + b.kld_stderr**2) ** 0.5
    return abs(a.kld - b.kld) <= Z95 * error


def pareto(candidates: Sequence[Candidate]) -> list[bool]:
    """For each candidate whether no other is at most as large and has a lower (or, if smaller, an equal) KLD."""

    def beaten(one: Candidate) -> bool:
        return any(
            other is not one
            and other.size_bytes <= one.size_bytes
            and other.kld <= one.kld
            and (other.size_bytes, other.kld) != (one.size_bytes, one.kld)
            for other in candidates
        )

    return [not beaten(one) for one in candidates]


@dataclass(frozen=True, slots=True)
class Pick:
    """A recommendation: what for, which file, and why (a plain sentence without a full stop)."""

    purpose: str
    label: str
    because: str


#: Mean KLD (nats) and same top p up to which a file counts as practically the original, and as close to it.
NEAR = 0.01, 0.94
CLOSE = 0.05, 0.88


def picks(candidates: Sequence[Candidate]) -> list[Pick]:
    """The 'which file?' table, from practically the original to the smallest still close; empty for none.

    Thresholds are ours, said on the card: 'practically the original' is mean KLD <= 0.01 and same top p >= 94 %,
    'still close' is mean KLD <= 0.05 and same top p >= 88 %.
    """
    quants = sorted((c for c in candidates if not c.is_reference), key=lambda c: c.size_bytes)
    found: list[Pick] = []
    near = [c for c in quants if c.kld <= NEAR[0] and c.same_top >= NEAR[1]]
    close = [c for c in quants if c.kld <= CLOSE[0] and c.same_top >= CLOSE[1]]
    if near:
        found.append(Pick("practically the original", near[0].label, _why_near(near[0], quants)))
    if close and (not near or close[0] is not near[0]):
        below = [c for c in quants if c.size_bytes < close[0].size_bytes]
        because = (
            f"below it, KLD grows {below[-1].kld / close[0].kld:.1f}-fold"
            if below and close[0].kld > 0 and below[-1].kld > 1.5 * close[0].kld
            else "the smallest file that stays close"
        )
        found.append(Pick("the smallest that is still close", close[0].label, because))
    if quants and not near and not close:
        best = min(quants, key=lambda c: c.kld)
        found.append(Pick("the closest there is", best.label, "none of these files stays close to the original"))
    return found


def _why_near(pick: Candidate, quants: Sequence[Candidate]) -> str:
    closer = [c for c in quants if c.kld < pick.kld and not tied(c, pick)]
    if not closer:
        return "no file here is measurably closer"
    best = min(closer, key=lambda c: c.kld)
    return f"{best.label} is closer still, at {best.size_bytes / pick.size_bytes:.1f} times the size"


def sentence(candidates: Sequence[Candidate]) -> str:
    """The verdict in one or two plain sentences."""
    quants = sorted((c for c in candidates if not c.is_reference), key=lambda c: c.size_bytes)
    if not quants:
        return "No quantized file of this repo could be measured."
    near = [c for c in quants if c.kld <= NEAR[0] and c.same_top >= NEAR[1]]
    if not near:
        best = min(quants, key=lambda c: c.kld)
        return (
            f"No file here stays practically at the original. The closest, {best.label}, has a mean KLD of "
            f"{significant(best.kld)} and picks the same top token {100 * best.same_top:.1f} % of the time."
        )
    pick = near[0]
    text = (
        f"**{pick.label} is the smallest file that is practically the original** (mean KLD "
        f"{with_interval(pick.kld, Z95 * pick.kld_stderr)}; it picks the same top token {100 * pick.same_top:.1f} % of the time)."
    )
    worse = [c for c in quants if c.same_top < 0.9]
    if worse:
        limit = worse[-1]
        text += f" {limit.label}{' and below change' if len(worse) > 1 else ' changes'} one word in ten or more."
    return text
