"""Which files were published where, by sha256, so that only what changed is written and uploaded again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from bot.store.db import immediate


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file as it was last written. ``source`` is the fingerprint of what it was made from, where that is kept."""

    path: str
    sha256: str
    source: str = ""


class Files:
    """Table published_files; ``where`` is a dataset on a Hub, or "" for the local copy."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def known(self, where: str) -> dict[str, PublishedFile]:
        """All files in one place by path."""
        rows = self._db.query("SELECT path, sha256, source FROM published_files WHERE dataset = ?", (where,))
        return {row["path"]: PublishedFile(row["path"], row["sha256"], row["source"]) for row in rows}

    def save(self, where: str, files: Iterable[PublishedFile]) -> None:
        """Remember what was written."""
        with immediate(self._db):
            self._db.conn.executemany(
                "INSERT OR REPLACE INTO published_files (dataset, path, sha256, source) VALUES (?, ?, ?, ?)",
                [(where, file.path, file.sha256, file.source) for file in files],
            )

    def forget(self, where: str, paths: Collection[str]) -> None:
        """Forget files, as if they had never been written."""
        with immediate(self._db):
            self._db.conn.executemany(
                "DELETE FROM published_files WHERE dataset = ? AND path = ?", [(where, path) for path in paths]
            )

    def n_due(self, where: str) -> int:
        """How many files of the local copy are not, or not so, in the dataset ``where``."""
        found = self._db.conn.execute(
            "SELECT count(*) FROM published_files AS local LEFT JOIN published_files AS there "
            "ON there.dataset = ? AND there.path = local.path "
            "WHERE local.dataset = '' AND (there.sha256 IS NULL OR there.sha256 != local.sha256)",
            (where,),
        ).fetchone()
        return int(found[0])
