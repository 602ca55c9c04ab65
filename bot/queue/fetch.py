"""Fetches models and corpora for the measuring process, checks their sha256, and clears them away again."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path, PurePosixPath

from bot.hub.door import HubDoor
from bot.queue.disk import DOOMED, PROMISE, Disk, locked, set_folder_aside, touch
from bot.store.repos import Variant
from core.canonical import sha256_file, storage_error, write_atomic
from core.errors import CorpusError, HubError, InputError
from core.gguf_files import RepoFile
from core.protocol import CORPUS_SOURCES, CorpusSource, LocalSource, PackageSource, Protocol, Source
from core.sandbox.child import JobStopped

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: No corpus is larger; an archive that says so is not opened.
_CORPUS_LIMIT = 1 << 30
#: Seconds between looks at a variant that somebody else is fetching.
_LOCK_S = 0.1
_READ = 1 << 20


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


def model_path(
    data: Path,
    variant: Variant,
    hub: HubDoor,
    *,
    disk: Disk | None = None,
    stop: Callable[[], bool] = lambda: False,
    bytes_per_s: float | None = None,
) -> Path:
    """The path of a variant's first file, fetched and checked.

    What an earlier try left is gone on with, also that of a process that was killed. Somebody else who fetches the
    same variant, here or in another process, is waited for.

    Args:
        disk: makes room where there is too little; without it there is room or there is not.
        stop: asked often; once it is true, :class:`JobStopped` follows and what was fetched stays.
        bytes_per_s: no faster than this.

    Raises:
        HubError: it could not be fetched.
        InputError: its names or identity can't be used for files here.
        StorageError: there is no room for it.
        TooLargeError: it is larger than what we may take of the disk.
        JobStopped: ``stop`` said so.
    """
    folder = model_folder(data, variant)
    paths = {file: _inside(folder, file.path, variant) for file in variant.files}
    first = next(iter(paths.values()))
    if not _is_whole(paths.values()):

        def wait() -> None:
            if stop():
                raise JobStopped
            time.sleep(_LOCK_S)

        with locked(folder, wait=wait):
            missing = {file: path for file, path in paths.items() if not _mark(path).exists()}
            left = sum(max(0, file.size - _size_of(_part(path))) for file, path in missing.items())
            if left:
                (disk or Disk(data)).make_room(folder, left, wanted=variant.name)
            for file, path in missing.items():
                _fetch_file(hub, variant, file, path, _Pace(stop, bytes_per_s))
            with suppress(OSError):
                (folder / PROMISE).unlink()
    touch(folder)
    return first


def is_fetched(data: Path, variant: Variant) -> bool:
    """Whether all of a variant's files lie here, whole."""
    folder = model_folder(data, variant)
    return _is_whole(_inside(folder, file.path, variant) for file in variant.files)


def _is_whole(paths: Iterable[Path]) -> bool:
    return all(_mark(path).exists() for path in paths)


def _mark(path: Path) -> Path:
    """The file that says that ``path`` was fetched whole and checked."""
    return path.with_name(f"{path.name}.ok")


def _part(path: Path) -> Path:
    """What has arrived of ``path`` so far."""
    return path.with_name(f"{path.name}.part")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Pace:
    """Ends a download that is to stop, and slows one down that is too fast; called with every piece."""

    def __init__(self, stop: Callable[[], bool], bytes_per_s: float | None) -> None:
        self._stop, self._bytes_per_s = stop, bytes_per_s
        self._began, self._bytes = time.monotonic(), 0

    def __call__(self, n_bytes: int) -> None:
        if self._stop():
            raise JobStopped
        self._bytes += n_bytes
        if self._bytes_per_s:
            due = self._began + self._bytes / self._bytes_per_s
            while (wait := due - time.monotonic()) > 0:
                time.sleep(min(wait, _LOCK_S))
                if self._stop():
                    raise JobStopped


def _fetch_file(hub: HubDoor, variant: Variant, file: RepoFile, path: Path, pace: _Pace) -> None:
    """Fetch one file beside ``path`` and put it there once its sha256 is right; a damaged one is fetched anew once."""
    if file.sha256 is None:
        raise InputError(f"{file.path} of {variant.repo_id} has no sha256 to be checked by; it can't be fetched.")
    part = _part(path)
    for last in (False, True):
        try:
            got = _go_on(hub, variant, file, part, pace)
            if got == file.sha256:
                part.replace(path)
                write_atomic(_mark(path), got)
                return
            part.unlink()
        except OSError as error:
            raise storage_error(Path(file.path), error) from error
        if last:
            raise DamagedDownloadError(
                f"{file.path} of {variant.repo_id} arrived damaged (sha256 {got[:12]}…, not {file.sha256[:12]}…). "
                "Look at the file on the Hub, then try the job again."
            )
        logger.warning("%s of %s arrived damaged; it is fetched anew.", file.path, variant.repo_id)


def _go_on(hub: HubDoor, variant: Variant, file: RepoFile, part: Path, pace: _Pace) -> str:
    """Fetch what is missing of a file into ``part``; the sha256 of all that lies there then."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab+") as out:
        if out.tell() > file.size:
            out.truncate(0)
        found = hashlib.sha256()
        out.seek(0)
        while piece := out.read(_READ):
            pace(0)
            found.update(piece)
        at = out.seek(0, os.SEEK_END)

        def write(piece: bytes) -> None:
            pace(len(piece))
            out.write(piece)
            found.update(piece)

        if at < file.size:
            hub.stream(variant.repo_id, file.path, revision=variant.revision, offset=at, size=file.size, write=write)
        out.flush()
        os.fsync(out.fileno())
    return found.hexdigest()


def fetched_bytes(data: Path, variant: Variant) -> int:
    """Bytes of a variant that are on disk so far, for progress."""
    total = 0
    for path in model_folder(data, variant).rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return min(total, variant.size_bytes)


def set_aside(data: Path, *, keep: Collection[str]) -> None:
    """Rename the folders of variants whose keys are not in ``keep``, so that nobody takes their files for fetched.

    Quick, to be called while no job can be claimed; :func:`evict` then takes its time. What is being fetched at this
    moment stays.
    """
    root = data / "models"
    for folder in list(root.iterdir()) if root.is_dir() else []:
        if folder.name not in keep and not folder.name.startswith(DOOMED):
            set_folder_aside(folder)


def evict(data: Path) -> None:
    """Remove what was set aside (also what a killed worker left so)."""
    for kind in ("models", "baselines", "work"):
        for folder in list((data / kind).glob(f"{DOOMED}*")):
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
