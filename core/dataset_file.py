"""The results dataset as files: its arrow schema, its parquet, and where what stands beside it is found. Pure.

Every page of the parquet carries a checksum, so that a reader sees damage before it shows a figure.
"""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Sequence
from datetime import datetime
from typing import Any, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from core.dataset import SCHEMA_VERSION, DatasetRow

FORMAT = "quantcard-measurements"
#: Rows that are read together when one of them is opened.
ROW_GROUP = 1000
#: Files of one kind lie in 256 folders: the Hub wants no more than 10,000 in one.
TOKENS_FOLDER, RAW_FOLDER = "data/tokens", "data/raw"

_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
}


def arrow_type(name: str) -> pa.DataType:
    """The type of a column of :class:`core.dataset.DatasetRow`."""
    annotation = DatasetRow.model_fields[name].annotation
    if get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(kind for kind in get_args(annotation) if kind is not types.NoneType)
    return _TYPES.get(annotation, pa.string())  # a Literal is a string


def arrow_schema() -> pa.Schema:
    """The dataset's schema: every column in order, with format and version in its metadata."""
    about = {"format": FORMAT, "schema_version": str(SCHEMA_VERSION)}
    return pa.schema([pa.field(name, arrow_type(name)) for name in DatasetRow.model_fields], metadata=about)


def parquet_bytes(rows: Sequence[DatasetRow]) -> bytes:
    """The rows as parquet: the same bytes for the same rows, sorted by repo, variant and id."""
    ordered = sorted(rows, key=lambda row: (row.repo_id, row.variant, row.id))
    return write_table(pa.Table.from_pylist([row.model_dump() for row in ordered], schema=arrow_schema()))


def write_table(table: pa.Table) -> bytes:
    """A table of the dataset's schema as parquet, the way the dataset has it."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def parquet_rows(content: bytes) -> list[DatasetRow]:
    """The rows of a parquet file of ours; columns that this version does not know are left out.

    Raises:
        ValueError: it is not one of ours, or damaged.
    """
    try:
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
        known = [name for name in table.column_names if name in DatasetRow.model_fields]
        return [DatasetRow.model_validate(row) for row in table.select(known).to_pylist()]
    except (pa.ArrowException, OSError, ValidationError) as error:
        raise ValueError(f"not a results file ({type(error).__name__})") from error


def tokens_path(sha256: str) -> str:
    """Where the per-token file with this sha256 stands in the dataset."""
    return f"{TOKENS_FOLDER}/{sha256[:2]}/{sha256}.parquet"


def raw_path(sha256: str) -> str:
    """Where the raw results with this sha256 stand in the dataset."""
    return f"{RAW_FOLDER}/{sha256[:2]}/{sha256}.json"


def sha256_in(path: str) -> str | None:
    """The sha256 that a path of such a file names; None for any other path."""
    sha256 = path.rpartition("/")[2].partition(".")[0]
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        return None
    return sha256 if path in (tokens_path(sha256), raw_path(sha256)) else None


def column_rows() -> list[str]:
    """The columns as rows of docs/dataset.md's table: name, type (with ? where it may be null), meaning."""
    names = {pa.timestamp("us", tz="UTC"): "timestamp"}
    rows = []
    for name, field in DatasetRow.model_fields.items():
        kind = arrow_type(name)
        optional = "?" if not field.is_required() and field.default is None else ""
        rows.append(f"| `{name}` | {names.get(kind, kind)}{optional} | {field.description} |")
    return rows
