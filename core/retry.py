"""Whether and when a job that failed is tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import (
    HubRateLimitError,
    HubUnreachableError,
    MachineLostError,
    QuantcardError,
    RunnerUnavailableError,
    SandboxError,
    StorageError,
)

#: ``never``: the same file will fail again. ``attempt``: it may have been bad luck. ``lost``: the machine went away.
#: ``later``: the job could not even start, or its result not be stored, and that is nobody's fault in it.
RetryClass = Literal["never", "attempt", "lost", "later"]
#: Tries of each class before a job is dead; with the delays below ``later`` lasts a day.
LIMITS: dict[RetryClass, int] = {"never": 1, "attempt": 3, "lost": 8, "later": 32}
#: Seconds before the second try; doubled for each further one, up to :data:`MAX_DELAY`.
DELAY = 5.0
MAX_DELAY = 3600.0

_LATER = (HubUnreachableError, HubRateLimitError, StorageError, RunnerUnavailableError, SandboxError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a job: ``todo`` again after ``delay`` seconds; ``failed`` by its own fault; ``dead``."""

    state: Literal["todo", "failed", "dead"]
    delay: float = 0.0


def retry_class(error: QuantcardError) -> RetryClass:
    """The class of an error."""
    if not error.retryable:
        return "never"
    if isinstance(error, _LATER):
        return "later"
    return "lost" if isinstance(error, MachineLostError) else "attempt"


def verdict(kind: RetryClass, tries: int) -> Verdict:
    """What becomes of a job after its ``tries``-th failure of this class.

    After a first lost machine it is taken up at once: most often it was a restart.
    """
    if kind == "never":
        return Verdict("failed")
    if tries >= LIMITS[kind]:
        return Verdict("dead")
    step = tries - 2 if kind == "lost" else tries - 1
    return Verdict("todo", 0.0 if step < 0 else min(DELAY * 2**step, MAX_DELAY))
