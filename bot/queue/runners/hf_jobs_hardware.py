"""What is known of the hardware that Jobs may use, and of its prices."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from bot.hub.jobs_api import Flavor, JobsApi
from bot.queue.runners.hf_jobs_plan import usable
from core.errors import QuantcardError

#: Seconds for which it is good, and after which one that was not answered is asked again.
_GOOD_S, _AGAIN_S = 3600.0, 60.0


class Hardware:
    """Asked of the Hub once an hour. Safe to use from several threads.

    Args:
        allowed: names of those that may be used; none: all that have a GPU.
    """

    def __init__(self, api: JobsApi, allowed: Sequence[str]) -> None:
        self._api, self._allowed = api, tuple(allowed)
        self._lock = threading.Lock()
        self._flavors: list[Flavor] = []
        self._good_until = self._ask_from = 0.0

    def known(self) -> list[Flavor]:
        """The flavors that may be used.

        Raises:
            HubError: the Hub does not say.
        """
        with self._lock:
            if self._flavors and time.monotonic() < self._good_until:
                return self._flavors
        return self._asked()

    def at_once(self) -> list[Flavor]:
        """What is known already, without waiting; where that is old, it is asked for in a thread."""
        with self._lock:
            now = time.monotonic()
            if now >= max(self._good_until, self._ask_from):
                self._ask_from = now + _AGAIN_S
                threading.Thread(target=self._asked_quietly, name="hf-jobs-hardware", daemon=True).start()
            return self._flavors

    def _asked(self) -> list[Flavor]:
        found = usable(self._api.hardware(), self._allowed)
        with self._lock:
            self._flavors, self._good_until = found, time.monotonic() + _GOOD_S
        return found

    def _asked_quietly(self) -> None:
        with suppress(QuantcardError):
            self._asked()
