"""The verdict: a plain sentence, and which file to take for what. Pure; nobody is called better within the error.

How files compare is :mod:`bot.publish.contest`'s. A pick names all files that can't be told apart, and
those on which the metrics disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from bot.publish.contest import Entry, Field, Figure, Pairs, Rate, in_field, joined, no_pairs, sign, slower, within
from bot.publish.verdict_words import MOST_NAMED, sentence
from core.format import size, speed
from core.verdict import CLOSE, NEAR

__all__ = [
    "CONTEXT", "MEMORY_GB", "MOST_NAMED", "Entry", "Figure", "Pairs", "Pick", "Rate", "Verdict", "closest", "no_pairs",
    "sign", "verdict",
]  # fmt: skip

#: What a file must fit into, in GB of 10**9 bytes: a card of 24 GB has 24 GiB, of which that leaves 7 % to the driver
#: and the screen.
MEMORY_GB = (8, 12, 16, 24, 48)
#: Tokens of context (f16 cache) at which a file's memory is stated: :attr:`core.dataset.DatasetRow.memory_8k_bytes`.
CONTEXT = 8_192


@dataclass(frozen=True, slots=True)
class Pick:
    """What for, which files (by key, the smallest first; several can't be told apart; none: none will do), and why.

    ``kind`` is for programs: near, close, closest, fastest or memory.
    """

    kind: Literal["near", "close", "closest", "memory", "fastest"]
    purpose: str
    files: tuple[str, ...]
    because: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence (with ``**``) and the picks."""

    sentence: str
    picks: tuple[Pick, ...]


def verdict(entries: Sequence[Entry], *, pairs: Pairs = no_pairs) -> Verdict:
    """The verdict on a repo's quantized files that may be compared; their order does not matter."""
    field = in_field(entries, pairs)
    return Verdict(sentence(field), tuple(_picks(field)))


def closest(entries: Sequence[Entry], *, pairs: Pairs = no_pairs) -> Entry:
    """The smallest of those that can't be told from the closest (of one file at least)."""
    field = in_field(entries, pairs)
    return field.closest(field.all)[0]


def _picks(field: Field) -> list[Pick]:
    near, close = field.smallest(NEAR), field.smallest(CLOSE)
    found = []
    if near:
        found.append(_pick("near", "practically the original", near, _why_near(field, near)))
    if close and close != near:
        found.append(_pick("close", "the smallest that is good enough", close, _why_close(field, close, near)))
    if not close and field.all:
        best = field.closest(field.all)
        found.append(_pick("closest", "the closest there is", best, _why_closest(field, best)))
    return [*found, *_for_memory(field), *_fastest(field)]


def _pick(kind: Literal["near", "close", "closest"], purpose: str, files: Sequence[Entry], because: str) -> Pick:
    return Pick(kind, purpose, tuple(one.key for one in files), because)


def _why_near(field: Field, near: Sequence[Entry]) -> str:
    pick = near[0]
    if len(near) > 1:
        return "of one size, and not to be told apart"
    if unsure := field.smaller_unsure(pick, NEAR):
        return f"{unsure[-1].label} is smaller, but lies on the limit"
    closer = [one for one in field.all if field.beats(one, pick)]
    if not closer:
        return "no file here is measurably closer" if len(field.all) > 1 else "it is the only file measured here"
    best = field.closest(closer)[0]
    if best.size_bytes <= pick.size_bytes:
        return f"{best.label} is closer on average, but misses the limit of same top p"
    return f"{best.label} is closer still, at {best.size_bytes / pick.size_bytes:.1f} times the size"


def _why_close(field: Field, close: Sequence[Entry], near: Sequence[Entry]) -> str:
    pick = close[0]
    if len(close) > 1:
        return "of one size, and not to be told apart"
    if unsure := field.smaller_unsure(pick, CLOSE):
        return f"{unsure[-1].label} is smaller, but lies on the limit"
    if near and field.kld(pick, near[0]) == 0:
        return f"smaller than {near[0].label}, and not measurably farther"
    below = [one for one in field.all if one.size_bytes < pick.size_bytes]
    if below and pick.kld.value > 0 and below[-1].kld.value > 1.5 * pick.kld.value and field.beats(pick, below[-1]):
        times = below[-1].kld.value / pick.kld.value
        return f"the next smaller, {below[-1].label}, has {times:.1f} times its mean KLD"
    return "no smaller file is" if below else "there is no smaller file"


def _why_closest(field: Field, best: Sequence[Entry]) -> str:
    if any(within(one, CLOSE) == "unsure" for one in best):
        return "whether it is good enough can't be told: it lies on the limit"
    told = "none of these files is good enough"
    return f"{told}; {_rest(field, best)}" if len(best) > 1 else told


def _rest(field: Field, group: Sequence[Entry]) -> str:
    """What is to be said of the others of a group."""
    others = group[1:]
    if parted := field.split(group):
        one, other, name = parted
        return f"mean KLD favours {one.label}, {name} {other.label}"
    if len(others) > MOST_NAMED - 1:
        return f"{len(others)} larger files are not measurably closer"
    verb = "is" if len(others) == 1 else "are"
    return f"{joined([one.label for one in others])} {verb} larger and not measurably closer"


def _for_memory(field: Field) -> list[Pick]:
    """What to take at each size of memory; sizes that lead to the same files are one pick."""
    known = [one for one in field.all if one.need is not None]
    if not known or len(known) < len(field.all):
        # One of unknown size could be the better one.
        return []
    groups = []
    for budget in MEMORY_GB:
        fits = [one for one in known if one.need is not None and one.need <= budget * 10**9]
        groups.append((budget, field.closest(fits), len(fits) == len(known)))
    found = []
    for _, run in groupby(groups, key=lambda item: [one.key for one in item[1]]):
        budgets = list(run)
        files, everything = budgets[0][1], budgets[0][2]
        because = _why_fits(field, files, everything=everything) if files else _why_none(known)
        found.append(Pick("memory", _memory_words([b for b, *_ in budgets]), tuple(f.key for f in files), because))
    return found


def _memory_words(budgets: Sequence[int]) -> str:
    first, last = budgets[0], budgets[-1]
    if last == MEMORY_GB[-1]:
        return f"the closest for {first} GB of memory or more"
    return f"the closest for {first} GB of memory" if first == last else f"the closest for {first} to {last} GB"


def _why_fits(field: Field, files: Sequence[Entry], *, everything: bool) -> str:
    pick = files[0]
    told = [f"needs {size(pick.need or 0)} with {CONTEXT:,} tokens of context"]
    if everything and len(field.all) > 1:
        told = ["every file here fits"]
    if len(files) > 1:
        told.append(_rest(field, files))
    if within(pick, CLOSE) == "no":
        told.append("not good enough: look for a smaller model first")
    return "; ".join(told)


def _why_none(known: Sequence[Entry]) -> str:
    least = min(known, key=lambda one: (one.need or 0, one.label))
    return f"{least.label} needs least: {size(least.need or 0)} with {CONTEXT:,} tokens of context"


def _fastest(field: Field) -> list[Pick]:
    """The fastest at writing among those that are good enough; none where speeds have no known error."""
    timed = [(one, one.gen) for one in field.all if one.gen and within(one, CLOSE) == "yes"]
    if len(timed) < 2 or any(rate.half is None for _, rate in timed):
        return []
    best, top = max(timed, key=lambda item: (item[1].value, -item[0].size_bytes, item[0].label))
    files = [one for one, rate in timed if not slower(rate, top)]
    if len(files) == len(timed):
        because = "they write equally fast, as far as can be told"
    else:
        because = f"{speed(top.value)} tokens/s" + (", equal as far as can be told" if len(files) > 1 else "")
    readers = [(one, one.prompt) for one, _ in timed if one.prompt and one.prompt.half is not None]
    if readers and best.prompt and best.prompt.half is not None:
        reader, rate = max(readers, key=lambda item: (item[1].value, -item[0].size_bytes, item[0].label))
        if all(one.prompt and slower(one.prompt, rate) for one in files):
            because += f"; {reader.label} reads prompts faster"
    return [Pick("fastest", "the fastest that is good enough", tuple(one.key for one in files), because)]
