"""llama-perplexity's base file: layout, encoding, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BaselineError
from jobs.baseline.kld_file import KldReader, KldShape, decode_floats, write_header
from jobs.divergence import check_rows, compare_rows, log_sum_exp, record_rows


def tool_row(logits: np.ndarray) -> bytes:
    """One row, written as log_softmax() in perplexity.cpp reads: a plain transcription, entry by entry."""
    f = np.float32
    highest, lowest = f(logits.max()), f(max(logits.min(), f(logits.max() - f(16))))
    total = float(sum(float(f(np.exp(np.float64(f(x - highest))))) for x in logits))
    log_sum = f(np.log(total))
    scale = f(f(highest - lowest) / f(65535))
    out = struct.pack("<ff", scale, f(f(lowest - highest) - log_sum))
    inverse = f(f(1) / scale) if scale else f(0)
    for x in logits:
        q = int(np.rint(f(inverse * f(x - lowest)))) if scale and x > lowest else 0
        out += struct.pack("<H", q)
    return out + (b"\0\0" if len(logits) % 2 else b"")


def encode(logits: np.ndarray) -> np.ndarray:
    shape = KldShape(8, logits.shape[1], 1)
    out = np.empty((len(logits), shape.row_u16), dtype=np.uint16)
    record_rows(logits, np.zeros(len(logits), dtype=np.int64), out, np.empty(len(logits)))
    return out


logit_rows = st.integers(2, 40).flatmap(
    lambda n: st.lists(st.lists(st.floats(-60, 60, width=32), min_size=n, max_size=n), min_size=1, max_size=4).map(
        lambda rows: np.array(rows, dtype=np.float32)
    )
)


@given(logit_rows)
@settings(max_examples=300, deadline=None)
def test_rows_have_the_tools_bytes(logits: np.ndarray) -> None:
    for row, found in zip(logits, encode(logits), strict=True):
        assert found.tobytes() == tool_row(row)


@given(logit_rows)
@settings(max_examples=200, deadline=None)
def test_decoding_is_within_half_a_step_inside_the_window(logits: np.ndarray) -> None:
    rows = encode(logits)
    scale, lowest = decode_floats(rows)
    decoded = rows[:, 4 : 4 + logits.shape[1]].astype(np.float32) * scale[:, None] + lowest[:, None]
    maxima, sums = log_sum_exp(logits)
    true = logits.astype(np.float64) - maxima[:, None] - sums[:, None]
    inside = logits > maxima[:, None] - 15.99
    error = np.abs(decoded - true)[inside]
    # Half a step of at most 16/65535, plus f32 rounding of values up to 60.
    assert error.max(initial=0) <= 16 / 65535 / 2 + 2e-5
    check_rows(rows, logits.shape[1])


def test_odd_vocabulary_is_padded_with_zero() -> None:
    rows = encode(np.array([[1.0, 2.0, 3.0]], dtype=np.float32))
    assert rows.shape == (1, 8)
    assert rows[0, -1] == 0


def test_masked_entries_are_the_floor() -> None:
    logits = np.array([[0.0, -np.inf, 1.0, np.finfo(np.float32).min]], dtype=np.float32)
    rows = encode(logits)
    assert rows[0, 5] == 0 and rows[0, 7] == 0
    check_rows(rows, 4)


@pytest.mark.parametrize(("n_vocab", "bytes_"), [(151_936, 44_945_039_860), (248_320, 73_455_427_060)])
def test_size_of_a_big_file_is_the_documented_one(n_vocab: int, bytes_: int) -> None:
    assert KldShape(512, n_vocab, 580).file_bytes == bytes_


def write_file(path: Path, *, n_ctx: int = 8, n_vocab: int = 5, n_chunks: int = 2) -> KldShape:
    shape = KldShape(n_ctx, n_vocab, n_chunks)
    random = np.random.default_rng(7)
    tokens = random.integers(0, n_vocab, (n_chunks, n_ctx), dtype=np.int32)
    logits = random.normal(size=(n_chunks * shape.rows_per_chunk, n_vocab)).astype(np.float32)
    with path.open("wb") as file:
        write_header(file, shape, tokens)
        file.write(encode(logits).tobytes())
    return shape


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    shape = write_file(tmp_path / "a.kld")
    reader = KldReader(tmp_path / "a.kld")
    assert reader.shape == shape
    assert reader.tokens.shape == (2, 8)
    assert reader.chunk(1).shape == (shape.rows_per_chunk, shape.row_u16)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[:-1], "promises"),
        (lambda b: b + b"\0", "promises"),
        (lambda b: b[:12], "too short a corpus"),
        (lambda b: b"_logitz_" + b[8:], "not a llama-perplexity base file"),
        (lambda b: b[:8] + struct.pack("<i", -3) + b[12:], "can't be"),
        (lambda b: b[:20] + struct.pack("<i", 99) + b[24:], "outside its vocabulary"),
        (lambda b: b"", "not a llama-perplexity base file"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, says: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.kld"
    write_file(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BaselineError, match=says):
        KldReader(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="does not exist"):
        KldReader(tmp_path / "nothing.kld")


def test_a_row_that_is_no_distribution_is_refused() -> None:
    rows = encode(np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32))
    rows[1, 4:40] = 65535
    with pytest.raises(BaselineError, match="add up to one"):
        check_rows(rows, 64)
    rows[1, :2] = np.array([np.nan], dtype=np.float32).view(np.uint16)
    with pytest.raises(BaselineError, match="scale or floor"):
        check_rows(rows, 64)


def test_comparing_rows_with_themselves_gives_nothing() -> None:
    logits = np.random.default_rng(2).normal(scale=4, size=(50, 301)).astype(np.float32)
    targets = np.arange(50, dtype=np.int64)
    rows = np.empty((50, KldShape(8, 301, 1).row_u16), dtype=np.uint16)
    exact = np.empty(50)
    record_rows(logits, targets, rows, exact)
    nll, base = np.empty(50, np.float32), np.empty(50, np.float32)
    kld, top = np.empty(50), np.empty(50, np.bool_)
    compare_rows(logits, targets, rows, nll=nll, nll_base=base, kld=kld, same_top=top, check_mass=True)
    assert np.abs(kld).max() < 2e-4
    assert top.all()
    np.testing.assert_allclose(nll, exact, atol=2e-5)
