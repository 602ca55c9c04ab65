"""The compiled row kernels against plain NumPy, over vocabularies of every size and rows of every shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numba import njit, prange

from jobs import kernel
from jobs.kernel import CORRUPT, FINE, NOT_FINITE, ZERO
from tests import reference_rows as reference

FLT_MAX = np.finfo(np.float32).max
N_ROWS = 5
#: What one rounding to f32 may be off by, relatively.
EPS = 2.0**-24
BAD = [np.nan, -np.float32(np.nan), np.inf]
BAD_NAMES = ["nan", "-nan", "+inf"]


@dataclass
class Scored:
    """What a scoring kernel wrote."""

    scores: np.ndarray
    same: np.ndarray
    verdicts: np.ndarray


def scored(function: Any, logits: np.ndarray, base: np.ndarray, targets: np.ndarray) -> Scored:
    n = len(logits)
    out = Scored(np.full((n, 4), np.nan), np.zeros(n, np.bool_), np.full(n, -1, np.int64))
    function(logits, base, targets, out.scores, out.same, out.verdicts)
    return out


def encoded(logits: np.ndarray, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(encoded rows, NLLs, verdicts) by the kernel; what it does not write stays 0xABAB and NaN."""
    n, n_vocab = logits.shape
    rows = np.full((n, reference.row_u16(n_vocab)), 0xABAB, np.uint16)
    nll, verdicts = np.full(n, np.nan), np.full(n, -1, np.int64)
    kernel.encode_rows(logits, np.zeros(n, np.int64) if targets is None else targets, rows, nll, verdicts)
    return rows, nll, verdicts


@dataclass
class Rows:
    """Logits of two models on the same tokens, masked alike."""

    base: np.ndarray
    logits: np.ndarray
    targets: np.ndarray
    masked: np.ndarray

    def __repr__(self) -> str:
        return f"{len(self.base[0])} tokens, {int(self.masked.sum())} masked, first row {self.base[0][:4]}"


@st.composite
def rows(draw: st.DrawFn, *, masks: tuple[float, ...] = (-np.inf, -FLT_MAX)) -> Rows:
    """Rows as models give them, and worse: flat, with ties for the top, with outliers and masks."""
    n_vocab = draw(st.one_of(st.integers(1, 40), st.integers(1, 2000)), label="tokens")
    spread = draw(st.sampled_from([0.0, 1e-6, 0.3, 3.0, 30.0, 1e4]), label="spread")
    noise = draw(st.sampled_from([0.0, 1e-7, 1e-3, 0.3, 5.0]), label="noise")
    shift = draw(st.sampled_from([0.0, -40.0, 1000.0]), label="shift")
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    base = (random.normal(size=(N_ROWS, n_vocab)) * spread + shift).astype(np.float32)
    if draw(st.booleans(), label="coarse"):
        base = np.round(base)  # ties, for the top too
    if draw(st.booleans(), label="outliers"):
        where = random.integers(0, n_vocab, N_ROWS)
        base[np.arange(N_ROWS), where] += random.normal(size=N_ROWS).astype(np.float32) * 1e3
    logits = (base + random.normal(size=base.shape) * noise).astype(np.float32)
    if draw(st.booleans(), label="shuffled ties"):
        logits[:, random.integers(0, n_vocab)] = logits.max(axis=1)
    masked = np.zeros(base.shape, np.bool_)
    if masks and draw(st.booleans(), label="masks"):
        masked = random.random(base.shape) < 0.3
        masked[:, random.integers(0, n_vocab)] = False
        base[masked] = logits[masked] = draw(st.sampled_from(masks), label="mask")
    targets = np.array([random.choice(np.flatnonzero(~row)) for row in masked])
    return Rows(base, logits, targets, masked)


def as_ordered(x: np.ndarray) -> np.ndarray:
    """f32 as integers that count the representable values between two of them."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def level_step(found: reference.Scores) -> np.ndarray:
    """How far a row's level moves where its log sum is rounded to the other side."""
    return np.spacing(np.abs(found.level)).astype(np.float64) + 2.4e-7


