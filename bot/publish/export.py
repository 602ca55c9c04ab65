"""The results dataset: parquet, card, what stands beside; written locally always, to the Hub in one commit.

docs/dataset.md says what stands where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from bot.hub.door import HubDoor
from bot.publish import attachments, fragment_files
from bot.publish.fragments import Links
from bot.publish.render import render_dataset_card
from bot.store import Store
from core.canonical import write_atomic
from core.dataset import MEASUREMENTS_PATH, DatasetRow
from core.dataset_file import parquet_bytes, parquet_rows
from core.errors import HubError


def local_path(data: Path) -> Path:
    """Where the local copy stands, for a leaderboard beside the bot."""
    return data / "export" / MEASUREMENTS_PATH


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

    Beside the parquet go per-token files and raw results, and with ``links``, what repos' sections link to, every
    repo's fragments: at most :data:`bot.publish.fragment_files.MAX_FILES` and
    :data:`bot.publish.fragment_files.MAX_BYTES` a commit, the rest with the next one (:func:`left_over`).

    Returns whether a commit was made.

    Raises:
        HubError: the Hub refused or did not answer; the next run tries again.
        StorageError: the local copy can't be written.
    """
    folder = data / "export"
    # Fragments are made from the rows as they were given: where their files lie says nothing there.
    paths = fragment_files.refresh(store, rows, links, export=folder) if links else []
    there = store.files.known(_where(hub.endpoint, dataset)) if dataset and hub else {}
    rows, beside = attachments.attach(store, rows, data=data, export=folder, published=there)
    paths += beside
    content = parquet_bytes(rows)
    path = local_path(data)
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    if not dataset or hub is None or not rows:
        return False
    digest = hashlib.sha256(content).hexdigest()
    where = _where(hub.endpoint, dataset)
    files = more = fragment_files.due(store, where, paths, export=folder)
    message = f"{len(more)} files beside the measurements"
    changed = store.results.get(f"exported:{where}") != digest
    if changed:
        everything = _everything(hub, rows, dataset)
        measured = sum(row.state == "measured" for row in everything)
        message = f"{measured} measured variants"
        files = {
            MEASUREMENTS_PATH: parquet_bytes(everything),
            "README.md": render_dataset_card(len(everything)).encode(),
            **more,
        }
    if not files:
        return False
    done = hub.publish_dataset(dataset, files=files, message=message)
    if not hub.dry_run:
        store.results.put(f"exported:{where}", digest)
        fragment_files.note(store, where, more)
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
