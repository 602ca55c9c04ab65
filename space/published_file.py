"""The published parquet file, checked before a figure of it is shown, and read no further than is needed.

The long columns (raw results, protocols, commands) stay in the file: of a hundred thousand rows they are a gigabyte,
and only one row at a time is ever opened.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.dataset import SCHEMA_VERSION, DatasetRow
from core.dataset_file import arrow_type
from core.errors import InputError

#: More is no results dataset of ours, or one that this page was not made for.
MAX_BYTES = 4 << 30
MAX_ROWS = 1_000_000
#: Bytes of one row group once it is unpacked: what opening one measurement may take.
MAX_GROUP_BYTES = 256 << 20

LONG = tuple(name for name in DatasetRow.model_fields if name.endswith("_json") or name == "command")
SHORT = tuple(name for name in DatasetRow.model_fields if name not in LONG)
#: Of the long columns, those of which few different values stand in many rows, and what they are known by.
SHARED = {"environment_json": "environment_fingerprint", "protocol_json": "protocol_fingerprint"}


class BrokenDatasetError(InputError):
    """The published file can't be read, or is not a results dataset."""


class PublishedFile:
    """An open results file; it can be read on when another one has taken its name. Safe to use from many threads.

    Raises:
        BrokenDatasetError: damaged, half-written, too large, or not a results file of a version that is known here.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            if path.stat().st_size > MAX_BYTES:
                raise BrokenDatasetError("The published file is too large for this page.")
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        except (pa.ArrowException, OSError) as failure:
            raise BrokenDatasetError("The published file is damaged or not parquet.") from failure
        self._present = set(self._file.schema_arrow.names)
        groups = [self._file.metadata.row_group(i) for i in range(self._file.metadata.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self.n_rows = int(self._file.metadata.num_rows)
        _check_about(self._file.metadata.metadata or {})
        missing = [n for n, f in DatasetRow.model_fields.items() if f.is_required() and n not in self._present]
        if missing:
            raise BrokenDatasetError(f"The published file lacks the columns {', '.join(missing)}.")
        if self.n_rows > MAX_ROWS or any(group.total_byte_size > MAX_GROUP_BYTES for group in groups):
            raise BrokenDatasetError("The published file is too large for this page.")

    def short(self, names: Sequence[str]) -> Any:
        """Some short columns of all rows as an arrow reader, with each row's ``place`` in the file.

        Columns that we don't know are left alone, optional ones that are missing are null. Reading raises
        :class:`pyarrow.ArrowException` or :class:`OSError` where the file is damaged.
        """
        fields = [pa.field(name, short_type(name)) for name in names]
        schema = pa.schema([*fields, pa.field("place", pa.int64())])
        columns = [name for name in names if name in self._present]

        def batches() -> Iterator[Any]:
            for number, end in enumerate(self._ends.tolist()):
                table = self._file.read_row_group(number, columns=columns)
                told = {name: _column(table, name) for name in names}
                place = pa.array(np.arange(end - table.num_rows, end))
                yield from pa.table(told | {"place": place}, schema=schema).to_batches()

        return pa.RecordBatchReader.from_batches(schema, batches())

    def check(self) -> dict[str, dict[str, str]]:
        """Read what :meth:`short` did not, so that every page's checksum is held against it.

        Returns:
            the :data:`SHARED` texts by column and fingerprint, the most used first.

        Raises:
            BrokenDatasetError: a byte is not as it was written.
        """
        columns = [name for name in LONG if name in self._present]
        keys = [key for name, key in SHARED.items() if {name, key} <= self._present]
        texts: dict[str, dict[str, str]] = {name: {} for name in SHARED}
        counts: dict[str, Counter[str]] = {name: Counter() for name in SHARED}
        try:
            for number in range(len(self._ends)):
                table = self._file.read_row_group(number, columns=columns + keys)
                for name, key in SHARED.items():
                    if key not in keys or table.num_rows == 0:
                        continue
                    known = table.filter(pc.is_valid(table[key]))
                    found = known.group_by(key).aggregate([(name, "max"), (key, "count")])
                    for one, text, n in zip(
                        *(found[c].to_pylist() for c in (key, f"{name}_max", f"{key}_count")), strict=True
                    ):
                        texts[name].setdefault(one, text)
                        counts[name][one] += n
        except (pa.ArrowException, OSError) as failure:
            raise BrokenDatasetError("The published file is damaged.") from failure
        return {
            name: {one: texts[name][one] for one, _ in sorted(c.items(), key=lambda item: (-item[1], item[0]))}
            for name, c in counts.items()
        }

    def long(self, place: int) -> dict[str, Any]:
        """The long columns of one row."""
        group = int(np.searchsorted(self._ends, place, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        columns = [name for name in LONG if name in self._present]
        with self._lock:
            table = self._file.read_row_group(group, columns=columns)
        return dict.fromkeys(LONG) | table.slice(place - first, 1).to_pylist()[0]


def _check_about(about: dict[bytes, bytes]) -> None:
    """A file of a later version means something else by its columns; files of before said no version."""
    said = about.get(b"schema_version", b"1")
    if not said.isdigit() or int(said) > SCHEMA_VERSION:
        raise BrokenDatasetError(
            f"The published file is of schema version {said.decode('ascii', 'replace')[:20]}; this page reads up to "
            f"{SCHEMA_VERSION}. Deploy the page anew."
        )


def short_type(name: str) -> Any:
    """The type of a column as it is kept here: naive UTC times, since DuckDB needs pytz to read zoned ones."""
    kind = arrow_type(name)
    return pa.timestamp("us") if pa.types.is_timestamp(kind) else kind


def _column(table: Any, name: str) -> Any:
    field, kind = DatasetRow.model_fields[name], short_type(name)
    default = None if field.is_required() else field.default
    if name not in table.column_names:
        return pa.repeat(pa.scalar(default, kind), table.num_rows)
    column = table[name].cast(kind)
    return column if default is None else pc.fill_null(column, default)
