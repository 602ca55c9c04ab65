"""llama-perplexity's base file: layout, encoding, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BaselineError
from jobs import kernel
from jobs.baseline.checksums import row_sums
from jobs.baseline.kld_file import KldReader, KldShape, header_bytes
from tests import reference_rows as reference


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
    n, n_vocab = logits.shape
    out = np.empty((n, KldShape(8, n_vocab, 1).row_u16), dtype=np.uint16)
    kernel.encode_rows(logits, np.zeros(n, np.int64), out, np.empty(n), np.empty(n, np.int64))
    return out


def check(rows: np.ndarray, n_vocab: int) -> list[int]:
    verdicts = np.full(len(rows), -1, np.int64)
    kernel.check_encoded(rows, n_vocab, verdicts)
    return verdicts.tolist()


logit_rows = st.integers(2, 40).flatmap(
    lambda n: st.lists(st.lists(st.floats(-60, 60, width=32), min_size=n, max_size=n), min_size=1, max_size=4).map(
        # Below that the tool divides by a scale that is no normal number, and its own integers mean nothing.
        lambda rows: np.where(np.abs(rows) < 1e-20, 0, rows).astype(np.float32)
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
    decoded = reference.decode(rows, logits.shape[1])
    maxima, sums = reference.log_sum_exp(logits)
    true = logits.astype(np.float64) - maxima[:, None] - sums[:, None]
    inside = logits > maxima[:, None] - 15.99
    error = np.abs(decoded - true)[inside]
    # Half a step of at most 16/65535, plus f32 rounding of values up to 60.
    assert error.max(initial=0) <= 16 / 65535 / 2 + 2e-5
    assert not any(check(rows, logits.shape[1]))


def test_odd_vocabulary_is_padded_with_zero() -> None:
    rows = encode(np.array([[1.0, 2.0, 3.0]], dtype=np.float32))
    assert rows.shape == (1, 8)
    assert rows[0, -1] == 0


def test_masked_entries_are_the_floor() -> None:
    logits = np.array([[0.0, -np.inf, 1.0, np.finfo(np.float32).min]], dtype=np.float32)
    rows = encode(logits)
    assert rows[0, 5] == 0 and rows[0, 7] == 0
    assert check(rows, 4) == [kernel.FINE]


@pytest.mark.parametrize(("n_vocab", "bytes_"), [(151_936, 44_945_039_860), (248_320, 73_455_427_060)])
def test_size_of_a_big_file_is_the_documented_one(n_vocab: int, bytes_: int) -> None:
    assert KldShape(512, n_vocab, 580).file_bytes == bytes_


def write_file(path: Path, *, n_ctx: int = 8, n_vocab: int = 5, n_chunks: int = 2) -> KldShape:
    shape = KldShape(n_ctx, n_vocab, n_chunks)
    random = np.random.default_rng(7)
    tokens = random.integers(0, n_vocab, (n_chunks, n_ctx), dtype=np.int32)
    logits = random.normal(size=(n_chunks * shape.rows_per_chunk, n_vocab)).astype(np.float32)
    with path.open("wb") as file:
        file.write(header_bytes(shape, tokens))
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


def test_rows_are_read_from_anywhere_into_the_callers_buffer(tmp_path: Path) -> None:
    shape = write_file(tmp_path / "a.kld", n_ctx=32)
    reader = KldReader(tmp_path / "a.kld")
    whole = reader.chunk(1)
    out = np.zeros((shape.rows_per_chunk, shape.row_u16), np.uint16)
    for row in range(shape.rows_per_chunk):
        reader.read(1, row, out[row : row + 1])
    np.testing.assert_array_equal(out, whole)
    reader.read(1, 3, out[:4])
    np.testing.assert_array_equal(out[:4], whole[3:7])
    assert (reader.chunk(0) != whole).any()
    reader.prefetch(range(2))
    reader.prefetch(range(2, 2))
    reader.close()
    reader.close()


def test_a_file_cut_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "a.kld")
    reader = KldReader(tmp_path / "a.kld")
    with (tmp_path / "a.kld").open("r+b") as file:
        file.truncate(reader.shape.file_bytes - 1)
    reader.chunk(0)
    with pytest.raises(BaselineError, match="ends within chunk 1"):
        reader.chunk(1)


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_row_sums_add_up_whatever_the_order_and_see_every_bit(n: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(0, 2**16, (n, width), dtype=np.uint16)
    total = row_sums(rows, 0)
    cut = int(random.integers(0, n + 1))
    assert (row_sums(rows[cut:], cut) + row_sums(rows[:cut], 0)) % 2**64 == total
    flipped = rows.copy()
    flipped[random.integers(0, n), random.integers(0, width)] ^= np.uint16(1 << int(random.integers(0, 16)))
    assert row_sums(flipped, 0) != total
    swapped = rows[::-1].copy()
    assert (row_sums(swapped, 0) == total) == np.array_equal(swapped, rows)


def test_a_row_that_is_no_distribution_is_refused() -> None:
    rows = encode(np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32))
    rows[1, 4:40] = 65535
    assert check(rows, 64) == [kernel.FINE, kernel.CORRUPT, kernel.FINE]
    rows[1, :2] = np.array([np.nan], dtype=np.float32).view(np.uint16)
    assert check(rows, 64) == [kernel.FINE, kernel.CORRUPT, kernel.FINE]


def test_comparing_rows_with_themselves_gives_nothing() -> None:
    logits = np.random.default_rng(2).normal(scale=4, size=(50, 301)).astype(np.float32)
    targets = np.arange(50, dtype=np.int64)
    rows = np.empty((50, KldShape(8, 301, 1).row_u16), dtype=np.uint16)
    exact, verdicts = np.empty(50), np.empty(50, np.int64)
    kernel.encode_rows(logits, targets, rows, exact, verdicts)
    scores, top = np.empty((50, 4)), np.empty(50, np.bool_)
    kernel.score_clipped(logits, rows, targets, scores, top, verdicts)
    assert not verdicts.any()
    assert np.abs(scores[:, 2]).max() < 2e-4
    assert top.all()
    np.testing.assert_allclose(scores[:, 0], exact, atol=2e-5)
