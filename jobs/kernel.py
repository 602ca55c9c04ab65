"""Row kernels: log-softmax, NLL, KL divergence and the base file's encoding, in fused SIMD passes.

Compiled by numba, they release the interpreter lock and make no copies and no temporaries: a row of logits is read
from memory once and stays in the second-level cache for the passes that follow. Where llama-perplexity computes in
f32, so do they, operation by operation (sources: ``process_logits()`` and ``log_softmax()`` in llama.cpp's
tools/perplexity/perplexity.cpp); sums are f64, as there.

A row's verdict is one of :data:`FINE`, :data:`NOT_FINITE` (NaN, +inf, or nothing but −inf), :data:`ZERO` (probability
zero where the baseline has some) and :data:`CORRUPT` (base rows that are no distribution); :data:`UNSCORED` until then.
Single −inf entries are masks that a model sets itself, and fine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, float64, int32, int64, njit
from numba.extending import intrinsic

FINE, NOT_FINITE, ZERO, CORRUPT, UNSCORED = 0, 1, 2, 3, 4
#: Log-probabilities further than this below a row's maximum are clipped to it in a base file (nats).
_CLIP = np.float32(16.0)
_LEVELS = np.float32(65535.0)
#: A row's probabilities add up to one but for rounding (1e-4) and the floor's raised tail (1.1e-7 per token).
_MASS_SLACK = 0.02
_MASS_SLACK_PER_TOKEN = 1.2e-7

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "boundscheck": False}


@intrinsic
def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` rounded once (f64)."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.DoubleType()
        function = builder.module.declare_intrinsic("llvm.fma", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, arguments)

    return float64(float64, float64, float64), build


@intrinsic
def _accumulate(typing: Any, total: Any, term: Any) -> Any:
    """``total + term`` in f64, in whatever order suits the vector unit."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("reassoc",))

    return float64(float64, float64), build


@intrinsic
def _bits(typing: Any, x: Any) -> Any:
    """The bits of an f32 as int32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return int32(float32), build


@intrinsic
def _float(typing: Any, x: Any) -> Any:
    """The f32 with the bits of an int32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(int32), build


@intrinsic
def _long(typing: Any, x: Any) -> Any:
    """The bits of an f64 as int64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return int64(float64), build


@intrinsic
def _double(typing: Any, x: Any) -> Any:
    """The f64 with the bits of an int64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return float64(int64), build


_LOG2E = 1.4426950408889634
_LN2 = 0.6931471805599453
#: Adding it leaves an integer in the low bits of the sum: 1.5 * 2**52.
_ROUND = 6755399441055744.0
_LOWEST_EXPONENT = np.float32(-87.0)
#: 2**(i/32), and the polynomial of 2**(r/32) for |r| <= 1/2.
_POWERS = np.exp2(np.arange(32, dtype=np.longdouble) / 32).astype(np.float64)
_P0 = float.fromhex("0x1.c6af84b912394p-5") / 32**3
_P1 = float.fromhex("0x1.ebfce50fac4f3p-3") / 32**2
_P2 = float.fromhex("0x1.62e42ff0c52d6p-1") / 32
_LOG2E_32 = _LOG2E * 32


@njit(**_OPTIONS)
def _exp(x: Any) -> Any:
    """e**x for x <= 0 in f32, with glibc's very result (its ``expf``, sysdeps/ieee754/flt-32/e_expf.c, in f64).

    0 below −87, where nothing counts any more. Correct rounding would not do: one ulp in a few terms of a row's sum
    moves f32(log sum) by a step, and with it a base file's bytes and a row's KLD by 1e-6, which is a printed digit.
    """
    z = _LOG2E_32 * float64(x)
    shifted = z + _ROUND
    r = z - (shifted - _ROUND)
    k = _long(shifted)
    power = _double(np.int64(_long(_POWERS[k & 31]) + ((k >> np.int64(5)) << np.int64(52))))
    y = _fma(_fma(_P0, r, _P1), r * r, _fma(_P2, r, 1.0)) * power
    return float32(y) if x > _LOWEST_EXPONENT else np.float32(0.0)


