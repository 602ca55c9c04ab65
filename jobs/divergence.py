"""Per-row arithmetic: log-softmax, NLL and KL divergence of logits rows, as llama-perplexity computes them.

Rows are worked on in blocks that stay in the cache; NumPy releases the interpreter lock, so blocks run on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from core.errors import BaselineError, NonFiniteLogitsError
from jobs.baseline.kld_file import CLIP, decode_floats, encode_rows

F32 = NDArray[np.float32]
#: Elements of one block: a few of them fit the second-level cache.
BLOCK_ELEMENTS = 1 << 18
#: A row's probabilities add up to one but for rounding (1e-4) and the floor's raised tail (1.1e-7 per token).
_MASS_SLACK = 0.02


def blocks(n_rows: int, n_vocab: int) -> Iterator[slice]:
    """Slices of rows of about :data:`BLOCK_ELEMENTS` elements."""
    step = max(1, BLOCK_ELEMENTS // n_vocab)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def run_blocks(pool: ThreadPoolExecutor, n_rows: int, n_vocab: int, work: Callable[[slice], None]) -> None:
    """Run ``work`` on every block of rows and wait; the first error is raised."""
    for future in [pool.submit(work, block) for block in blocks(n_rows, n_vocab)]:
        future.result()


def _expf(x: F32) -> F32:
    """``expf`` as the C library gives it, for every entry.

    NumPy's own f32 exponential is up to 2 ulp off, the C library's practically never more than a rounding. The
    slower way, through f64, gives the latter: recorded files get the tool's very bytes, and printed digits agree.
    """
    wide = x.astype(np.float64)
    return np.exp(wide, out=wide).astype(np.float32)


def log_sum_exp(logits: F32) -> tuple[F32, NDArray[np.float64]]:
    """(row maxima f32, log sum exp(x - max) f64) of logits of shape (n, n_vocab): f32 exponentials, f64 sums.

    Raises:
        NonFiniteLogitsError: a row holds NaN, +inf, or nothing but -inf. Single -inf entries are masks, and fine.
    """
    maxima = logits.max(axis=1)
    if not np.isfinite(maxima).all():
        bad = int((~np.isfinite(maxima)).sum())
        raise NonFiniteLogitsError(
            f"INVALID: {bad} of {len(maxima)} rows of logits in this block are NaN or infinite. "
            "The file is broken (or its kernels overflow here): quantize it again or report it to its uploader."
        )
    shifted = logits - maxima[:, None]
    return maxima, np.log(_expf(shifted).sum(axis=1, dtype=np.float64))


def record_rows(logits: F32, targets: NDArray[np.int64], encoded: NDArray[np.uint16], nll: NDArray[np.float64]) -> None:
    """Encode rows for a base file and write each target's NLL (nats, as the direct perplexity run computes it).

    Args:
        logits: shape (n, n_vocab).
        targets: the token that follows, shape (n,).
        encoded: shape (n, row_u16), written.
        nll: shape (n,), written.
    """
    maxima, log_sums = log_sum_exp(logits)
    target_logits = logits[np.arange(len(logits)), targets]
    nll[:] = -((target_logits - maxima).astype(np.float64) - log_sums)
    encode_rows(logits, maxima, log_sums.astype(np.float32), encoded)


def _sane_floats(encoded: NDArray[np.uint16], n_vocab: int) -> tuple[F32, F32]:
    """(scale, min_log_prob) of encoded rows, each of shape (n,), if they can be true."""
    scale, lowest = decode_floats(encoded)
    limit = CLIP + np.float32(np.log(n_vocab) + 1e-3)
    sane = (scale >= 0) & (scale <= 16.001 / 65535) & (lowest <= 1e-3) & (lowest >= -limit)
    if not sane.all():
        raise BaselineError("The baseline is corrupt: a row's scale or floor can't be true. Record it again.")
    return scale, lowest


def _check_mass(probabilities: F32) -> None:
    slack = _MASS_SLACK + probabilities.shape[1] * 1.2e-7
    if (np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) > slack).any():
        raise BaselineError("The baseline is corrupt: a row's probabilities do not add up to one. Record it again.")


def check_rows(encoded: NDArray[np.uint16], n_vocab: int) -> None:
    """Raise :class:`BaselineError` unless every encoded row, shape (n, row_u16), is a distribution."""
    for part in blocks(len(encoded), n_vocab):
        scale, lowest = _sane_floats(encoded[part], n_vocab)
        values = encoded[part, 4 : 4 + n_vocab].astype(np.float32)
        values *= scale[:, None]
        values += lowest[:, None]
        _check_mass(np.exp(values, out=values))


def compare_rows(
    logits: F32,
    targets: NDArray[np.int64],
    encoded: NDArray[np.uint16],
    *,
    nll: F32,
    nll_base: F32,
    kld: NDArray[np.float64],
    same_top: NDArray[np.bool_],
    check_mass: bool,
) -> None:
    """Score rows against a base file's rows; the last four arrays, of shape (n,), are written.

    Args:
        logits: shape (n, n_vocab).
        targets: the token that follows, shape (n,).
        encoded: the base file's rows, shape (n, row_u16).
        check_mass: whether to check that the base rows are distributions (files without checksums).

    Raises:
        NonFiniteLogitsError: see :func:`log_sum_exp`.
        BaselineError: a base row can't be what it says.
    """
    n, n_vocab = logits.shape
    scale, lowest = _sane_floats(encoded, n_vocab)
    maxima, log_sums = log_sum_exp(logits)
    level = maxima + log_sums.astype(np.float32)
    rows = np.arange(n)
    nll[:] = level - logits[rows, targets]
    base = encoded[:, 4 : 4 + n_vocab].astype(np.float32)
    base *= scale[:, None]
    base += lowest[:, None]
    nll_base[:] = -base[rows, targets]
    same_top[:] = logits.argmax(axis=1) == base.argmax(axis=1)
    weight = _expf(base)
    if check_mass:
        _check_mass(weight)
    kept = base > -CLIP
    base -= logits
    base += level[:, None]
    weight *= base
    kld[:] = np.where(kept, weight, np.float32(0)).sum(axis=1, dtype=np.float64)
    if not np.isfinite(kld).all():
        raise NonFiniteLogitsError(
            "INVALID: the model gives probability zero to tokens that the baseline does not. "
            "Quantize it again or report it to its uploader."
        )
