"""The arithmetic of one row in plain NumPy, as llama-perplexity's sources read: what the compiled kernels must give.

Every array has one row per scored token: logits (n, n_vocab) f32, encoded rows (n, row_u16) uint16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
#: The tool's clip: nats below a row's maximum.
CLIP = np.float32(16)


def row_u16(n_vocab: int) -> int:
    """Length of an encoded row in 16-bit units: two floats, a level per token, a zero where they are odd."""
    return 4 + n_vocab + n_vocab % 2


def expf(x: F32) -> F32:
    """The exponential, rounded once to f32 as the C library's practically is (NumPy's own is up to 2 ulp off)."""
    with np.errstate(under="ignore"):
        return np.exp(x.astype(np.float64)).astype(np.float32)


def finite(logits: F32) -> NDArray[np.bool_]:
    """Which rows can be used: no NaN, no +inf, not all -inf."""
    return ~np.isnan(logits).any(axis=1) & ~(logits == np.inf).any(axis=1) & (logits > -np.inf).any(axis=1)


def log_sum_exp(logits: F32) -> tuple[F32, F64]:
    """(row maxima f32, log sum exp(x - max) f64): f32 exponentials, f64 sums."""
    top = logits.max(axis=1)
    with np.errstate(over="ignore"):
        return top, np.log(expf(logits - top[:, None]).sum(axis=1, dtype=np.float64))


def nll(logits: F32, targets: NDArray[np.int64]) -> F64:
    """Each target's NLL as the direct perplexity run computes it (nats)."""
    top, log_sum = log_sum_exp(logits)
    with np.errstate(over="ignore"):
        return -((logits[np.arange(len(logits)), targets] - top).astype(np.float64) - log_sum)


def encode(logits: F32) -> NDArray[np.uint16]:
    """Log-softmax rows in 16 bits, as ``log_softmax()`` of perplexity.cpp writes them."""
    n, n_vocab = logits.shape
    top, log_sum = log_sum_exp(logits)
    out = np.zeros((n, row_u16(n_vocab)), np.uint16)
    # Masks (-inf, -FLT_MAX) overflow here on purpose: they end at the floor.
    with np.errstate(over="ignore", invalid="ignore"):
        lowest = np.maximum(logits.min(axis=1), top - CLIP)
        scale = (top - lowest) / np.float32(65535)
        floats = np.stack([scale, lowest - top - log_sum.astype(np.float32)], axis=1).astype("<f4")
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        levels = np.rint((logits - lowest[:, None]) * inverse[:, None])
    out[:, :4] = floats.view("<u2")
    out[:, 4 : 4 + n_vocab] = np.where(logits > lowest[:, None], levels, 0)
    return out


def decode_floats(encoded: NDArray[np.uint16]) -> tuple[F32, F32]:
    """(scale, floor) of encoded rows, each of shape (n,)."""
    floats = np.ascontiguousarray(encoded[:, :4]).view("<f4")
    return floats[:, 0].copy(), floats[:, 1].copy()


def decode(encoded: NDArray[np.uint16], n_vocab: int) -> F32:
    """The log-probabilities that the tool reads back, shape (n, n_vocab)."""
    scale, floor = decode_floats(encoded)
    return encoded[:, 4 : 4 + n_vocab].astype(np.float32) * scale[:, None] + floor[:, None]


@dataclass
class Scores:
    """Per row: NLL, base NLL, KLD (nats), the base's highest probability, whether both rank the same token first.

    ``weights`` is the sum of the KLD's terms' sizes: what a rounding of each may move it by.
    """

    nll: F64
    nll_base: F64
    kld: F64
    p_top: F64
    same: NDArray[np.bool_]
    weights: F64
    level: F32


def score_clipped(logits: F32, encoded: NDArray[np.uint16], targets: NDArray[np.int64]) -> Scores:
    """llama-perplexity's figures of rows (``process_logits()`` of perplexity.cpp), operation by operation."""
    base = decode(encoded, logits.shape[1])
    top, log_sum = log_sum_exp(logits)
    level = top + log_sum.astype(np.float32)
    rows = np.arange(len(logits))
    with np.errstate(over="ignore", invalid="ignore"):
        # The one thing that is not the tool's: a floored entry that the variant masks is a mask of both.
        counts = (base > -CLIP) & ~((base < np.float32(-15.99)) & (logits < -1e38))
        terms = np.where(counts, expf(base) * (base - logits + level[:, None]), np.float32(0))
    return Scores(
        nll=(level - logits[rows, targets]).astype(np.float64),
        nll_base=-base[rows, targets].astype(np.float64),
        kld=terms.sum(axis=1, dtype=np.float64),
        p_top=np.exp(base.max(axis=1).astype(np.float64)),
        same=logits.argmax(axis=1) == base.argmax(axis=1),
        weights=np.abs(terms).sum(axis=1, dtype=np.float64),
        level=level,
    )


def score_unclipped(logits: F32, base: F32, targets: NDArray[np.int64]) -> Scores:
    """The same figures by their definitions, in extended precision; entries without base mass add nothing."""
    wide = [x.astype(np.longdouble) for x in (logits, base)]
    tops = [x.max(axis=1) for x in wide]
    log_q, log_p = (x - top[:, None] - _log_sum(x - top[:, None])[:, None] for x, top in zip(wide, tops, strict=True))
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0)
    rows = np.arange(len(logits))
    return Scores(
        nll=-log_q[rows, targets].astype(np.float64),
        nll_base=-log_p[rows, targets].astype(np.float64),
        kld=terms.sum(axis=1).astype(np.float64),
        p_top=p.max(axis=1).astype(np.float64),
        same=logits.argmax(axis=1) == base.argmax(axis=1),
        weights=np.abs(terms).sum(axis=1).astype(np.float64),
        level=(tops[0] + _log_sum(wide[0] - tops[0][:, None])).astype(np.float32),
    )


def _log_sum(shifted: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    return np.log(np.exp(shifted).sum(axis=1))


def mass(encoded: NDArray[np.uint16], n_vocab: int) -> F64:
    """What each encoded row's probabilities add up to."""
    with np.errstate(over="ignore", invalid="ignore"):
        return expf(decode(encoded, n_vocab)).sum(axis=1, dtype=np.float64)


def head_rule(raw: F32, *, scale: float, bias: F32 | None, softcap: float) -> F64:
    """A head's raw output made logits, in double precision."""
    out = raw.astype(np.float64) * np.float64(np.float32(scale))
    if bias is not None:
        out = out + bias.astype(np.float64)
    return softcap * np.tanh(out / softcap) if softcap else out


def bfloat16(values: F32) -> NDArray[np.uint16]:
    """The upper 16 bits of f32 values, each rounded to the nearest, ties to even; one value at a time."""
    out = []
    for value in values.ravel():
        if np.isnan(value):
            out.append(0x7FC0)
            continue
        bits = int(np.float32(value).view(np.uint32))
        kept, rest = bits >> 16, bits & 0xFFFF
        out.append(kept + (rest > 0x8000 or (rest == 0x8000 and kept % 2 == 1)))
    return np.array(out, np.uint16).reshape(values.shape)
