"""The published schema: documented column by column, versioned, and damage to it is seen before a figure is read."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rows import row

from core.dataset import SCHEMA_VERSION, DatasetRow
from core.dataset_file import (
    FORMAT,
    ROW_GROUP,
    arrow_schema,
    column_rows,
    parquet_bytes,
    parquet_rows,
    raw_path,
    sha256_in,
    tokens_path,
)

DOCS = Path(__file__).parents[2] / "docs" / "dataset.md"
SHA = "ab" + "0" * 62


def test_every_column_is_documented_as_it_is() -> None:
    told = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+` \| \w+\??", line)]
    assert told == column_rows()
    assert all(field.description for field in DatasetRow.model_fields.values())


def test_the_version_stands_in_rows_and_file() -> None:
    content = parquet_bytes([row()])
    about = pq.read_schema(io.BytesIO(content)).metadata
    assert (about[b"format"].decode(), about[b"schema_version"].decode()) == (FORMAT, str(SCHEMA_VERSION))
    assert f"Version {SCHEMA_VERSION}," in DOCS.read_text(encoding="utf-8")
    assert parquet_rows(content)[0].schema_version == SCHEMA_VERSION


def test_columns_are_only_ever_added() -> None:
    """Those of the first publication are still there, in their order: a reader of then goes on reading."""
    first = [
        "schema_version", "id", "repo_id", "owner", "variant", "first_file", "n_files", "label", "variant_key",
        "revision", "state", "reason", "is_reference", "base_model", "architecture", "file_type", "size_bytes",
        "n_params", "bpw", "imatrix_file", "flags", "protocol_name", "protocol_fingerprint", "protocol_json",
        "reference_repo", "reference_variant", "reference_key", "reference_kind", "reference_reason", "noise_floor",
        "n_ctx", "n_chunks", "n_tokens", "ppl", "ppl_stderr", "ppl_base", "ppl_ratio", "ppl_ratio_stderr",
        "ppl_cor", "kld_mean", "kld_stderr", "kld_median", "kld_p99", "kld_p99_9", "kld_max", "same_top",
        "same_top_stderr", "delta_p_rms", "n_prompt", "pp_ts", "pp_ts_stddev", "n_gen", "tg_ts", "tg_ts_stddev",
        "peak_memory_bytes", "peak_vram_bytes", "environment_fingerprint", "environment_json", "quality_json",
        "speed_json", "quality_imported", "speed_imported", "command", "measured_at", "disputed",
    ]  # fmt: skip
    assert [name for name in arrow_schema().names if name in first] == first


def test_a_flipped_byte_in_a_page_is_no_figure() -> None:
    content = bytearray(parquet_bytes([row(repo_id=f"owner/repo-{i}") for i in range(50)]))
    meta = pq.read_metadata(io.BytesIO(bytes(content)))
    column = next(c for i in range(meta.num_columns) if (c := meta.row_group(0).column(i)).path_in_schema == "repo_id")
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + column.total_compressed_size // 2] ^= 0xFF
    with pytest.raises(ValueError, match="not a results file"):
        parquet_rows(bytes(content))


def test_half_a_file_is_none() -> None:
    content = parquet_bytes([row()])
    for part in (content[: len(content) // 2], content[:-1], b"", b"PAR1"):
        with pytest.raises(ValueError, match="not a results file"):
            parquet_rows(part)


def test_one_row_can_be_opened_without_the_rest() -> None:
    many = [row(repo_id=f"owner/repo-{i}", id=f"{i:016x}") for i in range(ROW_GROUP + 1)]
    assert pq.read_metadata(io.BytesIO(parquet_bytes(many))).num_row_groups == 2


def test_paths_tell_the_sha256_and_nothing_else_does() -> None:
    assert sha256_in(tokens_path(SHA)) == sha256_in(raw_path(SHA)) == SHA
    wrong = [tokens_path(SHA).replace("/ab/", "/aa/"), f"data/raw/ab/{SHA}.parquet", f"data/raw/ab/{SHA.upper()}.json"]
    for other in ("data/measurements.parquet", f"../{tokens_path(SHA)}", "", "/", f"data/raw/{SHA}.json", *wrong):
        assert sha256_in(other) is None, other