# --- the exponential


@njit
def _all(x: Any, out: Any) -> None:
    for i in prange(x.size):
        out[i] = kernel._exp(x[i])


def test_the_exponential_is_within_half_an_ulp() -> None:
    random = np.random.default_rng(5)
    n = 1_000_000
    x = np.concatenate(
        [
            -np.exp(random.uniform(np.log(1e-8), np.log(86.99), n)),
            random.uniform(-87, 0, n),
            # Around the ends of the polynomial's interval.
            -np.log(2) * (np.arange(125)[:, None] + 0.5 + random.normal(size=2000) * 1e-6).ravel(),
            np.array([0.0, -0.0, np.nextafter(np.float32(-87), np.float32(0))]),
        ]
    ).astype(np.float32)
    x = x[(x > -87) & (x <= 0)]
    out = np.empty_like(x)
    _all(x, out)
    true = np.exp(x.astype(np.longdouble))
    ulp = np.spacing(true.astype(np.float32)).astype(np.longdouble)
    assert float((np.abs(out.astype(np.longdouble) - true) / ulp).max()) < 0.51
    assert (out[x == 0] == 1).all()


def test_the_exponential_is_nothing_where_nothing_counts() -> None:
    x = np.array([-87, -87.5, -1e30, -np.inf], np.float32)
    out = np.empty_like(x)
    _all(x, out)
    assert (out == 0).all()


# --- encoding


