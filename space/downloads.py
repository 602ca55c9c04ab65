"""A filtered table as a file: CSV, JSON or parquet, bounded, written where whoever asked gets it from."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from core.errors import InputError
from core.sandbox.scratch import scratch_folder
from space.data import Results
from space.filters import Filters, order_by
from space.published_file import SHORT

Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: Rows of one file; whoever wants more takes the dataset itself.
MAX_ROWS = 20_000
#: Characters of one cell.
_CELL = 2_000


def table(results: Results, filters: Filters, sort: str = "model", limit: int = MAX_ROWS) -> Any:
    """The rows that match with all columns but the long ones, as an arrow table."""
    where, values = filters.where()
    columns = ", ".join(
        f"left({name}, {_CELL}) AS {name}" if name in _TEXTS else name for name in (*SHORT, "on_front", "tied_id")
    )
    return results.snapshot.arrow(
        f"SELECT {columns} FROM measurements WHERE {where} ORDER BY {order_by(sort)} LIMIT ?",
        [*values, max(0, min(limit, MAX_ROWS))],
    )


def write(
    results: Results,
    filters: Filters,
    kind: str,
    *,
    sort: str = "model",
    limit: int = MAX_ROWS,
    folder: Path | None = None,
) -> Path:
    """The table as a file in ``folder``, or in a new temporary one.

    Raises:
        InputError: an unknown format.
    """
    if kind not in FORMATS:
        raise InputError(f"The format must be one of {', '.join(FORMATS)}.")
    rows = table(results, filters, sort, limit)
    path = (folder or Path(tempfile.mkdtemp(prefix="quantcard-"))) / f"quantcard.{kind}"
    if kind == "csv":
        with path.open("wb") as file:
            pa_csv.write_csv(_harmless(rows), file)
    elif kind == "json":
        path.write_text(json.dumps(rows.to_pylist(), default=str, ensure_ascii=True), encoding="utf-8")
    else:
        pq.write_table(rows, path, compression="zstd")
    return path


def _harmless(rows: Any) -> Any:
    """No cell that a spreadsheet would take for a formula: a foreign name may begin like one."""
    columns = {}
    for name in rows.column_names:
        column = rows[name]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.replace_substring_regex(column, r"^([=+\-@\t\r])", r"'\1")
        columns[name] = column
    return pa.table(columns)


_TEXTS = frozenset({"repo_id", "owner", "variant", "first_file", "label", "reason", "base_model", "disputed", "flags"})


class Folder:
    """Where downloads wait to be fetched: a temporary folder that ends with the process; old ones are dropped."""

    def __init__(self, *, keep_s: float = 600.0) -> None:
        self._keep_s = keep_s
        with ExitStack() as stack:
            self._folder = stack.enter_context(scratch_folder())
            # What a process that is killed leaves of it, the next one sweeps away.
            weakref.finalize(self, stack.pop_all().close)

    def fresh(self) -> Path:
        """A new folder in it."""
        for old in self._folder.iterdir():
            with suppress(OSError):
                if time.time() - old.stat().st_mtime > self._keep_s:
                    shutil.rmtree(old)
        return Path(tempfile.mkdtemp(dir=self._folder))