_D2, _D3, _D4, _D5 = 0.4999999999958795, 0.16666666666608243, 0.04166666699589105, 0.00833333337223265
_D6, _D7, _D8, _D9 = 0.001388880669577693, 0.0001984118351538516, 2.48826338011582e-05, 2.7635673734255847e-06
_LOWEST_WIDE = -87.0


@njit(**_OPTIONS)
def _exp_wide(x: Any) -> Any:
    """e**x for x <= 0 in f64, to 2e-14; 0 below −87, where nothing counts any more (and for NaN)."""
    inside = max(x, _LOWEST_WIDE)
    z = _fma(inside, _LOG2E, _ROUND)
    r = _fma(z - _ROUND, -_LN2, inside)
    q = _fma(r, _D9, _D8)
    q = _fma(r, q, _D7)
    q = _fma(r, q, _D6)
    q = _fma(r, q, _D5)
    q = _fma(r, q, _D4)
    q = _fma(r, q, _D3)
    q = _fma(r, q, _D2)
    y = _fma(q, r * r, r) + 1.0
    scaled = _double(np.int64(_long(y) + (_long(z) << np.int64(52))))
    return scaled if x > _LOWEST_WIDE else 0.0


#: Logits at or under this are masks that the model sets itself (−FLT_MAX or −inf).
_MASKED = np.float32(-1e38)
#: Where a floored entry of a row whose whole mass lies on one token ends up, give or take a rounding.
_AT_FLOOR = np.float32(-15.99)
_INFINITY_KEY = np.int32(0x7F800000)


