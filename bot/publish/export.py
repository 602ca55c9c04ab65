"""The results dataset: parquet, card, every repo's fragments; written locally always, to the Hub in one commit."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from bot.hub.door import HubDoor
from bot.publish import fragment_files
from bot.publish.fragments import Links
from bot.publish.render import render_dataset_card
from bot.store import Store
from core.canonical import write_atomic
from core.dataset import MEASUREMENTS_PATH, DatasetRow
from core.errors import HubError

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


def parquet_rows(content: bytes) -> list[DatasetRow]:
    """The rows of a parquet file of ours; columns that this version does not know are left out.

    Raises:
        ValueError: it is not one of ours.
    """
    try:
        table = pq.read_table(io.BytesIO(content))
        known = [name for name in table.column_names if name in DatasetRow.model_fields]
        return [DatasetRow.model_validate(row) for row in table.select(known).to_pylist()]
    except (pa.ArrowException, ValidationError) as error:
        raise ValueError(f"not a results file ({type(error).__name__})") from error


def merged(ours: Sequence[DatasetRow], published: Sequence[DatasetRow]) -> list[DatasetRow]:
    """Our rows, and the published ones that we know nothing about: other repos', other protocols'.

    A new database, or another corpus for a day, must not wipe out what was published before.
    """
    told = {(row.repo_id, row.protocol_fingerprint) for row in ours}
    kept = [row for row in published if (row.repo_id, row.protocol_fingerprint) not in told]
    return [*ours, *kept]


def export(
    store: Store,
    hub: HubDoor | None,
    rows: Sequence[DatasetRow],
    *,
    data: Path,
    dataset: str,
    links: Links | None = None,
) -> bool:
    """Write the local copy and, where ``dataset`` and ``hub`` are given, commit to the Hub if anything changed.

    With ``links``, what repos' sections link to, every repo's fragments are part of it: at most
    :data:`bot.publish.fragment_files.MAX_FILES` a commit, the rest with the next one (:func:`left_over`).

    Returns whether a commit was made.

    Raises:
        HubError: the Hub refused or did not answer; the next run tries again.
        StorageError: the local copy can't be written.
    """
    content = parquet_bytes(rows)
    path = local_path(data)
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    folder = data / "export"
    paths = fragment_files.refresh(store, rows, links, export=folder) if links else []
    if not dataset or hub is None or not rows:
        return False
    digest = hashlib.sha256(content).hexdigest()
    where = _where(hub.endpoint, dataset)
    files = cards = fragment_files.due(store, where, paths, export=folder)
    message = f"{len(cards)} fragments of cards"
    changed = store.results.get(f"exported:{where}") != digest
    if changed:
        everything = _everything(hub, rows, dataset)
        measured = sum(row.state == "measured" for row in everything)
        message = f"{measured} measured variants"
        files = {
            MEASUREMENTS_PATH: parquet_bytes(everything),
            "README.md": render_dataset_card(len(everything)).encode(),
            **cards,
        }
    if not files:
        return False
    done = hub.publish_dataset(dataset, files=files, message=message)
    if not hub.dry_run:
        store.results.put(f"exported:{where}", digest)
        fragment_files.note(store, where, cards)
    return done.changed


def left_over(store: Store, endpoint: str, dataset: str) -> int:
    """Files of the local copy that are not in the dataset yet, so that another export is wanted soon."""
    return store.files.n_due(_where(endpoint, dataset)) if dataset else 0


def _where(endpoint: str, dataset: str) -> str:
    return f"{endpoint.rstrip('/')}:{dataset}"


def _everything(hub: HubDoor, rows: Sequence[DatasetRow], dataset: str) -> list[DatasetRow]:
    """Our rows with those of the published file that we know nothing about."""
    published = hub.dataset_file(dataset, MEASUREMENTS_PATH)
    if published is None:
        return list(rows)
    try:
        return merged(rows, parquet_rows(published))
    except ValueError as error:
        raise HubError(
            f"{MEASUREMENTS_PATH} of the dataset {dataset} is {error}; it is left alone. "
            "Name another dataset, or remove that file."
        ) from error
