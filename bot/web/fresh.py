"""An answer that is made at most once every few seconds, however many ask for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """Makes the answer in a thread of its own, once at a time; whoever asks meanwhile gets the same one.

    Args:
        seconds: for which it is given again.
        clock: seconds that only go forward.
    """

    def __init__(self, make: Callable[[], T], *, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._make, self._seconds, self._clock = make, seconds, clock
        self._made: tuple[float, T] | None = None
        self._making = asyncio.Lock()

    async def get(self) -> T:
        """The answer."""
        async with self._making:
            if self._made is None or self._clock() - self._made[0] >= self._seconds:
                found = await asyncio.to_thread(self._make)
                self._made = (self._clock(), found)
            return self._made[1]
