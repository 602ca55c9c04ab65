"""Fetches models and corpora for the measuring process, checks their sha256, and clears them away again."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path, PurePosixPath

from bot.hub.door import HubDoor
from bot.store.repos import Variant
from core.canonical import sha256_file, write_atomic
from core.errors import CorpusError, HubError, InputError, StorageError
from core.protocol import CORPUS_SOURCES, CorpusSource, LocalSource, PackageSource, Protocol, Source

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: No corpus is larger; an archive that says so is not opened.
_CORPUS_LIMIT = 1 << 30
_DOOMED = ".doomed-"


class DamagedDownloadError(HubError):
    """A file did not arrive as the Hub describes it; fetching it again may help."""

    retryable = True


def model_folder(data: Path, variant: Variant) -> Path:
    """Where a variant's files lie while they are needed: by identity, so that two repos with the same file share.

    Raises:
        InputError: the identity is no sha256, so it must not name a folder (it came from the Hub).
    """
    if not _SHA256.fullmatch(variant.key):
        raise InputError(f"{variant.name} of {variant.repo_id} has no sha256 to be known by; it can't be fetched.")
    return data / "models" / variant.key


def _inside(folder: Path, name: str, variant: Variant) -> Path:
    """``name`` (from a stranger's repo) as a path in ``folder``.

    Raises:
        InputError: it leads elsewhere.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or not name.isprintable():
        raise InputError(f"{name!r} of {variant.repo_id} is no name for a file here; it is not fetched.")
    return folder / pure


def model_path(data: Path, variant: Variant, hub: HubDoor) -> Path:
    """The path of a variant's first file, fetched and checked.

    Raises:
        HubError: it could not be fetched.
        InputError: its names or identity can't be used for files here.
        StorageError: there is no room for it.
    """
    folder = model_folder(data, variant)
    paths = {file: _inside(folder, file.path, variant) for file in variant.files}
    _make_room(folder, variant, [file.size for file, path in paths.items() if not _mark(path).exists()])
    for file, path in paths.items():
        if _mark(path).exists():
            continue
        fetched = hub.download(variant.repo_id, file.path, revision=variant.revision, folder=folder)
        got = sha256_file(fetched)
        if got != file.sha256 or fetched.resolve() != path.resolve():
            fetched.unlink()
            raise DamagedDownloadError(
                f"{file.path} of {variant.repo_id} arrived damaged (sha256 {got[:12]}…, not {str(file.sha256)[:12]}…). "
                "Look at the file on the Hub, then try the job again."
            )
        write_atomic(_mark(path), got)
    return next(iter(paths.values()))


def _mark(path: Path) -> Path:
    """The file that says that ``path`` was fetched whole and checked."""
    return path.with_name(f"{path.name}.ok")


def _make_room(folder: Path, variant: Variant, sizes: list[int]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"The model folder can't be used ({error.strerror}). Check the data folder.") from error
    if (need := sum(sizes)) > free:
        raise StorageError(
            f"{variant.name} needs {need / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free. Free some space."
        )


def fetched_bytes(data: Path, variant: Variant) -> int:
    """Bytes of a variant that are on disk so far, for progress."""
    total = 0
    for path in model_folder(data, variant).rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return min(total, variant.size_bytes)


def set_aside(data: Path, *, keep: Collection[str]) -> None:
    """Rename the folders of variants whose keys are not in ``keep``, so that nobody takes their files for fetched.

    Quick, to be called while no job can be claimed; :func:`evict` then takes its time.
    """
    root = data / "models"
    for folder in list(root.iterdir()) if root.is_dir() else []:
        if folder.name not in keep and not folder.name.startswith(_DOOMED):
            with suppress(OSError):
                folder.rename(root / f"{_DOOMED}{uuid.uuid4().hex}")


def evict(data: Path) -> None:
    """Remove what was set aside (also what a killed worker left so)."""
    for folder in list((data / "models").glob(f"{_DOOMED}*")):
        shutil.rmtree(folder, ignore_errors=True)


def corpus_path(
    data: Path,
    protocol: Protocol,
    *,
    given: Path | None,
    hub: HubDoor,
    sources: Mapping[str, Source] = CORPUS_SOURCES,
) -> Path:
    """The corpus' path: the operator's own file, or the protocol's, fetched from the Hub once and checked.

    Args:
        given: a file that is taken where it is the protocol's text.
        sources: by sha256, where texts are taken from (``Settings.corpus_sources()``).

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
    source = sources.get(wanted)
    if source is None:
        raise CorpusError(
            f"The corpus {protocol.corpus.name!r} (sha256 {wanted[:12]}…) is not at hand. "
            "Set QUANTCARD_CORPUS to the file that these jobs were queued with."
        )
    if isinstance(source, LocalSource):
        return _on_this_machine(source, wanted)
    text, place = _read(source, folder=data / "corpora" / "downloads", hub=hub)
    if (got := hashlib.sha256(text).hexdigest()) != wanted:
        raise CorpusError(
            f"{place} holds another text (sha256 {got[:12]}…) than the protocol's. "
            "Set QUANTCARD_CORPUS to the right file."
        )
    write_atomic(path, text)
    return path


def _on_this_machine(source: LocalSource, wanted: str) -> Path:
    path = Path(source.path)
    try:
        got = sha256_file(path)
    except OSError as error:
        raise CorpusError(f"The corpus {path.name} can't be read ({error.strerror}). Check its path.") from None
    if got != wanted:
        raise CorpusError(f"{path.name} is another text now (sha256 {got[:12]}…) than the protocol's. Put it back.")
    return path


def _read(source: CorpusSource | PackageSource, *, folder: Path, hub: HubDoor) -> tuple[bytes, str]:
    """A corpus' bytes as they come, and where they came from, for people."""
    if isinstance(source, PackageSource):
        place = f"{source.filename} of {source.package}"
        try:
            return files(source.package).joinpath(source.filename).read_bytes(), place
        except (ModuleNotFoundError, OSError):
            raise CorpusError(
                f"{place} is not installed. Install quantcard whole, or set QUANTCARD_CORPUS to that file."
            ) from None
    place = f"{source.filename} of {source.repo_id}"
    # Two repos may each have a file of this name.
    folder = folder / source.repo_id.replace("/", "--")
    fetched = hub.download(source.repo_id, source.filename, revision="main", folder=folder, repo_type="dataset")
    if fetched.stat().st_size > _CORPUS_LIMIT:
        fetched.unlink()
        raise CorpusError(f"{place} is larger than any corpus.")
    try:
        return _member(fetched, source.member) if source.member else fetched.read_bytes(), place
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        fetched.unlink()
        raise CorpusError(f"{place} is not the archive it should be ({error}).") from None


def _member(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        if opened.getinfo(name).file_size > _CORPUS_LIMIT:
            raise ValueError(f"{name} is larger than any corpus")
        return opened.read(name)
