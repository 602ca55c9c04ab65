"""What a ``.kld`` file can't hold, in a JSON file beside it: the exact base NLL, the vocabulary, checksums.

Without it (a file that llama-perplexity itself wrote) measuring works, but PPL(base) is the clipped one, and the
vocabularies can be compared by size only.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from core.canonical import write_atomic
from core.contract import Environment, Estimate
from core.errors import BaselineError


class BaselineMeta(BaseModel):
    """The companion of a base file; ``nll`` is zlib+base64 of little-endian f64, one per scored token (nats).

    What only the recording knows (exact NLL, corpus) is null for a file that was recorded elsewhere and imported.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["quantcard-baseline-meta"] = "quantcard-baseline-meta"
    version: int = 1
    reference_name: str | None = None
    reference_sha256: str | None = None
    corpus_sha256: str | None = None
    n_ctx: int
    n_chunks: int
    n_vocab: int
    vocab_sha256: str | None = None
    add_bos: bool | None = None
    ppl: Estimate | None = None
    nll: str | None = None
    tokens_sha256: str
    chunk_crc32: list[int]
    environment: Environment | None = None

    @property
    def exact_nll(self) -> NDArray[np.float64] | None:
        """The reference's own NLL of each scored token, shape (n_chunks * rows_per_chunk,); None for an import."""
        if self.nll is None:
            return None
        return np.frombuffer(zlib.decompress(base64.b64decode(self.nll)), dtype="<f8")


def meta_path(path: Path) -> Path:
    """Where the companion of a base file stands."""
    return path.with_name(path.name + ".json")


def pack_nll(nll: NDArray[np.float64]) -> str:
    """``nll`` for :attr:`BaselineMeta.nll`."""
    return base64.b64encode(zlib.compress(nll.astype("<f8").tobytes(), 6)).decode()


def vocab_sha256(texts: Sequence[bytes]) -> str:
    """sha256 over the tokens' texts by id, each with its length before it."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()


def write_meta(path: Path, meta: BaselineMeta) -> None:
    """Write the companion of the base file at ``path``, atomically."""
    write_atomic(meta_path(path), meta.model_dump_json())


def read_meta(path: Path) -> BaselineMeta | None:
    """The companion of the base file at ``path``, or None when it has none.

    Raises:
        BaselineError: it is there but damaged.
    """
    try:
        text = meta_path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return BaselineMeta.model_validate_json(text)
    except ValidationError:
        raise BaselineError(
            f"{meta_path(path)} is damaged. Remove it to measure with the base file alone, or record it again."
        ) from None