@given(rows())
@settings(max_examples=250, deadline=None)
def test_encoded_rows_have_the_references_bytes(given_rows: Rows) -> None:
    logits = given_rows.base
    found, nll, verdicts = encoded(logits, given_rows.targets)
    wanted = reference.encode(logits)
    assert (verdicts == FINE).all()
    np.testing.assert_array_equal(found[:, :2], wanted[:, :2], "scale")
    np.testing.assert_array_equal(found[:, 4:], wanted[:, 4:], "levels and padding")
    # The floor hangs on f32(log sum), whose last bit may lie on the edge between two values.
    floors, wanted_floors = reference.decode_floats(found)[1], reference.decode_floats(wanted)[1]
    assert np.abs(as_ordered(floors) - as_ordered(wanted_floors)).max() <= 1 or np.allclose(
        floors, wanted_floors, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(nll, reference.nll(logits, given_rows.targets), rtol=0, atol=2e-7)


@pytest.mark.parametrize("n_vocab", [1, 2, 97, 512, 2000])
def test_nearly_all_rows_are_the_references_to_the_last_bit(n_vocab: int) -> None:
    logits = np.random.default_rng(n_vocab).normal(scale=4, size=(1000, n_vocab)).astype(np.float32)
    found, wanted = encoded(logits)[0], reference.encode(logits)
    assert (found == wanted).all(axis=1).mean() >= 0.99


@given(rows())
@settings(max_examples=60, deadline=None)
def test_nll_alone_is_the_same_nll(given_rows: Rows) -> None:
    n = len(given_rows.base)
    nll, verdicts = np.empty(n), np.empty(n, np.int64)
    kernel.encode_rows(given_rows.base, given_rows.targets, np.empty((n, 0), np.uint16), nll, verdicts)
    np.testing.assert_array_equal(nll, encoded(given_rows.base, given_rows.targets)[1])
    assert (verdicts == FINE).all()


def test_the_nll_of_a_masked_token_is_infinite() -> None:
    logits = np.array([[0, -np.inf, 1]], np.float32)
    assert encoded(logits, np.array([1]))[1][0] == np.inf


@given(rows())
@settings(max_examples=100, deadline=None)
def test_what_was_encoded_is_a_distribution(given_rows: Rows) -> None:
    n_vocab = given_rows.base.shape[1]
    found = encoded(given_rows.base)[0]
    verdicts = np.full(N_ROWS, -1, np.int64)
    kernel.check_encoded(found, n_vocab, verdicts)
    assert (verdicts == FINE).all()
    assert np.abs(reference.mass(found, n_vocab) - 1).max() < 0.02 + n_vocab * 1.2e-7


# --- scoring against a base file's rows


@given(rows())
@settings(max_examples=250, deadline=None)
def test_clipped_scores_are_the_references(given_rows: Rows) -> None:
    base = reference.encode(given_rows.base)
    found = scored(kernel.score_clipped, given_rows.logits, base, given_rows.targets)
    wanted = reference.score_clipped(given_rows.logits, base, given_rows.targets)
    assert (found.verdicts == FINE).all()
    np.testing.assert_array_equal(found.same, wanted.same)
    np.testing.assert_array_equal(found.scores[:, 1], wanted.nll_base)
    np.testing.assert_allclose(found.scores[:, 3], wanted.p_top, rtol=1e-15)
    step = level_step(wanted)
    assert (np.abs(found.scores[:, 0] - wanted.nll) <= step).all()
    assert (np.abs(found.scores[:, 2] - wanted.kld) <= 1.1 * step + 4 * EPS * wanted.weights).all()


def test_nearly_all_clipped_scores_are_the_references_to_the_last_bit() -> None:
    random = np.random.default_rng(8)
    base = random.normal(scale=4, size=(2000, 300)).astype(np.float32)
    logits = (base + random.normal(size=base.shape) * 0.2).astype(np.float32)
    targets = random.integers(0, 300, 2000)
    rows_ = reference.encode(base)
    found = scored(kernel.score_clipped, logits, rows_, targets)
    wanted = reference.score_clipped(logits, rows_, targets)
    assert (found.scores[:, 0] == wanted.nll).mean() >= 0.99
    assert (np.abs(found.scores[:, 2] - wanted.kld) < 1e-8).mean() >= 0.99


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.floats(0.1, 8))
@settings(max_examples=100, deadline=None)
def test_clipped_kld_is_the_definition_over_the_decoded_base(seed: int, n_vocab: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    base = (random.normal(size=(6, n_vocab)) * spread).astype(np.float32)
    logits = (base + random.normal(size=base.shape) * 0.3).astype(np.float32)
    targets = random.integers(0, n_vocab, 6)
    found = scored(kernel.score_clipped, logits, encoded(base)[0], targets)
    log_p = reference.decode(reference.encode(base), n_vocab).astype(np.float64)
    x = logits.astype(np.float64)
    log_q = x - x.max(axis=1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
    terms = np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0)
    np.testing.assert_allclose(found.scores[:, 2], terms.sum(axis=1), atol=5e-6 * max(1, spread))
    np.testing.assert_allclose(found.scores[:, 0], -log_q[np.arange(6), targets], atol=2e-5 * max(1, spread))


def test_levels_that_decode_to_one_value_tie_for_the_top() -> None:
    """With a floor far below and a tiny scale neighbouring levels are one f32: the first of them is the favourite."""
    base = np.full((1, 8), -16.0, np.float32)
    base[0, 2:4] = 0
    row = reference.encode(base)
    row[0, 4 + 2], row[0, 4 + 3] = 65534, 65535
    floats = row[:, :4].view(np.float32)
    floats[0, 0] = 1e-9  # decoded values differ by less than a step of f32 at the floor
    floats[0, 1] = -np.float32(np.log(8))
    logits = np.zeros((1, 8), np.float32)
    for favourite in (0, 2, 3):
        logits[:] = 0
        logits[0, favourite] = 1
        targets = np.zeros(1, np.int64)
        found = scored(kernel.score_clipped, logits, row, targets)
        assert found.verdicts[0] == FINE
        assert found.same[0] == reference.score_clipped(logits, row, targets).same[0]


# --- scoring against the base's own logits


@given(rows())
@settings(max_examples=250, deadline=None)
@example(Rows(*(np.array([[0.0, 4.0]], np.float32) for _ in "bl"), np.array([0]), np.zeros((1, 2), np.bool_)))
def test_unclipped_scores_are_the_definitions(given_rows: Rows) -> None:
    found = scored(kernel.score_unclipped, given_rows.logits, given_rows.base, given_rows.targets)
    wanted = reference.score_unclipped(given_rows.logits, given_rows.base, given_rows.targets)
    assert (found.verdicts == FINE).all()
    np.testing.assert_array_equal(found.same, wanted.same)
    size = 1 + wanted.weights
    assert (np.abs(found.scores[:, 2] - wanted.kld) <= 2e-9 * size).all()
    np.testing.assert_allclose(found.scores[:, 0], wanted.nll, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(found.scores[:, 1], wanted.nll_base, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(found.scores[:, 3], wanted.p_top, rtol=1e-7)


@given(rows())
@settings(max_examples=150, deadline=None)
def test_unclipped_kld_is_never_less_than_nothing(given_rows: Rows) -> None:
    found = scored(kernel.score_unclipped, given_rows.logits, given_rows.base, given_rows.targets)
    # But for a rounding of the logits' own size: rows shifted by 1000 are equal to 1e-13 of that.
    largest = np.abs(given_rows.base).max(axis=1, where=~given_rows.masked, initial=0)
    assert (found.scores[:, 2] >= -1e-12 * (1 + largest)).all()


@given(rows())
@settings(max_examples=150, deadline=None)
def test_unclipped_kld_of_identical_rows_is_exactly_nothing(given_rows: Rows) -> None:
    found = scored(kernel.score_unclipped, given_rows.base.copy(), given_rows.base, given_rows.targets)
    assert (found.verdicts == FINE).all()
    assert (found.scores[:, 2] == 0).all() and found.same.all()
    np.testing.assert_array_equal(found.scores[:, 0], found.scores[:, 1])


@given(rows(), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_a_shift_of_all_logits_changes_nothing(given_rows: Rows, shift: float) -> None:
    # In steps of 1/64, where a shift by whole numbers is exact in f32.
    base = np.where(given_rows.masked, given_rows.base, np.rint(np.clip(given_rows.base, -1000, 1000) * 64) / 64)
    base = base.astype(np.float32)
    moved = (base + np.float32(round(shift))).astype(np.float32)
    found = scored(kernel.score_unclipped, moved, base, given_rows.targets)
    assert np.abs(found.scores[:, 2]).max() <= 1e-9


# --- masks


@given(rows(masks=(-np.inf,)))
@settings(max_examples=120, deadline=None)
def test_masked_entries_contribute_nothing(given_rows: Rows) -> None:
    """Rows without the masked entries give the same scores (one mask is kept: it sets the encoding's floor)."""
    assume(given_rows.masked.any(axis=1).all())
    for k in range(N_ROWS):
        masked = given_rows.masked[k]
        keep = ~masked
        keep[np.flatnonzero(masked)[0]] = True
        target = np.array([int(keep[: given_rows.targets[k]].sum())])
        at = slice(k, k + 1)
        base, logits = given_rows.base[at][:, keep], given_rows.logits[at][:, keep]
        whole = scored(kernel.score_unclipped, given_rows.logits[at], given_rows.base[at], given_rows.targets[at])
        less = scored(kernel.score_unclipped, logits, base, target)
        np.testing.assert_allclose(whole.scores, less.scores, rtol=1e-12, atol=1e-12)
        assert whole.same[0] == less.same[0]
        whole = scored(
            kernel.score_clipped, given_rows.logits[at], reference.encode(given_rows.base[at]), given_rows.targets[at]
        )
        less = scored(kernel.score_clipped, logits, reference.encode(base), target)
        step = np.spacing(np.abs(logits.max())) + 2.4e-7
        np.testing.assert_allclose(whole.scores, less.scores, rtol=1e-12, atol=2 * step)


def test_a_mask_of_the_variant_alone_is_fine_where_the_base_has_no_mass() -> None:
    base = np.array([[0, 1, -2000.0, -np.inf]], np.float32)
    logits = np.array([[0.5, 1, -np.inf, -np.inf]], np.float32)
    found = scored(kernel.score_unclipped, logits, base, np.zeros(1, np.int64))
    assert found.verdicts[0] == FINE and np.isfinite(found.scores).all()
    # And the other way round: the base forbids what the variant allows.
    found = scored(kernel.score_unclipped, base, logits, np.zeros(1, np.int64))
    assert found.verdicts[0] == FINE and np.isfinite(found.scores).all()
    logits[0, 2] = -5.0
    wanted = reference.score_unclipped(logits, base, np.zeros(1, np.int64)).kld
    found = scored(kernel.score_unclipped, logits, base, np.zeros(1, np.int64))
    np.testing.assert_allclose(found.scores[:, 2], wanted, atol=1e-9)


# --- verdicts


@pytest.mark.parametrize("bad", BAD, ids=BAD_NAMES)
@pytest.mark.parametrize("n_vocab", [1, 2, 7, 64, 1001])
def test_nan_and_infinity_are_not_finite(bad: float, n_vocab: int) -> None:
    random = np.random.default_rng(n_vocab)
    good = random.normal(size=(4, n_vocab)).astype(np.float32)
    for place in {0, n_vocab // 2, n_vocab - 1}:
        logits = good.copy()
        logits[2, place] = bad
        wanted = [FINE, FINE, NOT_FINITE, FINE]
        targets = np.zeros(4, np.int64)
        assert encoded(logits)[2].tolist() == wanted
        assert scored(kernel.score_clipped, logits, reference.encode(good), targets).verdicts.tolist() == wanted
        assert scored(kernel.score_unclipped, logits, good, targets).verdicts.tolist() == wanted
        # A broken base is not the variant's fault.
        swapped = scored(kernel.score_unclipped, good, logits, targets).verdicts.tolist()
        assert swapped == [FINE, FINE, CORRUPT, FINE]


def test_a_nan_of_either_sign_is_seen() -> None:
    """Signs and payloads of NaN differ between machines; none of them may slip through as a very large number."""
    for bits in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF):
        logits = np.zeros((1, 9), np.float32)
        logits.view(np.uint32)[0, 4] = bits
        assert np.isnan(logits[0, 4])
        assert encoded(logits)[2].tolist() == [NOT_FINITE], hex(bits)
        logits[0, :4] = -np.inf
        logits[0, 5:] = -np.inf
        assert encoded(logits)[2].tolist() == [NOT_FINITE], hex(bits)


@pytest.mark.parametrize("n_vocab", [1, 6, 333])
def test_nothing_but_masks_is_not_finite(n_vocab: int) -> None:
    logits = np.full((1, n_vocab), -np.inf, np.float32)
    good = np.zeros((1, n_vocab), np.float32)
    targets = np.zeros(1, np.int64)
    assert encoded(logits)[2].tolist() == [NOT_FINITE]
    assert scored(kernel.score_clipped, logits, reference.encode(good), targets).verdicts.tolist() == [NOT_FINITE]
    assert scored(kernel.score_unclipped, logits, good, targets).verdicts.tolist() == [NOT_FINITE]
    assert scored(kernel.score_unclipped, good, logits, targets).verdicts.tolist() == [CORRUPT]


def test_a_bad_row_writes_nothing_and_the_next_is_scored() -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 1] = np.nan
    found, nll, verdicts = encoded(logits)
    assert (found[1] == 0xABAB).all() and np.isnan(nll[1])
    assert verdicts.tolist() == [FINE, NOT_FINITE, FINE]
    assert nll[2] == pytest.approx(np.log(5))


def test_base_mass_without_variant_mass_is_zero_probability() -> None:
    base = np.zeros((2, 4), np.float32)
    logits = base.copy()
    logits[1, 2] = -np.inf
    targets = np.zeros(2, np.int64)
    assert scored(kernel.score_clipped, logits, reference.encode(base), targets).verdicts.tolist() == [FINE, ZERO]
    assert scored(kernel.score_unclipped, logits, base, targets).verdicts.tolist() == [FINE, ZERO]


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, v) for v in (-1e-9, 16.1 / 65535, 1.0, np.nan, -np.nan, np.inf, -np.inf)]
    + [(1, v) for v in (0.01, 5.0, -23.0, np.nan, -np.nan, np.inf, -np.inf)],
)
def test_a_scale_or_floor_that_cannot_be_is_corrupt(place: int, value: float) -> None:
    random = np.random.default_rng(4)
    logits = random.normal(scale=3, size=(3, 64)).astype(np.float32)
    rows_ = reference.encode(logits)
    rows_[1, :4].view(np.float32)[place] = value
    assert_corrupt(logits, rows_)


