"""llama-perplexity's base file (``.kld``), byte for byte: read, written, encoded, decoded.

Layout (little-endian; source: ``perplexity_v2()``/``kl_divergence()`` in tools/perplexity/perplexity.cpp)::

    8 B "_logits_" | i32 n_ctx | i32 n_vocab | i32 n_chunk | i32 tokens[n_chunk*n_ctx] | rows
    row: f32 scale | f32 min_log_prob | u16 q[n_vocab] | u16 0 if n_vocab is odd
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from core.errors import BaselineError

MAGIC = b"_logits_"
HEADER_BYTES = 20
#: Log-probabilities further than this below a row's maximum are clipped to it (nats).
CLIP = np.float32(16.0)
_LEVELS = np.float32(65535.0)


@dataclass(frozen=True, slots=True)
class KldShape:
    """The sizes in a base file's header."""

    n_ctx: int
    n_vocab: int
    n_chunks: int

    @property
    def first(self) -> int:
        """The first scored position of a chunk: the second half of the context is scored."""
        return self.n_ctx // 2

    @property
    def rows_per_chunk(self) -> int:
        """Scored tokens of a chunk."""
        return self.n_ctx - 1 - self.first

    @property
    def row_u16(self) -> int:
        """Length of a row in 16-bit units, its two floats included."""
        return 2 * ((self.n_vocab + 1) // 2) + 4

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk's rows."""
        return self.rows_per_chunk * self.row_u16 * 2

    @property
    def rows_offset(self) -> int:
        """Where the rows start in the file."""
        return HEADER_BYTES + 4 * self.n_chunks * self.n_ctx

    @property
    def file_bytes(self) -> int:
        """Exact size of a whole file."""
        return self.rows_offset + self.n_chunks * self.chunk_bytes


class KldReader:
    """A base file opened for reading: header checked, tokens in memory, rows mapped.

    Raises:
        BaselineError: missing, not a base file, truncated, or with numbers that can't be true.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                header = file.read(HEADER_BYTES)
        except FileNotFoundError:
            raise BaselineError(f"{path} does not exist. Record it first with 'quantcard baseline record'.") from None
        except OSError as error:
            raise BaselineError(f"{path} can't be read ({error.strerror}).") from None
        if header[:8] != MAGIC:
            raise BaselineError(f"{path} is not a llama-perplexity base file (it does not begin with '_logits_').")
        if len(header) < HEADER_BYTES:
            raise BaselineError(
                f"{path} holds no baseline: recording it stopped at once, probably for too short a corpus. "
                "Record it again."
            )
        n_ctx, n_vocab, n_chunks = struct.unpack("<3i", header[8:])
        if not (0 < n_ctx < 1 << 24 and 0 < n_vocab < 1 << 24 and 0 < n_chunks < 1 << 24):
            raise BaselineError(f"{path} is corrupt: n_ctx {n_ctx}, {n_vocab} tokens, {n_chunks} chunks can't be.")
        self.shape = KldShape(n_ctx, n_vocab, n_chunks)
        if size != self.shape.file_bytes:
            raise BaselineError(
                f"{path} is corrupt: {size} bytes where its header promises {self.shape.file_bytes}. Record it again."
            )
        with path.open("rb") as file:
            file.seek(HEADER_BYTES)
            tokens = np.frombuffer(file.read(4 * n_chunks * n_ctx), dtype="<i4")
        if int(tokens.min()) < 0 or int(tokens.max()) >= n_vocab:
            raise BaselineError(f"{path} is corrupt: it holds token ids outside its vocabulary. Record it again.")
        #: shape (n_chunks, n_ctx): the corpus, before any BOS is put in
        self.tokens: NDArray[np.int32] = tokens.reshape(n_chunks, n_ctx).astype(np.int32)
        self._rows = np.memmap(
            path,
            dtype="<u2",
            mode="r",
            offset=self.shape.rows_offset,
            shape=(n_chunks, self.shape.rows_per_chunk, self.shape.row_u16),
        )

    def chunk(self, index: int) -> NDArray[np.uint16]:
        """The encoded rows of one chunk, shape (rows_per_chunk, row_u16): a view of the mapped file."""
        return self._rows[index]


def write_header(file: BinaryIO, shape: KldShape, tokens: NDArray[np.int32]) -> None:
    """Write magic, sizes and tokens; rows follow in chunk order."""
    file.write(MAGIC + struct.pack("<3i", shape.n_ctx, shape.n_vocab, shape.n_chunks))
    file.write(np.ascontiguousarray(tokens, dtype="<i4").tobytes())


def encode_rows(
    logits: NDArray[np.float32],
    maxima: NDArray[np.float32],
    log_sums: NDArray[np.float32],
    out: NDArray[np.uint16],
) -> None:
    """Encode log-softmax rows to 16 bits, in the tool's f32 arithmetic.

    Args:
        logits: shape (n, n_vocab).
        maxima: row maxima, shape (n,).
        log_sums: f32 of log sum exp(logit - max), shape (n,).
        out: shape (n, row_u16), written.
    """
    n_vocab = logits.shape[1]
    lowest = np.maximum(logits.min(axis=1), maxima - CLIP)
    scale = (maxima - lowest) / _LEVELS
    floats = np.empty((len(logits), 2), dtype="<f4")
    floats[:, 0] = scale
    floats[:, 1] = lowest - maxima - log_sums
    out[:, :4] = floats.view("<u2")
    out[:, 4 + n_vocab :] = 0
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    # Masks (−inf, −FLT_MAX) overflow here on purpose: they end at the floor.
    with np.errstate(over="ignore"):
        above = logits - lowest[:, None]
        above *= inverse[:, None]
    np.rint(above, out=above)
    # Entries at or under the floor (−inf masks among them) are 0.
    np.copyto(above, np.float32(0), where=~(logits > lowest[:, None]))
    out[:, 4 : 4 + n_vocab] = above


def decode_floats(rows: NDArray[np.uint16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, min_log_prob) of encoded rows, each of shape (n,)."""
    floats = np.ascontiguousarray(rows[:, :4]).view("<f4")
    return floats[:, 0].copy(), floats[:, 1].copy()
