"""What stands beside the rows in the dataset: per-token files and raw results, named by their sha256.

The local export gets each once, by a hard link where it can; the dataset gets what it lacks with the next commits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from bot.store import Store
from bot.store.files import PublishedFile
from core.canonical import sha256_file, storage_error, write_atomic
from core.dataset import DatasetRow
from core.dataset_file import RAW_FOLDER, TOKENS_FOLDER, raw_path, sha256_in

#: A per-token file that is larger stays at home: 16 bytes or so a token, so that this is some four million.
MAX_BYTES = 64 << 20
#: The local copy's name in the store.
LOCAL = ""


def raw_json(row: DatasetRow) -> bytes | None:
    """A row's results as they were stored, or None where it has none: the same bytes for the same results."""
    if row.quality_json is None and row.speed_json is None:
        return None
    # The parts are canonical JSON already.
    parts = {
        "environment": row.environment_json,
        "protocol": row.protocol_json,
        "quality": row.quality_json,
        "speed": row.speed_json,
        "tasks": row.tasks_json,
    }
    told = ",".join(f'"{name}":{text or "null"}' for name, text in parts.items())
    return f'{{"schema":"quantcard.raw","variant_key":"{row.variant_key}","version":1,{told}}}\n'.encode(
        "utf-8", "replace"
    )


def attach(
    store: Store, rows: Sequence[DatasetRow], *, data: Path, export: Path, published: Container[str] = ()
) -> tuple[list[DatasetRow], list[str]]:
    """Put what belongs to the rows into the local export; gives the rows with their paths, and all these paths.

    A row whose per-token file is neither here nor among the ``published`` paths loses its path, not its figures.

    Raises:
        StorageError: the export can't be written.
    """
    known = store.files.known(LOCAL)
    sidecars: dict[str, Path] | None = None
    told: list[DatasetRow] = []
    paths: list[str] = []
    new: list[PublishedFile] = []
    for row in rows:
        raw = raw_json(row)
        raw_at = None
        if raw is not None:
            sha256 = hashlib.sha256(raw).hexdigest()
            raw_at = raw_path(sha256)
            if raw_at not in known or not (export / raw_at).is_file():
                write_atomic(export / raw_at, raw)
                new.append(PublishedFile(raw_at, sha256))
        tokens = row.tokens_path
        sha256_of_tokens = sha256_in(tokens) if tokens else None
        if tokens and sha256_of_tokens and (tokens not in known or not (export / tokens).is_file()):
            if sidecars is None:
                sidecars = {path.name: path for path in (data / "tokens").glob("*.parquet")}
            source = sidecars.get(f"{row.variant_key[:16]}-{row.protocol_fingerprint[:16]}.parquet")
            if source is not None and _is_that(source, sha256_of_tokens):
                _link(source, export / tokens)
                new.append(PublishedFile(tokens, sha256_of_tokens))
            elif tokens not in published:
                tokens = None
        told.append(row.model_copy(update={"tokens_path": tokens, "raw_path": raw_at}))
        paths += [path for path in (raw_at, tokens) if path]
    store.files.save(LOCAL, new)
    _drop(store, known, keep=set(paths), export=export)
    return told, paths


def is_attachment(path: str) -> bool:
    """Whether a path of the export is one of these files."""
    return path.startswith((f"{TOKENS_FOLDER}/", f"{RAW_FOLDER}/"))


def _is_that(path: Path, sha256: str) -> bool:
    try:
        return path.stat().st_size <= MAX_BYTES and sha256_file(path) == sha256
    except OSError:
        return False


def _link(source: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            to.unlink()
        os.link(source, to)
    except OSError:
        # Another file system, or one without hard links.
        try:
            write_atomic(to, source.read_bytes())
        except OSError as error:
            raise storage_error(to, error) from error


def _drop(store: Store, known: Iterable[str], *, keep: set[str], export: Path) -> None:
    """Forget what no row names any more, in the local copy only: what was published stays, so that a link holds."""
    gone = [path for path in known if is_attachment(path) and path not in keep]
    for path in gone:
        with suppress(OSError):
            (export / path).unlink()
    store.files.forget(LOCAL, gone)
