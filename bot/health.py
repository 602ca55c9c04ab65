"""What keeps the service from its work: what its parts noted, beside the database and the disks as they are now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bot.settings import Settings
from bot.status_report import scrub
from bot.store.counting import probe
from bot.vitals import DATA_ROOM, DB_ROOM, Vitals, free_bytes, limit_s, unready
from core.errors import StorageError


class Health:
    """What keeps the service from its work.

    Args:
        free: bytes that the disk of a path has, None where it can't be told.
    """

    def __init__(self, settings: Settings, vitals: Vitals, *, free: Callable[[Path], int | None] = free_bytes) -> None:
        self._settings, self.vitals, self._free = settings, vitals, free

    def disks(self) -> dict[str, int]:
        """Free bytes of the disks of the data folder and the database."""
        places = {"data": self._settings.data, "database": self._settings.db}
        return {name: free for name, path in places.items() if (free := self._free(path)) is not None}

    def reasons(self) -> list[str]:
        """Why the service is not ready, in sentences that anybody may read; empty: it is."""
        database = None
        try:
            probe(self._settings.db)
        except StorageError as error:
            database = str(error)
        found = unready(
            self.vitals.seen,
            silent_s=self.vitals.silent_s,
            limit_s=limit_s(self._settings.poll_interval_s),
            database=database,
            free=self.disks(),
            room={"data": DATA_ROOM, "database": DB_ROOM},
        )
        return [scrub(one, self._settings.secrets) for one in found]
