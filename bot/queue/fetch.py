"""Fetches models and corpora for the measuring process, checks their sha256, and clears them away again."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from bot.hub.door import HubDoor
from bot.store.repos import Variant
from core.canonical import sha256_file, write_atomic
from core.errors import CorpusError, HubUnreachableError, StorageError
from core.protocol import CORPUS_SOURCES, Protocol


def model_folder(data: Path, variant: Variant) -> Path:
    """Where a variant's files lie while they are needed: by identity, so that two repos with the same file share."""
    return data / "models" / variant.key


def model_path(data: Path, variant: Variant, hub: HubDoor) -> Path:
    """The path of a variant's first file, fetched and checked.

    Raises:
        HubError: it could not be fetched.
        StorageError: there is no room for it.
    """
    folder = model_folder(data, variant)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in variant.files if not (folder / f"{file.path}.ok").exists()]
    free = shutil.disk_usage(folder).free
    if (need := sum(file.size for file in missing)) > free:
        raise StorageError(f"{variant.name} needs {need} bytes on disk, {free} are free. Free some space.")
    for file in missing:
        path = hub.download(variant.repo_id, file.path, revision=variant.revision, folder=folder)
        got = sha256_file(path)
        if got != file.sha256:
            path.unlink()
            raise HubUnreachableError(
                f"{file.path} of {variant.repo_id} arrived damaged (sha256 {got[:12]}…, not {str(file.sha256)[:12]}…). "
                "It is fetched again."
            )
        write_atomic(folder / f"{file.path}.ok", got)
    return folder / variant.files[0].path


def evict(data: Path, *, keep: set[str]) -> int:
    """Remove the files of variants whose keys are not in ``keep``; returns the bytes freed."""
    freed = 0
    root = data / "models"
    for folder in root.iterdir() if root.is_dir() else []:
        if folder.name not in keep:
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
    return freed


def corpus_path(data: Path, protocol: Protocol, *, given: Path | None, hub: HubDoor) -> Path:
    """The corpus' path: the operator's own file, or the protocol's, fetched from the Hub once and checked.

    Raises:
        CorpusError: it is not the text that the protocol names.
        HubError: it could not be fetched.
    """
    wanted = protocol.corpus.sha256
    if given is not None and given.is_file() and sha256_file(given) == wanted:
        return given
    path = data / "corpora" / f"{wanted}.txt"
    if path.is_file():
        return path
    source = CORPUS_SOURCES.get(wanted)
    if source is None:
        raise CorpusError(
            f"The corpus {protocol.corpus.name!r} (sha256 {wanted[:12]}…) is not at hand. "
            "Set QUANTCARD_CORPUS to the file that these jobs were queued with."
        )
    folder = data / "corpora" / "downloads"
    fetched = hub.download(source.repo_id, source.filename, revision="main", folder=folder, repo_type="dataset")
    try:
        text = zipfile.ZipFile(fetched).read(source.member) if source.member else fetched.read_bytes()
    except (zipfile.BadZipFile, KeyError) as error:
        fetched.unlink()
        raise CorpusError(f"{source.filename} of {source.repo_id} is not the archive it should be ({error}).") from None
    write_atomic(path, text)
    if (got := sha256_file(path)) != wanted:
        path.unlink()
        raise CorpusError(
            f"{source.filename} of {source.repo_id} holds another text (sha256 {got[:12]}…) than the protocol's. "
            "Set QUANTCARD_CORPUS to the right file."
        )
    return path
