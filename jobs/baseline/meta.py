"""What a ``.kld`` file can't hold, in a JSON file beside it: the exact base NLL, the vocabulary, checksums.

Without it (a file that llama-perplexity itself wrote) measuring works, but PPL(base) is the clipped one, and the
vocabularies can be compared by size only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.canonical import fingerprint, write_atomic
from core.contract import Environment, Estimate
from core.errors import BaselineError
from jobs.baseline.kld_file import KldReader


class BaselineMeta(BaseModel):
    """The companion of a base file; ``nll`` is zlib+base64 of little-endian f64, one per scored token (nats).

    What only the recording knows (exact NLL, corpus) is null for a file that was recorded elsewhere and imported.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["quantcard-baseline-meta"] = "quantcard-baseline-meta"
    version: Literal[2] = 2
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
    chunk_sums: list[int] = Field(description="per chunk: xxh3_64 of each row, seeded with its number, added up")
    n_batch: int | None = None
    n_ubatch: int | None = None
    flash_attn: str | None = None
    environment: Environment | None = None

    @cached_property
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
        if _version(text) not in (None, 2):
            raise BaselineError(
                f"{meta_path(path)} is of another version of quantcard. Record the baseline again with this one."
            ) from None
        raise BaselineError(
            f"{meta_path(path)} is damaged. Remove it to measure with the base file alone, or record it again."
        ) from None


def _version(text: bytes) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found.get("version") if isinstance(found, dict) else None


def check_meta(reader: KldReader, meta: BaselineMeta | None) -> None:
    """Raise :class:`BaselineError` when a base file and its companion do not belong together."""
    if meta is None:
        return
    shape = reader.shape
    same = (meta.n_ctx, meta.n_vocab, meta.n_chunks) == (shape.n_ctx, shape.n_vocab, shape.n_chunks)
    try:
        nll = meta.exact_nll
    except (ValueError, zlib.error):
        nll = np.zeros(0)
    same = same and (nll is None or nll.size == shape.n_chunks * shape.rows_per_chunk)
    if not same or tokens_sha256(reader.tokens) != meta.tokens_sha256 or len(meta.chunk_sums) != shape.n_chunks:
        raise BaselineError(
            f"{reader.path} and its .json do not belong together: one of them is corrupt. Record it again."
        )


def tokens_sha256(tokens: NDArray[np.int32]) -> str:
    """sha256 of the corpus's tokens as little-endian i32."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").tobytes()).hexdigest()


def content_hash(
    reference_sha256: str | None, tokens: NDArray[np.int32], nll: NDArray[np.float64] | None
) -> str | None:
    """One hash for what a recording says, whatever format keeps it; None where the reference is not known."""
    if reference_sha256 is None or nll is None:
        return None
    exact = hashlib.sha256(np.ascontiguousarray(nll, dtype="<f8").tobytes()).hexdigest()
    return fingerprint([reference_sha256, tokens_sha256(tokens), exact])
