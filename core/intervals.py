"""What the sampling of text leaves open: 95 % intervals by chunk, and figures by the baseline's confidence.

Tokens of one chunk are correlated, chunks hardly are: so the chunks are the sample, each with its mean.
Pure NumPy, without chance: resampling draws the same chunks every time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from core.figures import Bucket, ChunkIntervals, Interval
from core.statistics import F32, F64, percentile

LEVEL = 0.95
#: Bounds of the buckets: the probability that the baseline gave its favourite token.
EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)

_SEED = 20240229
_RESAMPLES = 2000
#: Cells of a work array at most, so that memory stays bounded however many chunks there are.
_CELLS = 1 << 22


@lru_cache(maxsize=64)
def t_quantile(df: int, level: float = LEVEL) -> float:
    """The t for which Student's distribution with ``df`` degrees of freedom holds ``level`` within ±t."""
    if df < 1 or not 0 < level < 1:
        raise ValueError("Student's t needs at least one degree of freedom and a level between 0 and 1")
    # The distribution is a finite series in the angle atan(t / sqrt(df)) (Abramowitz & Stegun 26.7.3 and 26.7.4).
    odd = df % 2
    j = np.arange(1, df // 2, dtype=np.float64)
    factors = 2 * j / (2 * j + 1) if odd else (2 * j - 1) / (2 * j)

    def within(angle: float) -> float:
        cos, sin = math.cos(angle), math.sin(angle)
        series = 1.0 + float(np.cumprod(factors * (cos * cos)).sum())
        if not odd:
            return sin * series
        return 2 / math.pi * (angle + (sin * cos * series if df > 1 else 0.0))

    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if within(middle) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan(high)


def mean_interval(means: F64) -> Interval | None:
    """Student's 95 % interval of the mean of independent values (one per chunk); none for fewer than two."""
    n = len(means)
    if n < 2:
        return None
    mean = float(means.mean())
    half = t_quantile(n - 1) * float(means.std(ddof=1)) / math.sqrt(n)
    return Interval(low=mean - half, high=mean + half)


def chunk_intervals(nll: F32, nll_base: F32, kld: F64, same_top: NDArray[np.bool_]) -> ChunkIntervals | None:
    """95 % intervals of the figures, from per-token values of shape (n_chunks, rows_per_chunk).

    Means by Student's t over chunk means; the 99.9 % KLD by the percentile bootstrap over chunks. None for fewer
    than two chunks: one chunk says nothing about others.
    """
    ln_ratio = mean_interval((nll.astype(np.float64) - nll_base).mean(axis=1))
    kld_mean = mean_interval(kld.mean(axis=1, dtype=np.float64))
    share = mean_interval(same_top.mean(axis=1, dtype=np.float64))
    if ln_ratio is None or kld_mean is None or share is None:
        return None
    return ChunkIntervals(
        n_chunks=len(nll),
        kld_mean=kld_mean,
        kld_p99_9=_bootstrap(kld.astype(np.float32), 0.999),
        ln_ppl_ratio=ln_ratio,
        same_top=Interval(low=max(0.0, share.low), high=min(1.0, share.high)),
    )


def _draws(n_chunks: int) -> NDArray[np.int32]:
    """How often each chunk is drawn in each resample: (resamples, n_chunks)."""
    # Raw words, since NumPy promises that these never change; its derived draws may, from version to version.
    # The remainder's bias is n_chunks / 2^64.
    raw = np.random.PCG64(_SEED).random_raw(_RESAMPLES * n_chunks)
    drawn = (raw % np.uint64(n_chunks)).astype(np.int64).reshape(_RESAMPLES, n_chunks)
    drawn += np.arange(_RESAMPLES)[:, None] * n_chunks
    counts = np.bincount(drawn.ravel(), minlength=_RESAMPLES * n_chunks)
    return counts.astype(np.int32).reshape(_RESAMPLES, n_chunks)


def _bootstrap(values: F32, fraction: float) -> Interval:
    """Percentile-bootstrap 95 % interval of a high percentile over all tokens, whole chunks being resampled.

    Values are sorted once. In a resample each counts as often as its chunk was drawn, so the percentile is where the
    running count from the top reaches its rank: a short way, for a high percentile.
    """
    n_chunks, rows = values.shape
    order = np.argsort(-values.ravel(), kind="stable")
    descending, owner = values.ravel()[order].astype(np.float64), order // rows
    position = fraction * (values.size - 1)
    rest = position - math.floor(position)
    lower_rank = values.size - 1 - math.floor(position)
    upper_rank = max(0, lower_rank - 1)

    counts = _draws(n_chunks)
    found = np.empty(len(counts))
    pending, depth = np.arange(len(counts)), min(values.size, 4 * (lower_rank + 1))
    while len(pending):
        short = []
        for part in np.array_split(pending, -(-len(pending) * depth // _CELLS)):
            running = np.cumsum(counts[part][:, owner[:depth]], axis=1)
            reached = running[:, -1] > lower_rank
            running = running[reached]
            lower = descending[(running <= lower_rank).sum(axis=1)]
            upper = descending[(running <= upper_rank).sum(axis=1)]
            found[part[reached]] = (1 - rest) * lower + rest * upper
            short.append(part[~reached])
        pending, depth = np.concatenate(short), min(values.size, 4 * depth)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))


def buckets(p_top_base: F32, kld: F64, same_top: NDArray[np.bool_]) -> list[Bucket]:
    """Figures by the probability that the baseline gave its favourite token, lowest first; empty ones left out.

    Each bucket holds its lower bound; the last holds 1 too.
    """
    # In f32, as the probabilities are: 0.9 as they write it belongs to the bucket from 0.9.
    edges = np.array(EDGES, dtype=np.float32)
    place = np.clip(np.searchsorted(edges, p_top_base.ravel(), side="right") - 1, 0, len(EDGES) - 2)
    found = []
    for index, (low, high) in enumerate(pairwise(EDGES)):
        here = place == index
        if not here.any():
            continue
        values = kld.ravel()[here]
        found.append(
            Bucket(
                low=low,
                high=high,
                n_tokens=int(here.sum()),
                kld_mean=float(values.mean(dtype=np.float64)),
                kld_p99=percentile(np.sort(values.astype(np.float32)), 0.99),
                same_top=float(same_top.ravel()[here].mean(dtype=np.float64)),
            )
        )
    return found
