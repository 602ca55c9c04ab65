"""Looks into GGUFs on the Hub without downloading them: their identity, and the audit of their headers."""

from __future__ import annotations

import hashlib
import logging

from bot.hub.door import HubDoor
from core.audit import Inspection, inspect
from core.errors import GGUFError
from core.gguf_files import RepoFile, VariantFiles
from core.gguf_header import GGUFHeader, read_header

logger = logging.getLogger(__name__)

#: A GGUF outside LFS is read whole to know it by its sha256, up to this size.
_INLINE_LIMIT = 64 << 20

#: Tensors of unknown types can claim any number of elements; no model has more than this.
_MAX_PARAMS = 10**15


def identified(hub: HubDoor, repo_id: str, revision: str, files: list[RepoFile]) -> list[RepoFile]:
    """The files, with the sha256 of small GGUFs that are not in LFS taken from their bytes."""
    found = []
    for file in files:
        if file.sha256 is None and file.path.lower().endswith(".gguf") and file.size <= _INLINE_LIMIT:
            data = hub.read(repo_id, file.path, revision=revision, limit=_INLINE_LIMIT)
            if data is not None:
                file = RepoFile(file.path, file.size, hashlib.sha256(data).hexdigest())
        found.append(file)
    return found


class NotAModelError(Exception):
    """The header says that the file is a projector, an importance matrix or an adapter, whatever its name says."""


def inspect_variant(
    hub: HubDoor, repo_id: str, revision: str, variant: VariantFiles
) -> tuple[Inspection | None, str | None]:
    """The audit of a variant from ranged reads of its headers, or None with the reason."""
    if any(file.sha256 is None for file in variant.files):
        return None, "It is not stored in LFS, so it has no sha256 to be known by."
    try:
        headers = [remote_header(hub, repo_id, file, revision=revision) for file in variant.files]
        if headers[0].kv.get("general.type", "model") != "model":
            raise NotAModelError
        found = inspect(headers, size_bytes=variant.size_bytes, name=variant.name, shards_expected=variant.n_shards)
    except GGUFError as error:
        return None, str(error)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        logger.warning("The header of %s in %s can't be understood", variant.name, repo_id, exc_info=True)
        return None, f"{variant.name}: its header can't be understood ({type(error).__name__})."
    if found.n_params > _MAX_PARAMS:
        return None, f"{variant.name}: {found.n_params} parameters can't be true; the file is damaged."
    note = None if variant.complete else f"{len(variant.files)} of {variant.n_shards} shards are there."
    return found, note


def remote_header(hub: HubDoor, repo_id: str, file: RepoFile, *, revision: str) -> GGUFHeader:
    """A GGUF header read over ranges, without downloading the file.

    Raises:
        GGUFError: it is not GGUF, is damaged, or truncated.
    """

    def read(offset: int, length: int) -> bytes:
        return hub.read_range(repo_id, file.path, revision=revision, offset=offset, length=length)

    return read_header(read, size=file.size, name=file.path)
