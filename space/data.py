"""The results as the page asks for them: the last good copy of the dataset, and queries on it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from core.dataset import DatasetRow
from core.errors import QuantcardError
from space import snapshot
from space.filters import SORTS
from space.sources import HubSource, LocalSource, NothingPublishedError, Published, Source
from space.text import ago, plural

__all__ = ["SORTS", "Count", "Entry", "HubSource", "LocalSource", "Results", "Source"]

log = logging.getLogger(__name__)

MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Count:
    """A value to filter by: ``key`` goes into the query, ``label`` is shown, ``n`` rows hold it."""

    key: str
    label: str
    n: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A row and what it is among the rows it may be compared with.

    ``apart``: measured in an environment whose control run is too far off to rank it with the others.
    """

    row: DatasetRow
    on_front: bool
    tied_with: str | None
    group: str
    apart: bool


class Results:
    """The published measurements, kept in memory; safe to use from many threads.

    Nothing is read before the first :meth:`refresh`. A refresh that fails keeps the last good copy.
    """

    def __init__(self, source: Source, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._snapshot = snapshot.empty()
        self._published: Published | None = None
        self._checked_at: datetime | None = None
        self._error: str | None = None
        self._nothing_yet = False

    @property
    def snapshot(self) -> snapshot.Snapshot:
        """What is shown now; whoever asks several things of it keeps it meanwhile."""
        return self._snapshot

    @property
    def published(self) -> Published | None:
        """The state that is shown, or None before there is one."""
        return self._published

    @property
    def checked_at(self) -> datetime | None:
        """When the source was last asked with success."""
        return self._checked_at

    @property
    def error(self) -> str | None:
        """Why the last refresh failed, as a sentence; None where it did not."""
        return self._error

    @property
    def revision(self) -> str | None:
        """The revision shown, or None while there is none."""
        return self._published.revision if self._published else None

    def refresh(self) -> bool:
        """Look for a newer revision and load it; True where what is shown changed. Never raises."""
        with self._lock:
            try:
                published = self.source.latest()
                changed = published.revision != self.revision
                if changed:
                    self._snapshot = snapshot.load(self.source.fetch(published))
                self._published = published
                self._error, self._nothing_yet = None, False
                self._checked_at = self._clock()
                return changed
            except NothingPublishedError as nothing:
                self._nothing_yet = self._published is None
                self._error = str(nothing)
            except QuantcardError as failure:
                log.warning("refresh of %s failed: %s", self.source.name, failure)
                self._error = str(failure)
            except Exception:
                log.exception("refresh of %s failed", self.source.name)
                self._error = "The results could not be read."
            return False

    def age(self) -> timedelta | None:
        """How long ago the copy shown was published; None where that is not known."""
        if self._published is None or self._published.at is None:
            return None
        return max(timedelta(0), self._clock() - self._published.at)

    def status_line(self) -> str:
        """One line on what is shown: how many rows, how old, from which revision, and what went wrong since.

        Plain text, not escaped.
        """
        now = self._clock()
        if self._published is None:
            return self._error or "Nothing has been loaded yet."
        parts = [plural(self._snapshot.n_rows, "result")]
        if self._published.at is not None:
            parts.append(f"published {ago(self._published.at, now)}")
        parts.append(f"{self.source.name} at {self._published.revision[:12]}")
        if self._checked_at is not None:
            parts.append(f"checked {ago(self._checked_at, now)}")
        if self._snapshot.n_left_out:
            parts.append(f"{plural(self._snapshot.n_left_out, 'row')} left out: unreadable or doubled")
        if self._error:
            parts.append(f"showing the last good copy: {self._error}")
        return " · ".join(parts)

    @property
    def nothing_yet(self) -> bool:
        """Whether the source was reached and holds no dataset."""
        return self._nothing_yet

    def models(self) -> list[Count]:
        """Base models with their rows, the most measured first."""
        return self._counts("base_model", "base_model")

    def owners(self) -> list[Count]:
        """Uploaders with their rows, the most measured first."""
        return self._counts("owner", "owner")

    def protocols(self) -> list[Count]:
        """Protocols (key: fingerprint) with their rows; a name that two share is told apart by fingerprint."""
        found = self._counts("protocol_fingerprint", "protocol_name")
        names = [c.label for c in found]
        return [Count(c.key, f"{c.label} ({c.key[:8]})" if names.count(c.label) > 1 else c.label, c.n) for c in found]

    def environments(self) -> dict[str, dict[str, Any]]:
        """Environments (fingerprint: what is known of it), the most used first."""
        return {fingerprint: json_object(text) for fingerprint, text in self._snapshot.environments.items()}

    def rows(
        self,
        base_model: str | None = None,
        owner: str | None = None,
        repo_id: str | None = None,
        protocol: str | None = None,
        search: str = "",
        sort: str = "model",
        descending: bool = False,
        limit: int = 50,
        offset: int = 0,
        include_stale: bool = False,
    ) -> list[Entry]:
        """One page of rows, without their long columns (JSON, command).

        ``protocol`` is a fingerprint or a name; an unknown ``sort`` is the default one.
        """
        where, values = _where(base_model, owner, repo_id, protocol, search, include_stale)
        direction = "DESC" if descending else "ASC"
        order = ", ".join(f"{key} {direction} NULLS LAST" for key in SORTS.get(sort, SORTS["model"]))
        return self._entries(
            f"SELECT * FROM measurements WHERE {where} ORDER BY {order}, size_bytes, id LIMIT ? OFFSET ?",
            [*values, max(0, min(limit, MAX_LIMIT)), max(0, offset)],
        )

    def count(
        self,
        base_model: str | None = None,
        owner: str | None = None,
        repo_id: str | None = None,
        protocol: str | None = None,
        search: str = "",
        include_stale: bool = False,
    ) -> int:
        """How many rows :meth:`rows` would page through."""
        where, values = _where(base_model, owner, repo_id, protocol, search, include_stale)
        return int(self._query(f"SELECT count(*) FROM measurements WHERE {where}", values)[0][0])

    def row(self, id: str) -> Entry | None:
        """The row with this id and all its columns, or None."""
        now = self._snapshot
        found = now.query("SELECT * FROM measurements WHERE id = ?", [id])
        names = [column[0] for column in found.description]
        for row in found.fetchall():
            record = dict(zip(names, row, strict=True))
            return _entry(record | now.long(record["place"]))
        return None

    def _counts(self, key: str, label: str) -> list[Count]:
        rows = self._query(
            f"SELECT {key}, any_value({label}), count(*) AS n FROM measurements "
            f"WHERE {key} IS NOT NULL GROUP BY 1 ORDER BY n DESC, 2, 1"
        )
        return [Count(*row) for row in rows]

    def _query(self, sql: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        # The snapshot that stands now: a refresh in between swaps it, this query keeps its own.
        rows: list[tuple[Any, ...]] = self._snapshot.query(sql, values or []).fetchall()
        return rows

    def _entries(self, sql: str, values: list[Any]) -> list[Entry]:
        found = self._snapshot.query(sql, values)
        names = [column[0] for column in found.description]
        return [_entry(dict(zip(names, row, strict=True))) for row in found.fetchall()]


def json_object(text: str | None) -> dict[str, Any]:
    """The JSON object in ``text``; empty where there is none (another version wrote it)."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _entry(record: dict[str, Any]) -> Entry:
    # Where the long columns were not read, the one that must be there is empty.
    figures = {name: record.get(name, "" if name == "protocol_json" else None) for name in DatasetRow.model_fields}
    if figures["measured_at"] is not None:
        figures["measured_at"] = figures["measured_at"].replace(tzinfo=UTC)
    return Entry(
        row=DatasetRow.model_validate(figures),
        on_front=record["on_front"],
        tied_with=record["tied_with"],
        group=f"{record['plane']} {record['pool']}",
        apart=bool(record["pool"]),
    )


def _where(
    base_model: str | None,
    owner: str | None,
    repo_id: str | None,
    protocol: str | None,
    search: str,
    include_stale: bool,
) -> tuple[str, list[Any]]:
    """The condition and its values. Every value is a parameter; a search is text, its % and _ are no patterns."""
    clauses, values = ["true"], list[Any]()
    for column, value in (("base_model", base_model), ("owner", owner), ("repo_id", repo_id)):
        if value:
            clauses.append(f"{column} = ?")
            values.append(value)
    if protocol:
        clauses.append("(protocol_fingerprint = ? OR protocol_name = ?)")
        values += [protocol, protocol]
    for word in search[:200].lower().split()[:8]:
        clauses.append("contains(haystack, ?)")
        values.append(word)
    if not include_stale:
        clauses.append("state <> 'stale'")
    return " AND ".join(clauses), values
