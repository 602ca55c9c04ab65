"""Which sandbox there is on this machine, and what a job may take in it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import Literal

from core.errors import SandboxError

#: bubblewrap: namespaces of its own; uid: a user of its own; none: our own user, with no network and no children.
Level = Literal["bubblewrap", "uid", "none"]
#: What may be asked for: the best there is, or one level and no other.
Wanted = Literal["auto", "bubblewrap", "uid"]

DEFAULT_OUTPUT = 256 << 30
_probing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may take; None: as much as there is.

    Args:
        seconds: from its start to its end.
        memory_bytes: anonymous and shared memory, not the mapped model.
        output_bytes: what it adds to its folders, and the largest file.
        threads: of all its processes together.
    """

    seconds: float
    memory_bytes: int | None = None
    output_bytes: int = DEFAULT_OUTPUT
    threads: int = 4096


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What holds a job. ``why`` says why nothing stronger does, for a person to act on."""

    level: Level
    why: str = ""

    @property
    def holds_strangers(self) -> bool:
        """Whether a stranger's file may be run in it."""
        return self.level != "none"


NONE = Sandbox("none", "it was chosen")


def best_sandbox(*, unsafe: bool = False, wanted: Wanted = "auto") -> Sandbox:
    """The strongest sandbox that works here; each is tried once per process.

    Args:
        unsafe: take none where there is none, instead of refusing.
        wanted: "auto", or the one level that is to be used.

    Raises:
        SandboxError: nothing would hold a stranger's file.
    """
    problems: list[str] = []
    levels: tuple[Level, ...] = ("bubblewrap", "uid") if wanted == "auto" else (wanted,)
    for level in levels:
        problem = probe(level)
        if problem is None:
            return Sandbox(level, "; ".join(problems))
        problems.append(problem)
    why = "; ".join(problems)
    if unsafe:
        return Sandbox("none", why)
    raise SandboxError(
        f"A stranger's file is not run here, since nothing would hold it: {why}. Install bubblewrap (the package is "
        "called so in every distribution), or give --unsafe-no-sandbox where you trust every file."
    )


def probe(level: Level) -> str | None:
    """Why a level can't be had here; None when it works."""
    with _probing:
        return _probed(level)


@cache
def _probed(level: Level) -> str | None:
    from core.sandbox.launch import try_out

    if os.name != "posix" or not hasattr(os, "sched_getaffinity"):
        return f"{level}: this is not Linux" if level != "none" else None
    return try_out(level)


def forget_probes() -> None:
    """Probe anew at the next question (for tests, and after somebody installed something)."""
    _probed.cache_clear()
