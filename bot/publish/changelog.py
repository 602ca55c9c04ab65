"""What a section tells anew against the section that stands on the card, from that one's data block. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from bot.publish.changes import changes
from bot.publish.data_block import DataBlock, DataVariant
from bot.publish.markdown import escape
from core.format import with_interval
from core.verdict import Z95

#: Files that a line names, and files that get a line each.
_MOST_NAMED, _MOST_LINES = 8, 12


def changelog(old: DataBlock, new: DataBlock) -> list[Markup]:
    """The changes as sentences, or none: files that came, went or were replaced, figures and picks that moved."""
    before = {one.file: one for one in old.variants}
    now = {one.file: one for one in new.variants}
    found = changes(old, new)
    lines: list[str] = []
    if found.other_ground:
        lines.append("Measured anew, under another protocol or against another reference.")
    whole = not old.left_out and not new.left_out
    added = [one for one in new.variants if one.file not in before] if whole else []
    gone = [one for one in old.variants if one.file not in now] if whole else []
    replaced = [one for one in new.variants if one.file in before and before[one.file].key != one.key]
    for words, files in (("New", added), ("No longer here", gone), ("Replaced by newer files", replaced)):
        if files:
            lines.append(f"{words}: {_named(files)}.")
    told = [(before[one.file], one) for one in new.variants if one.file in before]
    first = [one for was, one in told if was.kld_mean is None and one.kld_mean is not None]
    lost = [one for was, one in told if was.kld_mean is not None and one.kld_mean is None]
    for words, files in (("Measured for the first time", first), ("No quality figures any more", lost)):
        if files:
            lines.append(f"{words}: {_named(files)}.")
    if not found.other_ground:
        for moved in found.moved[:_MOST_LINES]:
            was, is_now = (
                with_interval(value, Z95 * error)
                for value, error in ((moved.before, moved.before_stderr), (moved.after, moved.after_stderr))
            )
            lines.append(f"{escape(moved.label, most=80)}: mean KLD {was} before, {is_now} now.")
        if len(found.moved) > _MOST_LINES:
            lines.append(f"The mean KLD of {len(found.moved) - _MOST_LINES} more moved, too.")
        for advice in found.advice:
            was, is_now = (escape(one, most=80) if one else "none" for one in (advice.before, advice.after))
            lines.append(f"{escape(advice.purpose)}: {was} before, {is_now} now.")
    return [Markup(line) for line in lines]


def _named(files: Sequence[DataVariant]) -> str:
    labels = ", ".join(str(escape(one.label, most=80)) for one in files[:_MOST_NAMED])
    return labels + (f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else "")
