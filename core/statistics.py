"""llama-perplexity's statistics from per-token values, in its own arithmetic (f32 where it uses f32).

Source of every formula: ``kl_divergence()`` and ``perplexity_v2()`` in llama.cpp's tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.contract import KLD, DeltaP, Estimate, ExactBase

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_KLD_PERCENTILES = {
    "p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.90, "p10": 0.10, "p5": 0.05, "p1": 0.01, "p0_1": 0.001,
}  # fmt: skip
_DELTA_PERCENTILES = {**_KLD_PERCENTILES, "p75": 0.75, "p25": 0.25}


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per scored token, in corpus order, all of shape (n_tokens,).

    ``nll`` and ``nll_base`` are nats in f32 as llama-perplexity keeps them; ``kld`` f64 row sums (nats);
    ``same_top`` whether both models rank the same token first.
    """

    nll: F32
    nll_base: F32
    kld: F64
    same_top: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.nll)


@dataclass(frozen=True, slots=True)
class QualityStatistics:
    """The statistics of one run, in the contract's models."""

    ppl: Estimate
    ppl_base: Estimate
    ppl_ratio: Estimate
    ln_ppl_ratio: Estimate
    ppl_cor: float
    kld: KLD
    delta_p: DeltaP
    same_top: Estimate


def percentile(ordered: F32, fraction: float) -> float:
    """Linear interpolation between sorted f32 values, in f32, as the tool does it."""
    position = np.float32(fraction) * np.float32(len(ordered) - 1)
    index = int(position)
    rest = np.float32(position - np.float32(index))
    upper = ordered[min(index + 1, len(ordered) - 1)]
    return float((np.float32(1) - rest) * ordered[index] + rest * upper)


def median(ordered: F32) -> float:
    """The middle of sorted f32 values, or the mean of the two middles."""
    n = len(ordered)
    if n % 2:
        return float(ordered[n // 2])
    return float(np.float32(0.5) * (ordered[n // 2] + ordered[n // 2 - 1]))


def mean_and_se(total: float, total_of_squares: float, n: int) -> tuple[float, float]:
    """Mean and standard error from sums; the error is 0 for ten values or fewer, or for no variance."""
    mean = total / n
    if n <= 10:
        return mean, 0.0
    variance = total_of_squares / n - mean * mean
    return mean, float(np.sqrt(variance / (n - 1))) if variance > 0 else 0.0


def perplexity(nll: F64) -> Estimate:
    """PPL of per-token NLLs (nats, f64): exp(mean) ± exp(mean)·sqrt((E[v²] − mean²)/(n − 1))."""
    n = len(nll)
    mean = float(nll.sum()) / n
    variance = float((nll * nll).sum()) / n - mean * mean
    error = float(np.sqrt(variance / (n - 1))) if n > 1 and variance > 0 else 0.0
    value = float(np.exp(mean))
    return Estimate(value=value, stderr=value * error)


def _sums(values: NDArray[np.floating]) -> tuple[float, float]:
    """Sum in double of the values and of their squares (squared in their own type)."""
    return float(values.sum(dtype=np.float64)), float((values * values).sum(dtype=np.float64))


def _ratio(nll: NDArray[np.floating], base: NDArray[np.floating]) -> tuple[Estimate, Estimate, Estimate, float]:
    """(PPL(base), ln ratio, ratio, correlation) of paired NLLs."""
    n = len(nll)
    mean, se = mean_and_se(*_sums(nll), n)
    base_mean, base_se = mean_and_se(*_sums(base), n)
    product = float((nll * base).sum(dtype=np.float64))
    covariance = (product / n - mean * base_mean) / (n - 1) if n >= 10 else 0.0
    correlation = covariance / (se * base_se) if se and base_se else 0.0
    ln_ratio = mean - base_mean
    spread = se * se + base_se * base_se - 2 * covariance
    ln_se = float(np.sqrt(spread)) if spread > 0 else 0.0
    ratio = float(np.exp(ln_ratio))
    ppl_base = float(np.exp(base_mean))
    return (
        Estimate(value=ppl_base, stderr=ppl_base * base_se),
        Estimate(value=ln_ratio, stderr=ln_se),
        Estimate(value=ratio, stderr=ratio * ln_se),
        correlation,
    )


def exact_base(nll: F32, exact_nll: F64) -> ExactBase:
    """The comparison with the reference's true NLL (f64, nats), free of the base file's 16-nat clip."""
    ppl_base, ln_ratio, ratio, _ = _ratio(nll.astype(np.float64), exact_nll)
    return ExactBase(ppl_base=ppl_base, ln_ppl_ratio=ln_ratio, ppl_ratio=ratio)


def quality_statistics(scores: TokenScores) -> QualityStatistics:
    """Every statistic that ``llama-perplexity --kl-divergence`` prints.

    Raises:
        ValueError: no scored tokens.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("no scored tokens")
    mean, se = mean_and_se(*_sums(scores.nll), n)
    value = float(np.exp(mean))
    ppl_base, ln_ratio, ratio, correlation = _ratio(scores.nll, scores.nll_base)
    share = float(scores.same_top.sum()) / n
    return QualityStatistics(
        ppl=Estimate(value=value, stderr=value * se),
        ppl_base=ppl_base,
        ppl_ratio=ratio,
        ln_ppl_ratio=ln_ratio,
        ppl_cor=correlation,
        kld=kld_statistics(scores.kld),
        delta_p=_delta_p(np.exp(-scores.nll) - np.exp(-scores.nll_base)),
        same_top=Estimate(value=share, stderr=float(np.sqrt(share * (1 - share) / (n - 1))) if n > 1 else 0.0),
    )


def kld_statistics(kld: F64) -> KLD:
    """Mean, standard error and percentiles of per-token KLDs (f64, nats)."""
    mean, se = mean_and_se(float(kld.sum()), float((kld * kld).sum()), len(kld))
    ordered = np.sort(kld.astype(np.float32))
    points = {name: percentile(ordered, fraction) for name, fraction in _KLD_PERCENTILES.items()}
    return KLD(mean=mean, stderr=se, max=float(ordered[-1]), median=median(ordered), min=float(ordered[0]), **points)


def _delta_p(delta: F32) -> DeltaP:
    n = len(delta)
    mean, se = mean_and_se(*_sums(delta), n)
    # The tool squares in f32, then widens: fourth powers are products of those doubles.
    squares = (delta * delta).astype(np.float64)
    mean_square, square_se = mean_and_se(float(squares.sum()), float((squares * squares).sum()), n)
    rms = float(np.sqrt(mean_square))
    ordered = np.sort(delta)
    points = {name: percentile(ordered, fraction) for name, fraction in _DELTA_PERCENTILES.items()}
    return DeltaP(
        mean=mean,
        stderr=se,
        rms=rms,
        rms_stderr=0.5 / rms * square_se if rms else 0.0,
        max=float(ordered[-1]),
        median=median(ordered),
        min=float(ordered[0]),
        **points,
    )
