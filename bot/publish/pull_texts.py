"""What we say on pulls, from templates, and the hidden markers by which it is found again. Pure.

A marker counts only in what we wrote ourselves: anybody may write one into a comment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from bot.publish.changes import MAX_NAMED, Changes
from bot.publish.markdown import code
from bot.publish.render import fill
from core.format import with_interval
from core.verdict import Z95


def _marker(inside: str) -> re.Pattern[str]:
    """A marker as it stands: alone on a text's last line, where no file's name can get."""
    return re.compile(rf"^<!-- quantcard:{inside} -->\s*\Z", re.MULTILINE | re.ASCII)


#: In a pull's first comment: how the pull is found again.
PULL = _marker("pull key=([0-9a-f]{6,64})")
_CHANGED = _marker(r"changed at=(\d{1,12})")
_ANSWER = _marker(r"answer to=([\w-]{1,64})")
_SETTLED = _marker(r"settled dispute=([\w-]{1,64})")
_CONFIG = _marker("config digest=([0-9a-f]{6,64})")
_REPLACED = _marker("replaced")
_COMMENT_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


def pull_title() -> str:
    """The pull's title: always the same, so that people and their filters know it."""
    return fill("pull-title.md.j2").strip()


def is_our_title(title: str) -> bool:
    """Whether a pull of ours may be called so; what follows the colon was worded otherwise at times."""
    return title.startswith(pull_title().partition(":")[0] + ":")


def changed_comment(found: Changes, *, now: float) -> str:
    """Tells what changed materially; a few lines."""
    return fill(
        "pull-changed.md.j2",
        other_ground=found.other_ground,
        moved=[
            {
                "label": code(one.label),
                "replaced": one.replaced,
                "before": Markup(with_interval(one.before, Z95 * one.before_stderr)),
                "after": Markup(with_interval(one.after, Z95 * one.after_stderr)),
            }
            for one in found.moved[:MAX_NAMED]
        ],
        n_more=max(len(found.moved) - MAX_NAMED, 0),
        lost=[code(label) for label in found.lost[:MAX_NAMED]],
        advice=[
            {
                "purpose": one.purpose,
                "before": code(one.before) if one.before else None,
                "after": code(one.after) if one.after else None,
            }
            for one in found.advice
        ],
        at=int(now),
    )


def changed_at(texts: Iterable[str]) -> float | None:
    """When we last told of a change, by our own comments."""
    return max((float(found[1]) for text in texts if (found := _CHANGED.search(text))), default=None)


def replaced_comment() -> str:
    """Said on a pull that is closed since the card's own changes stand in its way; it is no answer to anybody."""
    return fill("pull-replaced.md.j2")


def was_replaced(texts: Iterable[str]) -> bool:
    """Whether we said that the pull is opened anew."""
    return any(_REPLACED.search(text) for text in texts)


def answer_comment(lines: Sequence[str], *, help_: bool, comment: str) -> str:
    """The answer to an owner's comment. ``lines`` are sentences of ours, Markdown made safe."""
    return fill("pull-answer.md.j2", lines=[Markup(line) for line in lines], help=help_, comment=Markup(comment))


def answered(texts: Iterable[str]) -> set[str]:
    """The comments that our comments answer, by id."""
    return {found[1] for text in texts if (found := _ANSWER.search(text))}


def is_comment_id(text: str) -> bool:
    """Whether the Hub's id of a comment can stand in a marker."""
    return _COMMENT_ID.fullmatch(text) is not None


def settled_comment(note: str | None, *, comment: str) -> str:
    """Tells an owner that the dispute in a comment was closed, with the operator's note."""
    return fill("pull-settled.md.j2", note=note, comment=Markup(comment))


def settled(texts: Iterable[str]) -> set[str]:
    """The comments whose disputes our comments say are closed, by id."""
    return {found[1] for text in texts if (found := _SETTLED.search(text))}


def config_comment(problem: str, *, digest: str) -> str:
    """Tells what is wrong with a ``.quantcard.yml``."""
    problems = [part.strip() for part in re.split(r"(?<=\.) (?=\.quantcard\.yml: |There are )", problem)]
    return fill("pull-config.md.j2", problems=problems, digest=Markup(digest))


def digest_of(problem: str) -> str:
    """What stands for a file whose bytes are not known (it was too large to be read)."""
    return hashlib.sha256(problem.encode("utf-8", "replace")).hexdigest()[:12]


def config_told(texts: Iterable[str]) -> set[str]:
    """The files that our comments say are wrong, by digest."""
    return {found[1] for text in texts if (found := _CONFIG.search(text))}