@njit(**_OPTIONS)
def _key(x: Any) -> Any:
    """An int32 that orders as the float does; NaNs lie beyond the infinities of their sign."""
    bits = _bits(x)
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(**_OPTIONS)
def _from_key(key: Any) -> Any:
    return _float(np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@njit(**_OPTIONS)
def _extremes(row: Any) -> Any:
    """(max, min, whether the row is fit for use: no NaN, no +inf, not all -inf)."""
    high, low = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for i in range(row.size):
        key = _key(row[i])
        high = max(high, key)
        low = min(low, key)
    # -inf has the key of ~0x7F800000; a NaN with its sign set lies below it.
    fine = high < _INFINITY_KEY and high > ~_INFINITY_KEY and low >= ~_INFINITY_KEY
    return _from_key(high), _from_key(low), fine


@njit(**_OPTIONS)
def _sum_exp(row: Any, top: Any) -> Any:
    """sum of exp(x - max): f32 exponentials, f64 sum."""
    total = 0.0
    for i in range(row.size):
        total = _accumulate(total, float64(_exp(row[i] - top)))
    return total


@njit(**_OPTIONS)
def _first(row: Any, value: Any) -> Any:
    for i in range(row.size):
        if row[i] == value:
            return i
    return -1


@njit(**_OPTIONS)
def _encode(row: Any, top: Any, bottom: Any, log_sum: Any, out: Any) -> None:
    """Encode a log-softmax row to 16 bits, shape (row_u16,), in the tool's f32 arithmetic."""
    n = row.size
    lowest = max(bottom, top - _CLIP)
    scale = (top - lowest) / _LEVELS
    floats = out[:4].view(np.float32)
    floats[0] = scale
    floats[1] = lowest - top - log_sum
    inverse = np.float32(1.0) / scale if scale > 0 else np.float32(0.0)
    levels = out[4:]
    for i in range(n):
        x = row[i]
        # Adding 2**23 rounds half to even, as the tool does. Entries at or under the floor (masks) are 0.
        level = inverse * (x - lowest) + np.float32(8388608.0)
        levels[i] = np.uint16(_bits(level)) if x > lowest else np.uint16(0)
    if n % 2:
        levels[n] = 0


@njit(**_OPTIONS)
def _clipped_row(row: Any, encoded: Any, target: Any, scores: Any, same: Any, k: Any) -> Any:
    """llama-perplexity's figures of one row against one encoded base row; see :func:`score_clipped`."""
    n = row.size
    floats = encoded[:4].view(np.float32)
    scale, floor = floats[0], floats[1]
    levels = encoded[4 : 4 + n]
    limit = _CLIP + np.float32(np.log(float64(n)) + 1e-3)
    if not (scale >= 0 and scale <= np.float32(16.001) / _LEVELS and floor <= np.float32(1e-3) and floor >= -limit):
        return CORRUPT
    top, _, fine = _extremes(row)
    if not fine:
        return NOT_FINITE
    level = top + np.float32(np.log(_sum_exp(row, top)))
    kld, mass = 0.0, 0.0
    highest = np.uint16(0)
    for i in range(n):
        q = levels[i]
        highest = max(highest, q)
        base = scale * np.float32(q) + floor
        p = _exp(base)
        mass = _accumulate(mass, float64(p))
        x = row[i]
        term = p * (base - x + level)
        # A floored entry that the variant masks is a mask of both: the file can't hold minus infinity.
        counts = base > -_CLIP and not (base < _AT_FLOOR and x < _MASKED)
        kld = _accumulate(kld, float64(term) if counts else 0.0)
    if not abs(mass - 1.0) <= _MASS_SLACK + _MASS_SLACK_PER_TOKEN * n:
        return CORRUPT
    if not np.isfinite(kld):
        return ZERO
    # The tool compares decoded values, and neighbouring levels may decode to one: the first of the highest counts.
    best = scale * np.float32(highest) + floor
    base_top = 0
    for i in range(n):
        if scale * np.float32(levels[i]) + floor == best:
            base_top = i
            break
    if not row[target] > _MASKED:
        return ZERO
    scores[k, 0] = level - row[target]
    scores[k, 1] = -(scale * np.float32(levels[target]) + floor)
    scores[k, 2] = kld
    scores[k, 3] = np.exp(float64(best))
    same[k] = row[base_top] == top and _first(row, top) == base_top
    return FINE


@njit(**_OPTIONS)
def score_clipped(logits: Any, encoded: Any, targets: Any, scores: Any, same: Any, verdicts: Any) -> None:
    """Score rows against a base file's rows; the last three arrays are written.

    Args:
        logits: f32, shape (n, n_vocab).
        encoded: uint16, shape (n, row_u16): the base file's rows.
        targets: int64, shape (n,): the token that follows.
        scores: f64, shape (n, 4): NLL, base NLL (both f32 values), KLD, and the base's highest probability.
        same: bool, shape (n,): whether both rank the same token first.
        verdicts: int64, shape (n,).
    """
    for k in range(logits.shape[0]):
        verdicts[k] = _clipped_row(logits[k], encoded[k], targets[k], scores, same, k)


@njit(**_OPTIONS)
def _unclipped_row(row: Any, base: Any, target: Any, scores: Any, same: Any, k: Any) -> Any:
    top, _, fine = _extremes(row)
    if not fine:
        return NOT_FINITE
    base_top, _, base_fine = _extremes(base)
    if not base_fine:
        return CORRUPT
    wide_top, wide_base_top = float64(top), float64(base_top)
    total, base_total, product = 0.0, 0.0, 0.0
    for i in range(row.size):
        b, x = float64(base[i]), float64(row[i])
        p = _exp_wide(b - wide_base_top)
        total = _accumulate(total, _exp_wide(x - wide_top))
        base_total = _accumulate(base_total, p)
        # Where the base has no probability there is nothing to add, be the difference what it may (-inf masks).
        product = _accumulate(product, p * (b - x) if p > 0.0 else 0.0)
    level = wide_top + np.log(total)
    base_level = wide_base_top + np.log(base_total)
    kld = product / base_total + (level - base_level)
    if not np.isfinite(kld):
        return ZERO
    if not row[target] > _MASKED or not base[target] > _MASKED:
        return ZERO
    scores[k, 0] = level - float64(row[target])
    scores[k, 1] = base_level - float64(base[target])
    scores[k, 2] = kld
    scores[k, 3] = 1.0 / base_total
    favourite = _first(base, base_top)
    same[k] = row[favourite] == top and _first(row, top) == favourite
    return FINE


@njit(**_OPTIONS)
def score_unclipped(logits: Any, base: Any, targets: Any, scores: Any, same: Any, verdicts: Any) -> None:
    """Score rows against the base's own logits (f32, shape (n, n_vocab)); else as :func:`score_clipped`.

    KLD = sum p (b - x) / sum p + ln sum exp(x) - ln sum exp(b), with p = exp(b - max b): one pass over both rows, and
    nothing is lost where they are nearly equal.
    """
    for k in range(logits.shape[0]):
        verdicts[k] = _unclipped_row(logits[k], base[k], targets[k], scores, same, k)


@njit(**_OPTIONS)
def encode_rows(logits: Any, targets: Any, encoded: Any, nll: Any, verdicts: Any) -> None:
    """Encode rows for a base file and take each target's NLL; the last three arrays are written.

    Args:
        logits: f32, shape (n, n_vocab).
        targets: int64, shape (n,): the token that follows.
        encoded: uint16, shape (n, row_u16); or (n, 0) for the NLL alone.
        nll: f64, shape (n,): nats, as the direct perplexity run computes it.
        verdicts: int64, shape (n,).
    """
    for k in range(logits.shape[0]):
        row = logits[k]
        top, bottom, fine = _extremes(row)
        if not fine:
            verdicts[k] = NOT_FINITE
            continue
        log_sum = np.log(_sum_exp(row, top))
        nll[k] = -(float64(row[targets[k]] - top) - log_sum)
        if encoded.shape[1]:
            _encode(row, top, bottom, np.float32(log_sum), encoded[k])
        verdicts[k] = FINE if row[targets[k]] > _MASKED else ZERO


@njit(**_OPTIONS)
def check_encoded(encoded: Any, n_vocab: Any, verdicts: Any) -> None:
    """Write :data:`CORRUPT` for each encoded row, shape (n, row_u16), that is no distribution, else FINE."""
    limit = _CLIP + np.float32(np.log(float64(n_vocab)) + 1e-3)
    for k in range(encoded.shape[0]):
        floats = encoded[k, :4].view(np.float32)
        scale, floor = floats[0], floats[1]
        mass = 0.0
        for i in range(n_vocab):
            mass = _accumulate(mass, float64(_exp(scale * np.float32(encoded[k, 4 + i]) + floor)))
        sane = scale >= 0 and scale <= np.float32(16.001) / _LEVELS and floor <= np.float32(1e-3) and floor >= -limit
        even = abs(mass - 1.0) <= _MASS_SLACK + _MASS_SLACK_PER_TOKEN * n_vocab
        verdicts[k] = FINE if sane and even else CORRUPT


@njit(**_OPTIONS)
def apply_head_rule(logits: Any, scale: Any, bias: Any, softcap: Any) -> None:
    """Turn a head's raw output, f32 of shape (n, n_vocab), into logits in place: scale, then bias, then soft cap.

    Args:
        bias: f32, shape (n_vocab,) or (0,) for none.
        softcap: y = softcap * tanh(y / softcap); 0 for none.
    """
    for k in range(logits.shape[0]):
        row = logits[k]
        if scale != np.float32(1.0):
            for i in range(row.size):
                row[i] *= scale
        if bias.size:
            for i in range(row.size):
                row[i] += bias[i]
        if softcap > 0:
            inverse = np.float32(1.0) / softcap
            for i in range(row.size):
                y = row[i] * inverse
                e = _exp(np.float32(-2.0) * abs(y))
                t = (np.float32(1.0) - e) / (np.float32(1.0) + e)
                # What is no number must stay so: a broken row is not to look whole.
                row[i] = softcap * (t if y >= 0 else -t) if y == y else y
