"""The results dataset: parquet and card, written locally always and to the Hub in one commit when it changed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from bot.hub.door import HubDoor
from bot.publish.render import render_dataset_card
from bot.store import Store
from core.canonical import write_atomic
from core.dataset import MEASUREMENTS_PATH, DatasetRow

_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


def arrow_schema() -> pa.Schema:
    """The dataset's schema, from :class:`core.dataset.DatasetRow`."""
    fields = []
    for name, field in DatasetRow.model_fields.items():
        kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
        arrow = _TYPES.get(kinds[0])
        if arrow is None:
            arrow = pa.timestamp("us", tz="UTC") if "datetime" in str(kinds[0]) else pa.string()
        fields.append(pa.field(name, arrow))
    return pa.schema(fields)


def parquet_bytes(rows: Sequence[DatasetRow]) -> bytes:
    """The rows as parquet: the same bytes for the same rows, sorted by repo, variant and id."""
    ordered = sorted(rows, key=lambda row: (row.repo_id, row.variant, row.id))
    table = pa.Table.from_pylist([row.model_dump() for row in ordered], schema=arrow_schema())
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def local_path(data: Path) -> Path:
    """Where the local copy stands, for a leaderboard beside the bot."""
    return data / "export" / MEASUREMENTS_PATH


def export(store: Store, hub: HubDoor | None, rows: Sequence[DatasetRow], *, data: Path, dataset: str) -> bool:
    """Write the local copy and, where ``dataset`` and ``hub`` are given, commit to the Hub if anything changed.

    Returns whether a commit was made.

    Raises:
        HubError: the Hub refused or did not answer; the next run tries again.
    """
    content = parquet_bytes(rows)
    path = local_path(data)
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    if not dataset or hub is None:
        return False
    digest = hashlib.sha256(content).hexdigest()
    name = f"exported:{hub.endpoint}:{dataset}"
    if store.results.get(name) == digest:
        return False
    measured = sum(row.state == "measured" for row in rows)
    hub.publish_dataset(
        dataset,
        files={MEASUREMENTS_PATH: content, "README.md": render_dataset_card(len(rows)).encode()},
        message=f"{measured} measured variants",
    )
    if not hub.dry_run:
        store.results.put(name, digest)
    return True
