"""What the figures mean for somebody choosing a file: Pareto front, ties, picks. Pure; intervals are honoured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.format import percent, with_interval

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
#: Same top p below which a file is said to pick another token one time in ten.
OFTEN = 0.9


def _within(one: Candidate, limits: tuple[float, float]) -> bool:
    return one.kld <= limits[0] and one.same_top >= limits[1]


def _by_size(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The quantized ones, smallest first; of the same size the closer first."""
    return sorted((c for c in candidates if not c.is_reference), key=lambda c: (c.size_bytes, c.kld))


def closest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The quantized file nearest to the original; of those that can't be told from it, the smallest."""
    quants = _by_size(candidates)
    if not quants:
        return None
    least = min(quants, key=lambda c: c.kld)
    return next(c for c in quants if c is least or tied(c, least))


def picks(candidates: Sequence[Candidate]) -> list[Pick]:
    """The 'which file?' table, from practically the original to the smallest still close; empty for none.

    Thresholds are ours, said on the card: 'practically the original' is mean KLD <= 0.01 and same top p >= 94 %,
    'still close' is mean KLD <= 0.05 and same top p >= 88 %. They are held against the figures as measured; where a
    smaller file missed one by less than can be told, the reason says so.
    """
    quants = _by_size(candidates)
    near = next((c for c in quants if _within(c, NEAR)), None)
    close = next((c for c in quants if _within(c, CLOSE)), None)
    found: list[Pick] = []
    if near:
        found.append(Pick("practically the original", near.label, _why_near(near, quants)))
    if close and close is not near:
        found.append(Pick("the smallest that is still close", close.label, _why_close(close, near, quants)))
    if not close and (best := closest(quants)):
        found.append(Pick("the closest there is", best.label, "none of these files stays close to the original"))
    return found


def _why_near(pick: Candidate, quants: Sequence[Candidate]) -> str:
    if rival := _smaller_equal(pick, quants):
        return f"{rival.label} is smaller and misses the mark, but its mean KLD can't be told from this one's"
    closer = [c for c in quants if c.kld < pick.kld and not tied(c, pick)]
    if not closer:
        return "no file here is measurably closer" if len(quants) > 1 else "it is the only file measured here"
    best = closest(closer)
    assert best is not None
    if best.size_bytes <= pick.size_bytes:
        return f"{best.label} has a lower mean KLD, but picks another top token more often"
    return f"{best.label} is closer still, at {best.size_bytes / pick.size_bytes:.1f} times the size"


def _why_close(pick: Candidate, near: Candidate | None, quants: Sequence[Candidate]) -> str:
    if rival := _smaller_equal(pick, quants):
        return f"{rival.label} is smaller and misses the mark, but its mean KLD can't be told from this one's"
    if near and tied(pick, near):
        return f"smaller than {near.label}, and its mean KLD can't be told from that"
    below = [c for c in quants if c.size_bytes < pick.size_bytes]
    if below and pick.kld > 0 and below[-1].kld > 1.5 * pick.kld and not tied(pick, below[-1]):
        return f"with the next smaller file, {below[-1].label}, KLD grows {below[-1].kld / pick.kld:.1f}-fold"
    return "no smaller file stays close" if below else "there is no smaller file"


def _smaller_equal(pick: Candidate, quants: Sequence[Candidate]) -> Candidate | None:
    """The smallest file below ``pick`` whose mean KLD can't be told from its own, if any."""
    return next((c for c in quants if c.size_bytes < pick.size_bytes and tied(c, pick)), None)


def _figures(one: Candidate) -> str:
    return (
        f"mean KLD {with_interval(one.kld, Z95 * one.kld_stderr)}; it picks the same top token "
        f"{percent(one.same_top)} of the time"
    )


def sentence(candidates: Sequence[Candidate]) -> str:
    """The verdict in one or two plain sentences."""
    quants = _by_size(candidates)
    best = closest(quants)
    if best is None:
        return "No quantized file of this repo has been measured."
    pick = next((c for c in quants if _within(c, NEAR)), None)
    if pick is None:
        equals = [c for c in quants if c is not best and tied(c, best)]
        if len(quants) == 1:
            return f"**{best.label} is not practically the original** ({_figures(best)})."
        verb = "is" if len(equals) == 1 else "are"
        rest = f" {_joined([c.label for c in equals])} {verb} larger and not measurably closer." if equals else ""
        return f"**No file here is practically the original.** The closest is {best.label} ({_figures(best)}).{rest}"
    if len(quants) == 1:
        text = f"**{pick.label} is practically the original** ({_figures(pick)})."
    else:
        text = f"**{pick.label} is the smallest file that is practically the original** ({_figures(pick)})."
    return text + _changed(quants)


def _changed(quants: Sequence[Candidate]) -> str:
    """Which files pick another token often; said of 'and below' only where that is true of every smaller file."""
    worse = [c for c in quants if c.same_top < OFTEN]
    if not worse:
        return ""
    if len(worse) > 2 and worse == list(quants[: len(worse)]):
        who, verb = f"{worse[-1].label} and the smaller files", "pick"
    else:
        who, verb = _joined([c.label for c in reversed(worse)]), "pick" if len(worse) > 1 else "picks"
    return f" {who} {verb} another token than the original at least one time in ten."


def _joined(labels: Sequence[str]) -> str:
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)
