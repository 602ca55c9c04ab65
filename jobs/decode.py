"""Plans how chunks go through a model: whole groups of chunks, a micro-batch per decode, scored rows only.

Chunks per group are llama-perplexity's (n_batch // n_ctx, the second half of each scored), and so are the
micro-batches that llama.cpp computes. But each decode is one micro-batch, ordered as it is computed: llama.cpp need
not sort outputs afterwards (73 ms per 2,048 tokens at a vocabulary of 152k, on one thread), and host memory holds one
micro-batch of logits whatever n_ctx is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from core.errors import CorpusError, SettingsError
from jobs.baseline.kld_file import KldShape

#: A run of scored rows in a decode's outputs: (chunk in the group, first row, first output, length).
Span = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How chunks are packed: ``n_seq`` chunks of ``n_ctx`` tokens per group, ``n_ubatch`` tokens per decode.

    ``n_batch`` is at most a group's tokens; where it is less than n_ctx, llama.cpp begins a new micro-batch there.
    """

    n_ctx: int
    n_seq: int
    n_batch: int
    n_ubatch: int

    def most_tokens(self, n_seq: int) -> int:
        """Tokens of the largest decode of a group of ``n_seq`` chunks."""
        return max(len(step.positions) for step in steps(self, n_seq))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One decode of a group. ``sequences``, ``positions``, ``outputs`` have shape (n_tokens,).

    ``chunks`` (index in the group) and ``rows`` (0 = first scored position) of its outputs have shape (n_rows,);
    ``spans`` are the runs among them.
    """

    sequences: NDArray[np.int32]
    positions: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    chunks: NDArray[np.int64]
    rows: NDArray[np.int64]
    spans: tuple[Span, ...]


def batch_shape(*, n_ctx: int, n_batch: int, n_ubatch: int) -> BatchShape:
    """llama-perplexity's packing.

    Raises:
        SettingsError: n_batch is larger than n_ctx but no multiple of it, or a size leaves nothing to score.
    """
    if n_ctx < 4 or n_batch < 1 or n_ubatch < 1:
        raise SettingsError(
            f"n_ctx {n_ctx}, n_batch {n_batch}, n_ubatch {n_ubatch}: chunks need 4 tokens at least, batches 1."
        )
    n_seq = max(1, n_batch // n_ctx)
    if n_batch > n_ctx and n_batch % n_ctx:
        raise SettingsError(f"n_batch {n_batch} must be smaller than n_ctx {n_ctx} or a multiple of it.")
    return BatchShape(n_ctx, n_seq, min(n_batch, n_seq * n_ctx), min(n_ubatch, n_batch))


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


@cache
def steps(shape: BatchShape, n_seq: int) -> tuple[Step, ...]:
    """The decodes of a group of ``n_seq`` chunks, in order: llama.cpp's own micro-batches."""
    width = max(1, shape.n_ubatch // n_seq)
    batch = min(shape.n_batch, shape.n_ctx)
    return tuple(
        _step(shape, n_seq, start, min(start + width, begin + batch, shape.n_ctx))
        for begin in range(0, shape.n_ctx, batch)
        for start in range(begin, min(begin + batch, shape.n_ctx), width)
    )


def _step(shape: BatchShape, n_seq: int, start: int, stop: int) -> Step:
    first = KldShape(shape.n_ctx, 1, 1).first
    positions = np.tile(np.arange(start, stop, dtype=np.int32), n_seq)
    sequences = np.repeat(np.arange(n_seq, dtype=np.int32), stop - start)
    # The last position's logits would score a token beyond the chunk: not asked for.
    outputs = (positions >= first) & (positions < shape.n_ctx - 1)
    low, high = max(start, first), min(stop, shape.n_ctx - 1)
    length = max(0, high - low)
    spans = tuple((chunk, low - first, chunk * length, length) for chunk in range(n_seq)) if length else ()
    return Step(
        sequences=sequences,
        positions=positions,
        outputs=outputs,
        chunks=sequences[outputs].astype(np.int64),
        rows=(positions[outputs] - first).astype(np.int64),
        spans=spans,
    )


def fed_tokens(tokens: NDArray[np.int32], *, bos: int | None) -> NDArray[np.int32]:
    """What the model is given for a group's tokens, shape (n, n_ctx): the first of each chunk replaced by BOS."""
    if bos is None:
        return tokens
    fed = tokens.copy()
    fed[:, 0] = bos
    return fed


def groups(n_chunks: int, n_seq: int, *, start: int = 0) -> Iterator[range]:
    """Chunk indices of each group, from the one that begins with ``start``."""
    for first in range(start, n_chunks, n_seq):
        yield range(first, min(first + n_seq, n_chunks))


def schedule(counts: list[list[bool]], *, overlap: bool) -> Iterator[tuple[int, int]]:
    """The order of decodes over groups, as (group, step).

    A decode without outputs leaves the last one's logits where they are, so that they can be scored meanwhile.
    With ``overlap``, such decodes of the next group are put between the decodes with outputs of the one before.

    Args:
        counts: per group, per step: whether it has outputs.
    """
    if not overlap:
        for group, of_group in enumerate(counts):
            for step in range(len(of_group)):
                yield group, step
        return
    done = [0] * len(counts)
    for group, of_group in enumerate(counts):
        while done[group] < len(of_group):
            step = done[group]
            done[group] += 1
            yield group, step
            after = group + 1
            if of_group[step] and after < len(counts):
                ahead = done[after]
                if ahead < len(counts[after]) and not counts[after][ahead]:
                    done[after] += 1
                    yield after, ahead
