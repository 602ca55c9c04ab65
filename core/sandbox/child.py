"""Runs a job in a process of its own."""

from __future__ import annotations

from typing import Literal, Protocol

#: Why a running job is to end early: we end and come back; its asker took it back; it took too long; its lease is
#: another worker's now.
StopReason = Literal["shutdown", "cancelled", "deadline", "lost"]


class Stop(Protocol):
    """Says whether a running job is to end early."""

    @property
    def reason(self) -> StopReason:
        """Why; only asked once :meth:`is_set` is true."""
        ...

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class JobStopped(Exception):
    """The job was stopped because we were asked to stop."""
