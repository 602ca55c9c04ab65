"""KL divergence of rows against a plain double-precision definition; and what counts as INVALID."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CorpusError, NonFiniteLogitsError, SettingsError
from jobs.baseline.kld_file import KldShape, decode_floats
from jobs.decode import batch_shape, chunk_tokens, groups
from jobs.divergence import blocks, compare_rows, log_sum_exp, record_rows


def compare(base: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    n, n_vocab = logits.shape
    rows = np.empty((n, KldShape(8, n_vocab, 1).row_u16), dtype=np.uint16)
    record_rows(base, targets, rows, np.empty(n))
    nll, nll_base = np.empty(n, np.float32), np.empty(n, np.float32)
    kld, top = np.empty(n), np.empty(n, np.bool_)
    compare_rows(logits, targets, rows, nll=nll, nll_base=nll_base, kld=kld, same_top=top, check_mass=True)
    return rows, nll, nll_base, kld, top


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.floats(0.1, 8))
@settings(max_examples=150, deadline=None)
def test_kld_is_the_definition_over_the_decoded_base(seed: int, n_vocab: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    base = (random.normal(size=(6, n_vocab)) * spread).astype(np.float32)
    logits = (base + random.normal(size=base.shape) * 0.3).astype(np.float32)
    targets = random.integers(0, n_vocab, 6)
    rows, nll, nll_base, kld, top = compare(base, logits, targets)
    scale, lowest = (x.astype(np.float64) for x in decode_floats(rows))
    log_p = rows[:, 4 : 4 + n_vocab].astype(np.float64) * scale[:, None] + lowest[:, None]
    x = logits.astype(np.float64)
    log_q = x - x.max(axis=1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
    terms = np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0)
    np.testing.assert_allclose(kld, terms.sum(axis=1), atol=5e-6 * max(1, spread))
    np.testing.assert_allclose(nll, -log_q[np.arange(6), targets], atol=2e-5 * max(1, spread))
    np.testing.assert_allclose(nll_base, -log_p[np.arange(6), targets], atol=2e-5 * max(1, spread))
    assert (top == (logits.argmax(1) == log_p.argmax(1))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_invalid(bad: float) -> None:
    logits = np.zeros((4, 8), dtype=np.float32)
    logits[2, 3] = bad
    with pytest.raises(NonFiniteLogitsError, match="INVALID: 1 of 4"):
        log_sum_exp(logits)


def test_single_minus_inf_entries_are_masks() -> None:
    base = np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32)
    base[:, 5] = -np.inf
    *_, kld, top = compare(base, base.copy(), np.zeros(2, dtype=np.int64))
    assert np.isfinite(kld).all() and top.all()


def test_a_variant_that_excludes_likely_tokens_is_invalid() -> None:
    base = np.zeros((1, 4), dtype=np.float32)
    logits = base.copy()
    logits[0, 2] = -np.inf
    with pytest.raises(NonFiniteLogitsError, match="probability zero"):
        compare(base, logits, np.zeros(1, dtype=np.int64))


@given(st.integers(0, 5000), st.integers(1, 300_000))
def test_blocks_cover_every_row_once(n_rows: int, n_vocab: int) -> None:
    covered = [i for part in blocks(n_rows, n_vocab) for i in range(part.start, part.stop)]
    assert covered == list(range(n_rows))


@given(st.integers(1, 50), st.integers(1, 9))
def test_groups_cover_every_chunk_once(n_chunks: int, n_seq: int) -> None:
    found = [list(group) for group in groups(n_chunks, n_seq)]
    assert [i for group in found for i in group] == list(range(n_chunks))
    assert all(len(group) <= n_seq for group in found)


def test_packing_is_llama_perplexitys() -> None:
    assert batch_shape(n_ctx=512, n_batch=2048, n_ubatch=512).n_seq == 4
    assert batch_shape(n_ctx=4096, n_batch=2048, n_ubatch=512).n_seq == 1
    assert batch_shape(n_ctx=4096, n_batch=2048, n_ubatch=512).n_batch == 2048
    with pytest.raises(SettingsError, match="multiple"):
        batch_shape(n_ctx=600, n_batch=2048, n_ubatch=512)


def test_chunks_drop_the_tail_and_need_two() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    assert chunk_tokens(tokens, n_ctx=300, chunks=-1).shape == (3, 300)
    assert chunk_tokens(tokens, n_ctx=300, chunks=2).shape == (2, 300)
    with pytest.raises(CorpusError, match="at least 1200"):
        chunk_tokens(tokens, n_ctx=600, chunks=-1)
    with pytest.raises(SettingsError, match="0 chunks"):
        chunk_tokens(tokens, n_ctx=300, chunks=0)
