"""When a job will be done, from how long measured ones took. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Jobs of one kind: how many, and the bytes of their files together."""

    n: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What jobs of one kind took on the whole: how many they were, their bytes, their seconds."""

    n: int
    size_bytes: int
    seconds: float

    def expected(self, work: Work) -> float:
        """Seconds that this work takes: half of it a job's own, half in proportion to its bytes.

        A file twice as large takes longer, but not twice as long: loading the program, the baseline and the corpus
        does not depend on it.
        """
        by_number = self.seconds / self.n * work.n
        by_size = self.seconds / self.size_bytes * work.size_bytes if self.size_bytes else by_number
        return (by_number + by_size) / 2


def seconds_of(work: Mapping[str, Work], paces: Mapping[str, Pace]) -> float | None:
    """Seconds that work takes, by kind; None where a kind was never measured."""
    if any(kind not in paces for kind in work):
        return None
    return sum(paces[kind].expected(one) for kind, one in work.items())


def eta(
    *, ahead: Mapping[str, Work], own: Mapping[str, Work], running: Iterable[float], slots: int,
    paces: Mapping[str, Pace],
) -> float | None:  # fmt: skip
    """Seconds until a job is done, itself included; None where nothing can be said yet.

    Args:
        ahead: what waits before it, by kind.
        own: the job itself.
        running: seconds that each job under way still takes.
        slots: how many jobs run at once.
    """
    before, itself = seconds_of(ahead, paces), seconds_of(own, paces)
    if before is None or itself is None:
        return None
    return (before + sum(running)) / max(slots, 1) + itself
