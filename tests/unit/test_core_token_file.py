"""The token file: what goes in comes out, equal data is equal bytes, and no damage gets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core import token_file
from core.canonical import sha256_file
from core.errors import InputError, StorageError, TokenFileError
from core.token_file import TokenFile, TokenMeta, read_tokens, write_tokens

ARRAYS = ("token", "nll", "nll_base", "kld", "p_top_base", "same_top")


def meta(**changes: Any) -> TokenMeta:
    known: dict[str, Any] = {
        "model": "Model-Q4_K_M.gguf",
        "model_sha256": "a" * 64,
        "baseline_sha256": "b" * 64,
        "reference_sha256": "c" * 64,
        "protocol": {"n_ctx": 16, "type_k": "f16", "fingerprint": "d" * 64},
        "scoring": "llama-cpp",
        "environment": "e" * 64,
    }
    return TokenMeta(**(known | changes))


def tokens(seed: int = 0, n_chunks: int = 3, rows: int = 7, **changes: Any) -> TokenFile:
    rng = np.random.default_rng(seed)
    shape = (n_chunks, rows)
    base = rng.gamma(1.5, 1.5, shape)
    return TokenFile.of_chunks(
        meta(**changes),
        rng.integers(0, 150_000, (n_chunks, 2 * rows + 2)),
        nll=(base + rng.normal(0.01, 0.2, shape)).astype(np.float32),
        nll_base=base.astype(np.float32),
        kld=rng.gamma(0.3, 0.05, shape),
        p_top_base=rng.random(shape).astype(np.float32),
        same_top=rng.random(shape) < 0.95,
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 30), st.integers(1, 9), st.integers(1, 30), st.text(max_size=20))
@example(1, 1, 1, "x\udcff\nquantcard-tokens sha256 " + "0" * 64)
def test_round_trip_and_equal_bytes(tmp_path: Path, seed: int, n_chunks: int, rows: int, name: str) -> None:
    given_tokens = tokens(seed, n_chunks, rows, model=name)
    digest = write_tokens(tmp_path / "a.parquet", given_tokens)
    found = read_tokens(tmp_path / "a.parquet")
    assert (found.meta, found.first) == (given_tokens.meta, given_tokens.first)
    assert (found.n_chunks, found.rows_per_chunk) == (n_chunks, rows)
    for field in ARRAYS:
        ours, theirs = getattr(given_tokens, field), getattr(found, field)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), field
    assert found.kld.dtype == np.float32
    assert write_tokens(tmp_path / "b.parquet", found) == digest == sha256_file(tmp_path / "b.parquet")


def test_positions_are_those_of_the_second_half() -> None:
    chunks = np.arange(32).reshape(2, 16)
    zeros = np.zeros((2, 7), dtype=np.float32)
    found = TokenFile.of_chunks(
        meta(), chunks, nll=zeros, nll_base=zeros, kld=zeros, p_top_base=zeros, same_top=zeros == 0
    )
    assert found.first == 8
    assert found.token.tolist() == [list(range(9, 16)), list(range(25, 32))]


def test_anyone_can_read_it(tmp_path: Path) -> None:
    given_tokens = tokens(5, 2, 7)
    write_tokens(tmp_path / "a.parquet", given_tokens)
    rows = duckdb.sql(f"select * from '{tmp_path / 'a.parquet'}'").fetchall()
    assert [row[:3] for row in rows] == [
        (chunk, 8 + row, int(given_tokens.token[chunk, row])) for chunk in range(2) for row in range(7)
    ]
    assert [row[5] for row in rows] == given_tokens.kld.ravel().tolist()
    file = pq.ParquetFile(tmp_path / "a.parquet")
    metadata = file.metadata.metadata
    assert (metadata[b"format"], metadata[b"version"]) == (b"quantcard-tokens", b"1")
    assert json.loads(metadata[b"meta"]) == given_tokens.meta.model_dump(mode="json")
    assert {file.metadata.row_group(0).column(i).compression for i in range(8)} == {"ZSTD"}


def test_it_is_small(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a.parquet", tokens(5, 60, 255))
    assert (tmp_path / "a.parquet").stat().st_size < 20 * 60 * 255


def refused(path: Path) -> str:
    with pytest.raises(TokenFileError) as caught:
        read_tokens(path)
    assert isinstance(caught.value, InputError) and caught.value.exit_code == 3
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tokens") / "a.parquet"
    write_tokens(path, tokens(9, 2, 3))
    return path.read_bytes()


def test_no_flipped_bit_gets_through(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "_decode", lambda *_: pytest.fail("damage got as far as the parquet library"))
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        (tmp_path / "a.parquet").write_bytes(damaged)
        assert str(tmp_path / "a.parquet") in refused(tmp_path / "a.parquet")


def test_no_truncated_file_gets_through(whole: bytes, tmp_path: Path) -> None:
    for length in range(len(whole)):
        (tmp_path / "a.parquet").write_bytes(whole[:length])
        refused(tmp_path / "a.parquet")


def test_what_is_said_of_files_that_are_none(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert "no token file" in refused(path)
    path.write_bytes(b"")
    assert "empty" in refused(path)
    path.write_bytes(b"GGUF" + whole)
    assert "no parquet file" in refused(path)
    path.write_bytes(whole[:-100])
    assert "its end is missing" in refused(path)
    path.write_bytes(whole[:300] + whole[301:])
    assert "fails its checksum" in refused(path)
    pq.write_table(pa.table({"a": [1]}), path)
    assert "not a token file of quantcard" in refused(path)
    (tmp_path / "folder").mkdir()
    assert "can't be read" in refused(tmp_path / "folder")


def test_a_newer_version_is_told_from_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(token_file, "VERSION", 2)
        write_tokens(tmp_path / "a.parquet", tokens())
    assert "Update quantcard" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("what", ["format", "columns", "shape", "order", "meta", "nan", "version"])
def test_a_forged_file_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Well-made files, checksum and all, that are not what we write."""
    path = tmp_path / "a.parquet"
    one = tokens()
    with monkeypatch.context() as forged:
        if what == "format":
            forged.setattr(token_file, "FORMAT", "quantcard-other")
        elif what == "columns":
            columns = {name: kind for name, kind in token_file._COLUMNS.items() if name != "kld"}
            forged.setattr(token_file, "_COLUMNS", columns)
            forged.setattr(token_file, "_SCHEMA", token_file._SCHEMA.remove(5))
            forged.setattr(token_file, "_FLOATS", ["nll"])
        elif what == "shape":
            forged.setattr(TokenFile, "n_chunks", 1000)
        elif what == "order":
            backwards = token_file._places(one)[0][::-1].copy(), token_file._places(one)[1]
            forged.setattr(token_file, "_places", lambda _: backwards)
        elif what == "meta":
            object.__setattr__(one, "meta", TokenMeta.model_construct(**meta().model_dump() | {"scoring": "other"}))
        elif what == "nan":
            one.kld[0, 0] = np.nan
        else:
            forged.setattr(token_file, "VERSION", "one")
        write_tokens(path, one)
    refused(path)


@pytest.mark.parametrize("field", ARRAYS)
def test_arrays_must_fit_together(field: str) -> None:
    one = tokens()
    values = {name: getattr(one, name) for name in ARRAYS}
    with pytest.raises(ValueError, match="shape"):
        TokenFile(one.meta, one.first, **values | {field: values[field][:, 1:]})
    with pytest.raises(ValueError, match="shape"):
        TokenFile(one.meta, one.first, **values | {field: values[field].ravel()})
    with pytest.raises(ValueError, match="shape"):
        TokenFile(one.meta, one.first, **{name: array[:0] for name, array in values.items()})


@pytest.mark.parametrize("field", ["nll", "nll_base", "kld", "p_top_base"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_must_be_finite(field: str, value: float) -> None:
    one = tokens()
    values = {name: getattr(one, name).copy() for name in ARRAYS}
    values[field][1, 2] = value
    with pytest.raises(ValueError, match="finite"):
        TokenFile(one.meta, one.first, **values)


def test_a_folder_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, OSError)):
        write_tokens(tmp_path / "file" / "a.parquet", tokens())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
