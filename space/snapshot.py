"""One published state of the dataset in memory: a DuckDB table with fronts, ties and comparability worked out.

They are worked out once, in SQL, over the whole dataset: what :func:`core.verdict.pareto` and
:func:`core.verdict.tied` say of a handful of candidates (a test holds the two together).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

import duckdb
import pyarrow as pa

from core.dataset import DatasetRow, RowState
from core.verdict import NEAR, Z95
from space.published_file import SHORT, BrokenDatasetError, PublishedFile, short_type

T = TypeVar("T")
#: Answers kept of a state, some kilobytes each; with more all are worked out anew.
_MOST_REMEMBERED = 1000

__all__ = ["BrokenDatasetError", "Snapshot", "empty", "load"]

#: Ranked together: the same base model, protocol and baseline ("plane"), and within it the environments whose
#: control run lies under a tenth of the smallest KLD ("pool" ''); each other environment is a pool of its own.
_RANKING = """
CREATE TEMP TABLE judgement AS
WITH base AS (
  SELECT *, coalesce(base_model, repo_id) AS model,
    hash(coalesce(base_model, repo_id), protocol_fingerprint, coalesce(reference_key, '')) AS plane,
    coalesce(environment_fingerprint, '') AS env,
    state = 'measured' AND NOT is_reference AND kld_mean IS NOT NULL AND quality_imported IS NULL AND size_bytes > 0
      AS ranked
  FROM kept
), planes AS (
  SELECT plane, min(kld_mean) AS least, count(DISTINCT env) AS n_env FROM base WHERE ranked GROUP BY plane
), floors AS (
  SELECT plane, env, max(abs(coalesce(noise_floor,
    CASE WHEN is_reference AND quality_imported IS NULL THEN kld_mean END))) AS floor
  FROM base GROUP BY plane, env
), pooled AS (
  SELECT base.*,
    CASE WHEN coalesce(n_env, 0) <= 1 OR floor < least / 10 THEN '' ELSE env END AS pool
  FROM base LEFT JOIN planes USING (plane) LEFT JOIN floors USING (plane, env)
), judged AS (
  SELECT id,
    kld_mean = min(kld_mean) OVER no_larger
      AND NOT coalesce(min(kld_mean) OVER smaller <= kld_mean, false) AS front,
    CASE WHEN kld_mean - lag(kld_mean) OVER closer
        <= $z * sqrt(pow(coalesce(kld_stderr, 0), 2) + pow(coalesce(lag(kld_stderr) OVER closer, 0), 2))
      THEN CASE WHEN lag(repo_id) OVER closer = repo_id THEN lag(label) OVER closer
        ELSE concat_ws(' ', lag(owner) OVER closer, lag(label) OVER closer) END END AS tied,
    CASE WHEN tied IS NOT NULL THEN lag(id) OVER closer END AS tied_row,
    tg_ts IS NOT NULL AND speed_imported IS NULL
      AND kld_mean = min(CASE WHEN speed_imported IS NULL THEN kld_mean END) OVER no_slower
      AND NOT coalesce(min(CASE WHEN speed_imported IS NULL THEN kld_mean END) OVER faster <= kld_mean, false)
      AS speed_front
  FROM pooled WHERE ranked
  WINDOW
    no_larger AS (PARTITION BY plane, pool ORDER BY size_bytes
      RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
    smaller AS (PARTITION BY plane, pool ORDER BY size_bytes
      RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP),
    no_slower AS (PARTITION BY plane, pool, env ORDER BY tg_ts DESC NULLS LAST
      RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
    faster AS (PARTITION BY plane, pool, env ORDER BY tg_ts DESC NULLS LAST
      RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP),
    closer AS (PARTITION BY plane, pool ORDER BY kld_mean, size_bytes, id)
)
SELECT place, model, plane, pool, ranked, coalesce(front, false) AS on_front,
  coalesce(speed_front, false) AS on_speed_front,
  tied AS tied_with, tied_row AS tied_id
FROM pooled LEFT JOIN judged USING (id)
"""
#: What the ranking goes by, and what no row may lack.
_NARROW = tuple(
    name
    for name in SHORT
    if DatasetRow.model_fields[name].is_required()
    or name
    in {
        "base_model", "reference_key", "environment_fingerprint", "noise_floor", "kld_mean", "kld_stderr", "tg_ts",
        "quality_imported", "speed_imported", "measured_at",
    }
)  # fmt: skip

#: One row for each base model. Its best files are those of the plane where most of its files are ranked.
_MODELS = """
CREATE TABLE models AS
WITH planes AS (
  SELECT model, arg_max(plane, (n, plane)) AS main_plane FROM (
    SELECT model, plane, count(*) AS n FROM measurements WHERE ranked AND pool = '' GROUP BY model, plane
  ) GROUP BY model
), summed AS (
SELECT m.model AS model, any_value(main_plane) AS main_plane,
  bool_or(base_model IS NOT NULL) AS known,
  count(*) FILTER (state <> 'stale') AS n_variants,
  count(*) FILTER (kld_mean IS NOT NULL AND state = 'measured') AS n_measured,
  count(*) FILTER (state IN ('failed', 'retracted')) AS n_failed,
  count(DISTINCT owner) AS n_uploaders,
  count(DISTINCT repo_id) AS n_repos,
  max(n_params) AS n_params,
  any_value(architecture) AS architecture,
  min(size_bytes) FILTER (state <> 'stale' AND NOT is_reference) AS least_bytes,
  max(size_bytes) FILTER (state <> 'stale' AND NOT is_reference) AS most_bytes,
  arg_min(id, (kld_mean, size_bytes, id)) FILTER (ranked AND plane = main_plane AND pool = '') AS closest_id,
  arg_min(id, (size_bytes, kld_mean, id)) FILTER (
    ranked AND plane = main_plane AND pool = '' AND kld_mean <= $kld AND same_top >= $top
  ) AS near_id,
  max(measured_at) AS measured_at,
  lower(m.model) AS haystack
FROM measurements AS m LEFT JOIN planes ON planes.model = m.model
GROUP BY m.model
)
SELECT summed.*,
  c.label AS closest_label, c.owner AS closest_owner, c.kld_mean AS closest_kld,
  n.label AS near_label, n.owner AS near_owner, n.size_bytes AS near_bytes
FROM summed LEFT JOIN measurements AS c ON c.id = closest_id LEFT JOIN measurements AS n ON n.id = near_id
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A loaded state: its tables ``measurements`` and ``models``, and what stayed in the file.

    ``n_left_out``: rows that this version can't read. ``environments``, ``protocols``: JSON by fingerprint, the most
    used first.
    """

    connection: Any
    n_rows: int
    n_models: int
    n_left_out: int
    newest: datetime | None
    file: PublishedFile | None = None
    environments: dict[str, str] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)
    _cursors: threading.local = field(default_factory=threading.local)
    _remembered: dict[Hashable, Any] = field(default_factory=dict)

    def query(self, sql: str, values: Any = ()) -> Any:
        """The answer to a query; any number of threads may ask at once."""
        return self._cursor().execute(sql, values)

    def arrow(self, sql: str, values: Any = ()) -> Any:
        """The answer to a query as an arrow table."""
        return self._cursor().sql(sql, params=values).to_arrow_table()

    def _cursor(self) -> Any:
        # A connection serves one thread at a time; its cursors are connections of their own.
        cursor = getattr(self._cursors, "own", None)
        if cursor is None:
            cursor = self._cursors.own = self.connection.cursor()
        return cursor

    def remembered(self, name: Hashable, make: Callable[[], T]) -> T:
        """What is worked out once for this state; two threads may do so at once, to the same end."""
        try:
            found: T = self._remembered[name]
        except KeyError:
            found = make()
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[name] = found
        return found

    def long(self, place: int) -> dict[str, Any]:
        """The long columns of the row at a place in the file."""
        return self.file.long(place) if self.file else {}


def load(path: Path) -> Snapshot:
    """Read the parquet file at ``path``, all of it; raises :class:`BrokenDatasetError` with a sentence."""
    file = PublishedFile(path)
    shared = file.check()
    try:
        return _rank(file.short, file, shared)
    except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as failure:
        raise BrokenDatasetError("The published file can't be loaded: it is damaged or too large.") from failure


def empty() -> Snapshot:
    """The state before anything was published."""

    def nothing(names: Sequence[str]) -> Any:
        columns = {name: pa.array([], short_type(name)) for name in names}
        return pa.table(columns | {"place": pa.array([], pa.int64())})

    return _rank(nothing, None, {})


def _rank(
    read: Callable[[Sequence[str]], Any], file: PublishedFile | None, shared: dict[str, dict[str, str]]
) -> Snapshot:
    """Two passes over the file: first what the ranking goes by, then all columns straight into their table."""
    connection = duckdb.connect(config={"threads": min(4, os.cpu_count() or 1), "memory_limit": "512MB"})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET preserve_insertion_order = false")
    fields = DatasetRow.model_fields
    whole = " AND ".join(f"{n} IS NOT NULL" for n in SHORT if fields[n].is_required())
    states = ", ".join(f"'{s}'" for s in get_args(RowState))
    connection.register("incoming", read(_NARROW))
    connection.execute(
        f"CREATE TEMP TABLE kept AS SELECT {_finite(_NARROW)}, place FROM incoming "
        f"WHERE {whole} AND size_bytes >= 0 AND state IN ({states}) "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY measured_at DESC NULLS LAST) = 1"
    )
    connection.unregister("incoming")
    connection.execute(_RANKING, {"z": Z95})
    connection.execute("DROP TABLE kept")
    connection.register("incoming", read(SHORT))
    connection.execute(
        "CREATE TABLE measurements AS SELECT wide.*, judgement.* EXCLUDE (place), "
        "lower(concat_ws(' ', repo_id, variant, label, base_model)) AS haystack "
        f"FROM (SELECT {_finite(SHORT)}, place FROM incoming) AS wide JOIN judgement USING (place)"
    )
    connection.unregister("incoming")
    connection.execute("DROP TABLE judgement")
    connection.execute(_MODELS, {"kld": NEAR[0], "top": NEAR[1]})
    pa.default_memory_pool().release_unused()
    # From here on queries only: no file, no network, no extension, whatever a query might hold.
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    n_rows, newest = connection.execute("SELECT count(*), max(measured_at) FROM measurements").fetchone()
    return Snapshot(
        connection,
        n_rows,
        int(connection.execute("SELECT count(*) FROM models").fetchone()[0]),
        (file.n_rows if file else 0) - n_rows,
        newest,
        file,
        shared.get("environment_json", {}),
        shared.get("protocol_json", {}),
    )


def _finite(names: Sequence[str]) -> str:
    """Columns as SQL. A NaN or infinity is no figure: it would sort first and break an axis."""
    return ", ".join(
        f"CASE WHEN isfinite({name}) THEN {name} END AS {name}" if pa.types.is_floating(short_type(name)) else name
        for name in names
    )
