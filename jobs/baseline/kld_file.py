"""llama-perplexity's base file (``.kld``), byte for byte: its shape, reading, writing.

Layout (little-endian; source: ``perplexity_v2()``/``kl_divergence()`` in tools/perplexity/perplexity.cpp)::

    8 B "_logits_" | i32 n_ctx | i32 n_vocab | i32 n_chunk | i32 tokens[n_chunk*n_ctx] | rows
    row: f32 scale | f32 min_log_prob | u16 q[n_vocab] | u16 0 if n_vocab is odd
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import BaselineError

MAGIC = b"_logits_"
HEADER_BYTES = 20


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
    """A base file opened for reading: header checked, tokens in memory, rows read where they are wanted.

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
        if not (4 <= n_ctx < 1 << 24 and 0 < n_vocab < 1 << 24 and 0 < n_chunks < 1 << 24):
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
        self._file = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def read(self, chunk: int, row: int, out: NDArray[np.uint16]) -> None:
        """Read encoded rows of one chunk from ``row`` on into ``out``, shape (n, row_u16), C-contiguous.

        Positional reads into the caller's buffer: a map would grow the process by the whole file.

        Raises:
            BaselineError: the file ends early (it was cut while we read).
        """
        shape = self.shape
        offset = shape.rows_offset + chunk * shape.chunk_bytes + row * shape.row_u16 * 2
        view: memoryview[int] = memoryview(out.data).cast("B")
        while view:
            got = os.preadv(self._file, [view], offset)
            if got <= 0:
                raise BaselineError(f"{self.path} is corrupt: it ends within chunk {chunk}. Record it again.")
            view, offset = view[got:], offset + got

    def chunk(self, index: int) -> NDArray[np.uint16]:
        """The encoded rows of one chunk, shape (rows_per_chunk, row_u16)."""
        out = np.empty((self.shape.rows_per_chunk, self.shape.row_u16), np.uint16)
        self.read(index, 0, out)
        return out

    def prefetch(self, chunks: range) -> None:
        """Ask the system to read these chunks ahead, where it can be asked."""
        if hasattr(os, "posix_fadvise") and len(chunks):
            start = self.shape.rows_offset + chunks.start * self.shape.chunk_bytes
            os.posix_fadvise(self._file, start, len(chunks) * self.shape.chunk_bytes, os.POSIX_FADV_WILLNEED)


def header_bytes(shape: KldShape, tokens: NDArray[np.int32]) -> bytes:
    """Magic, sizes and tokens; rows follow in chunk order."""
    sizes = struct.pack("<3i", shape.n_ctx, shape.n_vocab, shape.n_chunks)
    return MAGIC + sizes + np.ascontiguousarray(tokens, dtype="<i4").tobytes()
