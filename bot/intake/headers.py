"""Looks into GGUFs on the Hub without downloading them: their identity, and the audit of their headers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from bot.hub.door import HubDoor
from core.audit import Inspection, chat_template, inspect
from core.errors import GGUFError
from core.gguf_files import RepoFile, VariantFiles
from core.gguf_header import GGUFHeader, Reading, read_ranges

logger = logging.getLogger(__name__)

#: A GGUF outside LFS is read whole to know it by its sha256, up to this size.
_INLINE_LIMIT = 64 << 20

#: Such files that are read of one repo, and their bytes in all.
_INLINE_FILES, _INLINE_TOTAL = 16, 256 << 20
#: Shards of a set whose headers are read; the largest known sets have some 100.
_MAX_SHARDS = 256
#: Tensors of all shards of a set; no model has more.
_MAX_TENSORS = 65_536

#: Tensors of unknown types can claim any number of elements; no model has more than this.
_MAX_PARAMS = 10**15


def identified(hub: HubDoor, repo_id: str, revision: str, files: list[RepoFile]) -> list[RepoFile]:
    """The files, with the sha256 of small GGUFs that are not in LFS taken from their bytes."""
    found, n_read, total = [], 0, 0
    for file in files:
        inline = file.sha256 is None and file.path.lower().endswith(".gguf") and file.size <= _INLINE_LIMIT
        if inline and n_read < _INLINE_FILES and total + file.size <= _INLINE_TOTAL:
            n_read, total = n_read + 1, total + file.size
            data = hub.read(repo_id, file.path, revision=revision, limit=_INLINE_LIMIT)
            if data is not None:
                file = RepoFile(file.path, file.size, hashlib.sha256(data).hexdigest())
        found.append(file)
    return found


class NotAModelError(Exception):
    """The header says that the file is a projector, an importance matrix or an adapter, whatever its name says."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What a variant's headers say, or ``note``: why they say nothing; and what it took to read them.

    ``template`` is the chat template's text, where there is one that is not too long; ``bytes_read`` counts all
    ``ranges``, also those of a file that turned out to be no GGUF.
    """

    inspection: Inspection | None
    note: str | None
    template: str | None = None
    ranges: int = 0
    bytes_read: int = 0


def audit_variant(hub: HubDoor, repo_id: str, revision: str, variant: VariantFiles) -> Audit:
    """Audit a variant by ranged reads of its headers.

    Raises:
        NotAModelError: its header says that it is no model.
        HubError: the Hub does not give it.
    """
    if any(file.sha256 is None for file in variant.files):
        return Audit(None, "It is not stored in LFS, so it has no sha256 to be known by.")
    if len(variant.files) > _MAX_SHARDS:
        return Audit(None, f"It has {len(variant.files)} shards; of more than {_MAX_SHARDS} none is read.")
    counter = _Counter(hub, repo_id, revision)
    inspection = template = None
    try:
        headers = list(_bounded(counter, variant))
        if headers[0].kv.get("general.type", "model") != "model":
            raise NotAModelError
        inspection = inspect(
            headers, size_bytes=variant.size_bytes, name=variant.name, shards_expected=variant.n_shards
        )
        template = chat_template(headers)
        note = None if variant.complete else f"{len(variant.files)} of {variant.n_shards} shards are there."
    except GGUFError as error:
        note = str(error)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        logger.warning("The header of %s in %s can't be understood", variant.name, repo_id, exc_info=True)
        note = f"{variant.name}: its header can't be understood ({type(error).__name__})."
    if inspection is not None and inspection.n_params > _MAX_PARAMS:
        note = f"{variant.name}: {inspection.n_params} parameters can't be true; the file is damaged."
        inspection = template = None
    return Audit(inspection, note, template, counter.ranges, counter.bytes_read)


def _bounded(counter: _Counter, variant: VariantFiles) -> Iterator[GGUFHeader]:
    """The headers of a variant's shards.

    Raises:
        GGUFError: they hold more tensors than any model has.
    """
    total = 0
    for file in variant.files:
        header = counter.header(file).header
        total += len(header.tensors)
        if total > _MAX_TENSORS:
            raise GGUFError(f"{variant.name}: more than {_MAX_TENSORS} tensors can't be true; its shards are damaged.")
        yield header


def inspect_variant(
    hub: HubDoor, repo_id: str, revision: str, variant: VariantFiles
) -> tuple[Inspection | None, str | None]:
    """As :func:`audit_variant`, the inspection and the note alone."""
    found = audit_variant(hub, repo_id, revision, variant)
    return found.inspection, found.note


def read_variant(hub: HubDoor, repo_id: str, revision: str, variant: VariantFiles) -> list[Reading]:
    """The headers of a variant's files, read over ranges without downloading them, first shard first.

    Raises:
        GGUFError: one is not GGUF, is damaged, or truncated.
    """
    counter = _Counter(hub, repo_id, revision)
    return [counter.header(file) for file in variant.files]


class _Counter:
    """Reads headers of one repo's files, and counts what that took, also where one is no GGUF."""

    def __init__(self, hub: HubDoor, repo_id: str, revision: str) -> None:
        self._hub, self._repo_id, self._revision = hub, repo_id, revision
        self.ranges = self.bytes_read = 0

    def header(self, file: RepoFile) -> Reading:
        def read(offset: int, length: int) -> bytes:
            piece = self._hub.read_range(
                self._repo_id, file.path, revision=self._revision, offset=offset, length=length
            )
            self.ranges, self.bytes_read = self.ranges + 1, self.bytes_read + len(piece)
            return piece

        return read_ranges(read, size=file.size, name=file.path)