def assert_corrupt(logits: np.ndarray, rows_: np.ndarray) -> None:
    """Row 1 of three is corrupt, to both kernels that read encoded rows."""
    verdicts = np.full(3, -1, np.int64)
    kernel.check_encoded(rows_, logits.shape[1], verdicts)
    assert verdicts.tolist() == [FINE, CORRUPT, FINE]
    found = scored(kernel.score_clipped, logits, rows_, np.zeros(3, np.int64))
    assert found.verdicts.tolist() == [FINE, CORRUPT, FINE]


@pytest.mark.parametrize("level", [0, 65535])
def test_levels_that_do_not_add_up_to_one_are_corrupt(level: int) -> None:
    logits = np.random.default_rng(1).normal(scale=3, size=(3, 64)).astype(np.float32)
    rows_ = reference.encode(logits)
    rows_[1, 4 : 4 + 64] = level
    assert_corrupt(logits, rows_)


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), st.sampled_from([0, 1]))
@settings(max_examples=60, deadline=None)
def test_a_flip_in_a_rows_floats_is_seen_where_it_matters(seed: int, bit: int, place: int) -> None:
    logits = np.random.default_rng(seed).normal(scale=3, size=(1, 64)).astype(np.float32)
    rows_ = reference.encode(logits)
    before = reference.decode(rows_, 64)
    rows_[0, :4].view(np.uint32)[place] ^= np.uint32(1 << bit)
    with np.errstate(all="ignore"):
        moved = np.abs(np.nan_to_num(reference.decode(rows_, 64), nan=1e30) - before)[before > -5].max()
    verdicts = np.full(1, -1, np.int64)
    kernel.check_encoded(rows_, 64, verdicts)
    if moved > 0.5:
        assert verdicts[0] == CORRUPT


