"""Runs chunks through a model and hands out the logits of scored positions, a decode at a time.

Batch shape is llama-perplexity's (n_batch // n_ctx chunks per decode, the second half of each scored), but the
batch is ordered as llama.cpp will compute it, so that it need not sort outputs afterwards: that reorder takes
73 ms per 2,048 tokens at a vocabulary of 152k, on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import CorpusError, SettingsError
from jobs.baseline.kld_file import KldShape
from jobs.llama import Context, Model


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How chunks are packed: ``n_seq`` chunks per decode of at most ``n_batch`` tokens."""

    n_ctx: int
    n_seq: int
    n_batch: int
    n_ubatch: int


@dataclass(frozen=True, slots=True)
class ScoredLogits:
    """Logits of some scored positions of one group of chunks.

    ``chunk`` (index in the group) and ``row`` (0 = first scored position) have shape (n,); ``logits`` is a view of
    shape (n, n_vocab), valid until the next decode.
    """

    chunk: NDArray[np.int64]
    row: NDArray[np.int64]
    logits: NDArray[np.float32]


def batch_shape(*, n_ctx: int, n_batch: int, n_ubatch: int) -> BatchShape:
    """llama-perplexity's packing.

    Raises:
        SettingsError: n_batch is larger than n_ctx but no multiple of it.
    """
    n_seq = max(1, n_batch // n_ctx)
    if n_batch > n_ctx and n_batch % n_ctx:
        raise SettingsError(f"n_batch {n_batch} must be smaller than n_ctx {n_ctx} or a multiple of it.")
    return BatchShape(n_ctx, n_seq, min(n_batch, n_seq * n_ctx), n_ubatch)


def chunk_tokens(tokens: NDArray[np.int32], *, n_ctx: int, chunks: int) -> NDArray[np.int32]:
    """The corpus cut into chunks, shape (n_chunks, n_ctx); the tail is dropped, ``chunks`` < 0 means all.

    Raises:
        CorpusError: fewer than two chunks' worth of tokens.
    """
    if len(tokens) < 2 * n_ctx:
        raise CorpusError(
            f"The corpus has {len(tokens)} tokens; n_ctx {n_ctx} needs at least {2 * n_ctx}. "
            "Give a longer text or a smaller --ctx."
        )
    n_chunks = len(tokens) // n_ctx
    if chunks >= 0:
        n_chunks = min(n_chunks, chunks)
    if n_chunks == 0:
        raise SettingsError("0 chunks were asked for; give at least one, or leave --chunks out for all.")
    return tokens[: n_chunks * n_ctx].reshape(n_chunks, n_ctx)


def _order(shape: BatchShape, n_seq: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(sequence, position) of every token of a decode of whole chunks, in the order of computation."""
    width = max(1, shape.n_ubatch // n_seq)
    sequences, positions = [], []
    for start in range(0, shape.n_ctx, width):
        span = np.arange(start, min(start + width, shape.n_ctx), dtype=np.int32)
        for sequence in range(n_seq):
            positions.append(span)
            sequences.append(np.full(len(span), sequence, dtype=np.int32))
    return np.concatenate(sequences), np.concatenate(positions)


def decode_group(
    context: Context, model: Model, tokens: NDArray[np.int32], shape: BatchShape
) -> Iterator[ScoredLogits]:
    """Decode one group of chunks, ``tokens`` of shape (n, n_ctx), n <= n_seq; yields once per decode."""
    first = KldShape(shape.n_ctx, model.n_vocab, 1).first
    fed = tokens.copy()
    if model.add_bos:
        fed[:, 0] = model.bos
    context.clear()
    if shape.n_batch < shape.n_ctx:
        spans = [
            np.arange(start, min(start + shape.n_batch, shape.n_ctx), dtype=np.int32)
            for start in range(0, shape.n_ctx, shape.n_batch)
        ]
        steps = [(np.zeros_like(span), span) for span in spans]
    else:
        steps = [_order(shape, len(tokens))]
    for sequences, positions in steps:
        # The last position's logits would score a token beyond the chunk: not asked for.
        outputs = (positions >= first) & (positions < shape.n_ctx - 1)
        context.decode(fed[sequences, positions], positions, sequences, outputs)
        n_rows = int(outputs.sum())
        if n_rows:
            yield ScoredLogits(
                chunk=sequences[outputs].astype(np.int64),
                row=(positions[outputs] - first).astype(np.int64),
                logits=context.logits(n_rows),
            )
        else:
            context.synchronize()


def groups(n_chunks: int, n_seq: int) -> Iterator[range]:
    """Chunk indices of each decode group."""
    for start in range(0, n_chunks, n_seq):
        yield range(start, min(start + n_seq, n_chunks))
