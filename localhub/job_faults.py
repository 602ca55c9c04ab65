"""What may go wrong with Jobs on purpose, for tests; nothing over HTTP leads here."""

from __future__ import annotations

import threading


class JobFaults:
    """Safe to change while the server runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hanging = 0
        self._cuts: list[int] = []

    def hang(self, times: int = 1) -> None:
        """The next Jobs stay in SCHEDULING until they are cancelled."""
        with self._lock:
            self._hanging += times

    def cut_logs(self, *, after: int, times: int = 1) -> None:
        """The next answers with logs end after so many events."""
        with self._lock:
            self._cuts += [after] * times

    def take_hang(self) -> bool:
        """Whether this Job hangs."""
        with self._lock:
            self._hanging -= (hangs := self._hanging > 0)
            return hangs

    def take_cut(self) -> int | None:
        """After how many events these logs end early, if they do."""
        with self._lock:
            return self._cuts.pop(0) if self._cuts else None