# --- what a head's raw output becomes


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 400),
    st.sampled_from([1.0, 0.0625, -2.5, 1 / 6]),
    st.booleans(),
    st.sampled_from([0.0, 7.0, 30.0]),
    st.sampled_from([0.01, 3.0, 80.0]),
)
@settings(max_examples=150, deadline=None)
def test_head_rules(seed: int, n_vocab: int, scale: float, biased: bool, softcap: float, spread: float) -> None:
    random = np.random.default_rng(seed)
    raw = (random.normal(size=(4, n_vocab)) * spread).astype(np.float32)
    bias = (random.normal(size=n_vocab) * 2).astype(np.float32) if biased else None
    wanted = reference.head_rule(raw, scale=scale, bias=bias, softcap=softcap)
    found = raw.copy()
    kernel.apply_head_rule(
        found, np.float32(scale), np.zeros(0, np.float32) if bias is None else bias, np.float32(softcap)
    )
    largest = np.abs(raw).max() * abs(scale) + 10
    np.testing.assert_allclose(found, wanted, rtol=0, atol=largest * 2 * EPS + softcap * 4 * EPS)
    if scale == 1 and not biased and not softcap:
        np.testing.assert_array_equal(found, raw)


def test_masks_and_nan_survive_a_head_rule() -> None:
    """A rule must not make a broken row look whole."""
    for softcap in (0.0, 30.0):
        raw = np.array([[1.0, np.nan, -np.float32(np.nan), 2.0]], np.float32)
        kernel.apply_head_rule(raw, np.float32(0.5), np.zeros(4, np.float32), np.float32(softcap))
        assert np.isnan(raw[0]).tolist() == [False, True, True, False], f"softcap {softcap}"
    raw = np.array([[1.0, 2.0]], np.float32)
    kernel.apply_head_rule(raw, np.float32(1), np.array([0, -np.inf], np.float32), np.float32(0))
    assert raw.tolist() == [[1.0, -np.inf]]
