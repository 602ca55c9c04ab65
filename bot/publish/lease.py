"""Only one process publishes at a time: a lease in the database, asked for again before every single write."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bot.clock import Clock
from bot.store import Store
from core.errors import HubConflictError

#: Seconds for which one process publishes alone unless it says that it is still at it.
LEASE_S = 180.0
_NAME = "publish"
_held: ContextVar[Lease | None] = ContextVar("publishing", default=None)


class LeaseLostError(HubConflictError):
    """Another process publishes from this database by now; what was not written is left to it."""


class Lease:
    """The right to publish from a database.

    Args:
        owner: a name that no other process has.
        alive: whether the process of that name is known to live (True) or to have ended (False).
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        owner: str | None = None,
        alive: Callable[[str], bool | None] = lambda _: None,
    ) -> None:
        self._store, self._clock, self._owner = store, clock, owner or uuid.uuid4().hex
        self._alive = alive

    def take(self) -> bool:
        """Take it, or say that another process has it."""
        now = self._clock.now()
        return self._store.results.take_lease(_NAME, self._owner, now=now, lease=LEASE_S, alive=self._alive)

    def keep(self) -> None:
        """Say that we are still at it.

        Raises:
            LeaseLostError: we were silent for so long that another process took over.
        """
        if not self._store.results.keep_lease(_NAME, self._owner, now=self._clock.now(), lease=LEASE_S):
            raise LeaseLostError("Publishing took so long that another quantcard took over; the rest is left to it.")

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """What is written in this block is written only while we have the lease; it is given back at the end."""
        token = _held.set(self)
        try:
            yield
        finally:
            _held.reset(token)
            self._store.results.drop_lease(_NAME, self._owner)


def keep_publishing() -> None:
    """Asked before every write: where this thread publishes, it must still have the lease.

    Raises:
        LeaseLostError: it has not.
    """
    if (lease := _held.get()) is not None:
        lease.keep()
