"""The verdict in one or two plain sentences. Pure; ``**`` marks what is claimed."""

from __future__ import annotations

from collections.abc import Sequence

from bot.publish.contest import Entry, Field, joined, within
from core.format import percent, with_interval
from core.verdict import CLOSE, NEAR, OFTEN

#: Files that a sentence names; of more it gives the number.
MOST_NAMED = 3


def sentence(field: Field) -> str:
    """Which file is the smallest that is near or good enough, and what speaks against going by that alone."""
    if not field.all:
        return "No quantized file of this repo has been measured."
    near, close = field.smallest(NEAR), field.smallest(CLOSE)
    only = len(field.all) == 1
    if near:
        told = _claim(near, "practically the original", only=only)
        if close != near:
            told += f" {_claim(close, 'good enough', only=only, short=True)}"
    elif close:
        unsure = [one for one in field.all if within(one, NEAR) == "unsure"]
        edge = f"{unsure[0].label} lies on the limit of being" if unsure else "None is"
        told = f"{_claim(close, 'good enough', only=only)} {edge} practically the original."
        if only:
            told = _claim(close, "good enough, but not practically the original", only=True)
            if unsure:
                told = (
                    f"**{close[0].label} is good enough, and may be practically the original** ({_figures(close[0])})."
                )
    else:
        told = _none_good(field, only=only)
    if parted := field.split(reversed(field.all)):
        one, other, name = parted
        return (
            f"{told} The metrics disagree on {one.label} and {other.label}: mean KLD is lower for {one.label}, {name} "
            f"speaks for {other.label}; neither is called better."
        )
    return told + (_changed(field.all) if close else "")


def _figures(one: Entry) -> str:
    return (
        f"mean KLD {with_interval(one.kld.value, one.kld.half)}; it picks the same top token "
        f"{percent(one.top.value)} of the time"
    )


def _claim(files: Sequence[Entry], what: str, *, only: bool, short: bool = False) -> str:
    figures = _figures(files[0])
    if short:
        figures = f"{with_interval(files[0].kld.value, files[0].kld.half)}; {percent(files[0].top.value)}"
    names = joined([one.label for one in files])
    verb = "is" if len(files) == 1 else "are"
    if only:
        return f"**{names} {verb} {what}** ({figures})."
    plural = "" if len(files) == 1 else "s"
    return f"**{names} {verb} the smallest file{plural} that {verb} {what}** ({figures})."


def _none_good(field: Field, *, only: bool) -> str:
    best = field.closest(field.all)
    figures = _figures(best[0])
    if any(within(one, CLOSE) == "unsure" for one in field.all):
        start = "**Whether any file here is good enough can't be told.**" if not only else ""
        if only:
            return f"**Whether {best[0].label} is good enough can't be told** ({figures})."
    elif only:
        return f"**{best[0].label} is not close to the original** ({figures})."
    else:
        start = "**No file here is close to the original.**"
    if len(best) == 1:
        return f"{start} The closest is {best[0].label} ({figures})."
    names = joined([one.label for one in best[:MOST_NAMED]])
    more = f" and {len(best) - MOST_NAMED} more" if len(best) > MOST_NAMED else ""
    return f"{start} The closest are {names}{more}, which can't be told apart ({best[0].label}: {figures})."


def _changed(quants: Sequence[Entry]) -> str:
    """Which files pick another token often; said of 'and below' only where that is true of every smaller file."""
    worse = [one for one in quants if one.top.high < OFTEN]
    if not worse:
        return ""
    if len(worse) > 2 and worse == list(quants[: len(worse)]):
        who, verb = f"{worse[-1].label} and the smaller files", "pick"
    elif len(worse) > MOST_NAMED:
        who, verb = f"{len(worse)} files", "pick"
    else:
        who, verb = joined([one.label for one in reversed(worse)]), "pick" if len(worse) > 1 else "picks"
    return f" {who} {verb} another token than the original at least one time in ten."
