"""Whether figures that stand on an open pull and the new ones differ so much that its readers should be told. Pure.

A comment notifies people, so there is one only where advice would be another one: what is recommended changed, a
file's mean KLD moved (by more than both 95 % intervals together and by more than 5 %), a file that was measured can't
be any more, or everything was measured under another protocol or against another reference. Files that came or went,
speeds and wording are no reason: whoever uploaded the files knows, and the pull shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bot.publish.data_block import DataBlock, DataVariant
from bot.publish.verdict import Entry, Figure, verdict
from core.verdict import Z95

#: The share of the old mean KLD by which it must have moved.
_SHARE = 0.05
#: What every run of the same measurement gives anew.
_SPEEDS = ("pp_ts", "pp_ts_stddev", "tg_ts", "tg_ts_stddev", "peak_memory_bytes", "peak_vram_bytes")
_EACH_RUN: dict[str, Any] = {"variants": {"__all__": set(_SPEEDS)}, "picks": True}
#: Picks that rest on quality alone: speeds move with every run, and memory follows from the files.
_KINDS = ("near", "close", "closest")
#: Moved files that a comment names.
MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class Moved:
    """A file whose mean KLD (nats) is another one: before and after, with standard errors. ``replaced``: new bytes."""

    label: str
    before: float
    before_stderr: float
    after: float
    after_stderr: float
    replaced: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation that changed: what for, and which file by its label; None: none."""

    purpose: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed materially; false when nothing did."""

    advice: tuple[Advice, ...] = ()
    moved: tuple[Moved, ...] = ()
    lost: tuple[str, ...] = ()
    other_ground: bool = False

    def __bool__(self) -> bool:
        return bool(self.advice or self.moved or self.lost or self.other_ground)


def changes(old: DataBlock, new: DataBlock) -> Changes:
    """What changed materially from the figures on the pull to the new ones."""
    if (old.protocol, old.reference) != (new.protocol, new.reference):
        return Changes(other_ground=True)
    before = {one.file: one for one in old.variants}
    moved, lost = [], []
    for one in new.variants:
        was = before.get(one.file)
        if was is None or one.is_reference:
            continue
        if was.kld_mean is not None and one.kld_mean is None and one.state == "failed":
            lost.append(one.label)
        elif found := _moved(was, one):
            moved.append(found)
    # Where the older figures were cut for want of room, what was recommended can't be told from them.
    advice = () if old.left_out or new.left_out else _advice(old, new)
    return Changes(advice=advice, moved=tuple(moved), lost=tuple(lost))


def only_speeds_differ(old: DataBlock, new: DataBlock) -> bool:
    """Whether two blocks tell the same files and figures but for speeds and memory, which no two runs share."""
    if old.left_out or new.left_out:
        return False
    return old.model_dump(exclude=_EACH_RUN) == new.model_dump(exclude=_EACH_RUN)


def _moved(was: DataVariant, now: DataVariant) -> Moved | None:
    if was.kld_mean is None or now.kld_mean is None or bool(was.quality_imported) != bool(now.quality_imported):
        return None
    errors = (was.kld_stderr or 0.0), (now.kld_stderr or 0.0)
    distance = abs(now.kld_mean - was.kld_mean)
    if distance <= Z95 * sum(errors) or distance <= _SHARE * abs(was.kld_mean):
        return None
    return Moved(now.label, was.kld_mean, errors[0], now.kld_mean, errors[1], replaced=was.key != now.key)


def _advice(old: DataBlock, new: DataBlock) -> tuple[Advice, ...]:
    """What is recommended otherwise, by one rule for both: as they say it, or where one is older, as figures say it."""
    said = old.picks is not None and new.picks is not None
    before, after = (_said(block) if said else _figured(block) for block in (old, new))
    labels = {one.file: one.label for block in (old, new) for one in block.variants}

    def named(files: tuple[str, ...] | None) -> str | None:
        return " or ".join(labels.get(one, one) for one in files) if files else None

    found = (
        Advice(purpose, named(before.get(purpose)), named(after.get(purpose)))
        for purpose in dict.fromkeys([*before, *after])
        if before.get(purpose) != after.get(purpose)
    )
    return tuple(found)


def _said(block: DataBlock) -> dict[str, tuple[str, ...]]:
    return {one.purpose: one.files for one in block.picks or () if one.kind in _KINDS}


def _figured(block: DataBlock) -> dict[str, tuple[str, ...]]:
    """The recommended files by purpose, of what was measured in one way."""
    ranked = [
        one
        for one in block.variants
        if one.state == "measured"
        and one.kld_mean is not None
        and not one.quality_imported
        and not one.is_reference
        and (one.protocol, one.reference, one.environment) == (block.protocol, block.reference, block.environment)
    ]
    return {pick.purpose: pick.files for pick in verdict([_entry(one) for one in ranked]).picks if pick.kind in _KINDS}


def _entry(one: DataVariant) -> Entry:
    kld, top = one.kld_mean or 0.0, one.same_top or 0.0
    error = one.same_top_stderr
    if error is None:
        error = (max(top * (1 - top), 0.0) / one.n_tokens) ** 0.5 if one.n_tokens else 0.0
    return Entry(one.file, one.label, one.size_bytes, _around(kld, one.kld_stderr or 0.0), _around(top, error))


def _around(value: float, stderr: float) -> Figure:
    return Figure(value, value - Z95 * stderr, value + Z95 * stderr)
