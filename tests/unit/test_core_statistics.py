"""The statistics against the formulas written out a second time, in plain Python doubles."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.statistics import (
    TokenScores,
    exact_base,
    mean_and_se,
    median,
    percentile,
    perplexity,
    quality_statistics,
)


def scores(seed: int, n: int) -> TokenScores:
    rng = np.random.default_rng(seed)
    base = rng.gamma(1.5, 1.5, n).astype(np.float32)
    nll = np.abs(base + rng.normal(0.01, 0.2, n)).astype(np.float32)
    return TokenScores(nll, base, rng.gamma(0.3, 0.05, n) - 1e-9, rng.random(n) < 0.95)


def se(values: list[float]) -> float:
    n = len(values)
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n / (n - 1)) if n > 10 else 0.0


def at(values: list[float], fraction: float) -> float:
    position = fraction * (len(values) - 1)
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(11, 400))
def test_against_plain_python(seed: int, n: int) -> None:
    given_scores = scores(seed, n)
    found = quality_statistics(given_scores)
    a, b = [float(v) for v in given_scores.nll], [float(v) for v in given_scores.nll_base]
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    near = lambda value: pytest.approx(value, rel=2e-3, abs=1e-7)  # noqa: E731 (f32 squares, as the tool's)
    assert found.ppl.value == pytest.approx(math.exp(mean_a), rel=1e-9)
    assert found.ppl.stderr == near(math.exp(mean_a) * se(a))
    assert found.ppl_base.value == pytest.approx(math.exp(mean_b), rel=1e-9)
    assert found.ln_ppl_ratio.value == pytest.approx(mean_a - mean_b, abs=1e-9)
    # The error of a mean of pairs is that of their differences; the tool takes the way round over the covariance.
    assert found.ln_ppl_ratio.stderr == pytest.approx(
        se([x - y for x, y in zip(a, b, strict=True)]), rel=2e-2, abs=1e-5
    )
    assert found.ppl_ratio.value == pytest.approx(math.exp(mean_a - mean_b), rel=1e-9)
    assert found.ppl_cor == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-3, abs=1e-4)
    kld = [float(v) for v in given_scores.kld]
    assert found.kld.mean == pytest.approx(math.fsum(kld) / n, rel=1e-9)
    assert found.kld.stderr == near(se(kld))
    delta = sorted(math.exp(-x) - math.exp(-y) for x, y in zip(a, b, strict=True))
    assert found.delta_p.mean == pytest.approx(math.fsum(delta) / n, abs=1e-6)
    assert found.delta_p.rms == pytest.approx(math.sqrt(math.fsum(d * d for d in delta) / n), rel=1e-4)
    squares = [d * d for d in delta]
    assert found.delta_p.rms_stderr == pytest.approx(0.5 / found.delta_p.rms * se(squares), rel=1e-2)
    share = sum(map(bool, given_scores.same_top)) / n
    assert found.same_top.value == pytest.approx(share)
    assert found.same_top.stderr == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))
    names = {"p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "median": 0.5, "p10": 0.1, "p5": 0.05, "p1": 0.01,
             "p0_1": 0.001, "max": 1.0, "min": 0.0}  # fmt: skip
    for name, fraction in names.items():
        assert getattr(found.kld, name) == pytest.approx(at(sorted(kld), fraction), rel=1e-3, abs=1e-5), name
        assert getattr(found.delta_p, name) == pytest.approx(at(delta, fraction), rel=1e-3, abs=1e-4), name
    assert found.delta_p.p75 == pytest.approx(at(delta, 0.75), rel=1e-3, abs=1e-4)
    assert found.delta_p.p25 == pytest.approx(at(delta, 0.25), rel=1e-3, abs=1e-4)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50))
def test_percentiles_lie_in_order_between_the_ends(values: list[float]) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    slack = 1e-4 * max(1.0, float(np.abs(ordered).max()))
    points = [percentile(ordered, fraction) for fraction in (0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0)]
    assert all(x <= y + slack for x, y in pairwise(points))
    assert points[0] == ordered[0] and points[-1] == ordered[-1]
    assert ordered[0] <= median(ordered) <= ordered[-1]


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [([1, 2, 3], 0.5, 2), ([1, 2], 0.25, 1.25), ([5], 0.999, 5), ([0, 10], 0.9, 9), ([1, 2, 3, 4, 5], 1.0, 5)],
)
def test_percentiles_by_hand(values: list[float], fraction: float, expected: float) -> None:
    assert percentile(np.array(values, dtype=np.float32), fraction) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("values", "expected"), [([3], 3), ([1, 2], 1.5), ([1, 2, 9], 2), ([1, 2, 4, 9], 3)])
def test_medians_by_hand(values: list[float], expected: float) -> None:
    assert median(np.array(values, dtype=np.float32)) == expected


@pytest.mark.parametrize(("n", "error"), [(1, 0.0), (10, 0.0), (11, math.sqrt(0.25 / 10)), (12, math.sqrt(0.25 / 11))])
def test_ten_values_have_no_standard_error(n: int, error: float) -> None:
    assert mean_and_se(0.5 * n, 0.5 * n, n) == (0.5, pytest.approx(error))


def test_no_variance_is_no_error() -> None:
    assert mean_and_se(20.0, 20.0, 20) == (1.0, 0.0)
    assert mean_and_se(20.0, 19.9999999, 20) == (1.0, 0.0)


@pytest.mark.parametrize(("n", "has_correlation"), [(9, False), (10, False), (11, True)])
def test_correlation_needs_more_than_ten(n: int, has_correlation: bool) -> None:
    found = quality_statistics(scores(3, n))
    assert (found.ppl_cor != 0) is has_correlation
    assert (found.ln_ppl_ratio.stderr > 0) is (n > 10)


@pytest.mark.parametrize("n", [1, 2, 10, 11, 1000])
def test_a_model_against_itself(n: int) -> None:
    same = scores(1, n).nll
    found = quality_statistics(TokenScores(same, same, np.zeros(n), np.ones(n, dtype=bool)))
    assert set(found.kld.model_dump().values()) == {0.0}
    assert found.ppl_ratio.value == 1.0 and found.ln_ppl_ratio.value == 0.0
    assert found.ppl_ratio.stderr == pytest.approx(0.0, abs=1e-6)
    assert set(found.delta_p.model_dump().values()) == {0.0}
    assert (found.same_top.value, found.same_top.stderr) == (1.0, 0.0)
    if n > 10:
        assert found.ppl_cor == pytest.approx(1.0)


def test_perplexity_by_hand() -> None:
    found = perplexity(np.array([1.0, 3.0]))
    assert found.value == pytest.approx(math.exp(2))
    assert found.stderr == pytest.approx(math.exp(2) * 1.0)
    assert perplexity(np.array([2.0])).stderr == 0.0


def test_the_exact_base_is_taken_in_double() -> None:
    given_scores = scores(5, 200)
    exact = given_scores.nll_base.astype(np.float64) + 0.25
    found = exact_base(given_scores.nll, exact)
    assert found.ppl_base.value == pytest.approx(math.exp(exact.mean()))
    assert found.ln_ppl_ratio.value == pytest.approx(given_scores.nll.astype(np.float64).mean() - exact.mean())


def test_nothing_scored_is_no_statistic() -> None:
    none = np.zeros(0, dtype=np.float32)
    with pytest.raises(ValueError, match="no scored tokens"):
        quality_statistics(TokenScores(none, none, np.zeros(0), np.zeros(0, dtype=bool)))
