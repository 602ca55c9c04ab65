"""What a check found. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "bad", "unknown"]

#: From best to worst; "unknown" is not known to be well.
_ORDER: tuple[State, ...] = ("ok", "warn", "unknown", "bad")
_MAX_TEXT = 600


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, in a sentence with figures, and what puts it right ("" where nothing has to be)."""

    state: State
    found: str
    fix: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def warn(found: str, fix: str) -> Finding:
    """It works, but will not always, or does more than it should."""
    return Finding("warn", found, fix)


def bad(found: str, fix: str) -> Finding:
    """Something does not work."""
    return Finding("bad", found, fix)


def unknown(found: str, fix: str = "") -> Finding:
    """It could not be found out."""
    return Finding("unknown", found, fix)


def worst(states: Iterable[State]) -> State:
    """The worst of several states; "ok" of none."""
    return max(states, key=_ORDER.index, default="ok")


def clean(text: str, *, limit: int = _MAX_TEXT) -> str:
    """A text of somebody else's for one line of a terminal: bounded, no control characters, one space at a time."""
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def some(names: Iterable[str], *, most: int = 4) -> str:
    """The first few of several names."""
    listed = [clean(name, limit=120) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
