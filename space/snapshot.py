"""One published state of the dataset in memory: a DuckDB table with fronts, ties and comparability worked out.

They are worked out once, in SQL, over the whole dataset: what :func:`core.verdict.pareto` and
:func:`core.verdict.tied` say of a handful of candidates (a test holds the two together).
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_origin

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.dataset import DatasetRow, RowState
from core.errors import InputError
from core.verdict import Z95

_ARROW = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    # Naive UTC: DuckDB's zoned times need pytz to be read.
    datetime: pa.timestamp("us"),
}

#: Ranked together: the same base model, protocol and baseline ("plane"), and within it the environments whose
#: control run lies under a tenth of the smallest KLD ("pool" ''); each other environment is a pool of its own.
_RANKING = """
CREATE TABLE measurements AS
WITH base AS (
  SELECT *,
    coalesce(base_model, repo_id) || chr(31) || protocol_fingerprint || chr(31) || coalesce(reference_key, '') AS plane,
    coalesce(environment_fingerprint, '') AS env,
    state = 'measured' AND NOT is_reference AND kld_mean IS NOT NULL AND quality_imported IS NULL AND size_bytes > 0
      AS ranked,
    lower(concat_ws(' ', repo_id, variant, label, base_model)) AS haystack
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
        ELSE concat_ws(' ', lag(owner) OVER closer, lag(label) OVER closer) END END AS tied
  FROM pooled WHERE ranked
  WINDOW
    no_larger AS (PARTITION BY plane, pool ORDER BY size_bytes
      RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
    smaller AS (PARTITION BY plane, pool ORDER BY size_bytes
      RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP),
    closer AS (PARTITION BY plane, pool ORDER BY kld_mean, size_bytes, id)
)
SELECT pooled.*, coalesce(front, false) AS on_front, tied AS tied_with
FROM pooled LEFT JOIN judged USING (id)
"""


class BrokenDatasetError(InputError):
    """The published file can't be read, or is not a results dataset."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A loaded state: its table ``measurements``, rows in it, and rows that this version can't read."""

    connection: Any
    n_rows: int
    n_left_out: int
    newest: datetime | None


def load(path: Path) -> Snapshot:
    """Read the parquet file at ``path``; raises :class:`BrokenDatasetError` with a sentence."""
    try:
        table = _read(path)
    except (pa.ArrowException, OSError) as failure:
        raise BrokenDatasetError("The published file is damaged or not parquet.") from failure
    return _rank(table)


def empty() -> Snapshot:
    """The state before anything was published."""
    return _rank(pa.table({name: pa.array([], _arrow_type(name)) for name in DatasetRow.model_fields}))


def _arrow_type(name: str) -> Any:
    annotation = DatasetRow.model_fields[name].annotation
    if get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(a for a in get_args(annotation) if a is not types.NoneType)
    return _ARROW.get(typing.cast(type, annotation), pa.string())  # a Literal is a string


def _read(path: Path) -> Any:
    """The columns that we know, in our types; unknown ones are left alone, missing optional ones are null."""
    file = pq.ParquetFile(path)
    present = set(file.schema_arrow.names)
    missing = [n for n, f in DatasetRow.model_fields.items() if f.is_required() and n not in present]
    if missing:
        raise BrokenDatasetError(f"The published file lacks the columns {', '.join(missing)}.")
    table = file.read(columns=[n for n in DatasetRow.model_fields if n in present])
    columns = {}
    for name, field in DatasetRow.model_fields.items():
        default = None if field.is_required() else field.default
        kind = _arrow_type(name)
        if name in present:
            column = table[name].cast(kind)
            columns[name] = column if default is None else pc.fill_null(column, default)
        else:
            columns[name] = pa.repeat(pa.scalar(default, kind), table.num_rows)
    return pa.table(columns)


def _rank(table: Any) -> Snapshot:
    connection = duckdb.connect(config={"threads": 2, "memory_limit": "1GB"})
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("incoming", table)
    fields = DatasetRow.model_fields
    # A NaN or infinity is no figure: it would sort first and break an axis.
    columns = ", ".join(
        f"CASE WHEN isfinite({n}) THEN {n} END AS {n}" if _arrow_type(n) == pa.float64() else n for n in fields
    )
    whole = " AND ".join(f"{n} IS NOT NULL" for n, f in fields.items() if f.is_required())
    states = ", ".join(f"'{s}'" for s in get_args(RowState))
    connection.execute(
        f"CREATE TEMP TABLE kept AS SELECT {columns} FROM incoming "
        f"WHERE {whole} AND size_bytes >= 0 AND state IN ({states}) "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY measured_at DESC NULLS LAST) = 1"
    )
    connection.execute(_RANKING, {"z": Z95})
    connection.execute("DROP TABLE kept")
    connection.unregister("incoming")
    # From here on queries only: no file, no network, no extension, whatever a query might hold.
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    n_rows, newest = connection.execute("SELECT count(*), max(measured_at) FROM measurements").fetchone()
    return Snapshot(connection, n_rows, table.num_rows - n_rows, newest)
