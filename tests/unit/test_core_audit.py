"""What is told of a header: groups, types, provenance, flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from core.audit import (
    Inspection,
    file_type_name,
    group_of,
    inspect,
)
from core.gguf_header import GGUFHeader, SkippedArray, Tensor, read_file_header

MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"


def tensor(name: str, kind: str = "F32", shape: tuple[int, ...] = (256, 4)) -> Tensor:
    n = 1
    for size in shape:
        n *= size
    block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]] if not kind.startswith("TYPE_") else (1, 0)
    return Tensor(name, shape, kind, 0, n // block * n_bytes)


def header(*tensors: Tensor, **kv: Any) -> GGUFHeader:
    known = {"general.architecture": "llama"} | {key.replace("__", "."): value for key, value in kv.items()}
    return GGUFHeader(3, known, tensors, 1024)


def audit(*tensors: Tensor, name: str = "M.gguf", shards: int = 1, **kv: Any) -> Inspection:
    return inspect([header(*tensors, **kv)], size_bytes=5000, name=name, shards_expected=shards)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("token_embd.weight", "embeddings"), ("output.weight", "output"), ("output_norm.weight", "norms"),
        ("blk.0.attn_q.weight", "attention"), ("blk.12.attn_kv_a_mqa.weight", "attention"),
        ("blk.0.attn_norm.weight", "norms"), ("blk.0.attn_q_norm.weight", "norms"),
        ("blk.0.ffn_up.weight", "ffn_up"), ("blk.0.ffn_gate.weight", "ffn_gate"), ("blk.0.ffn_down.bias", "ffn_down"),
        ("dec.blk.3.ffn_up.weight", "ffn_up"), ("blk.0.ffn_gate_up.weight", "ffn_up"), ("blk.0.ffn_act", "ffn_other"),
        ("blk.0.channel_mix_key.weight", "ffn_other"), ("blk.0.ffn_norm.weight", "norms"),
        ("blk.0.ffn_up_exps.weight", "experts_up"), ("blk.0.ffn_gate_exps.weight", "experts_gate"),
        ("blk.0.ffn_down_exps.weight", "experts_down"), ("blk.0.ffn_gate_up_exps.weight", "experts_up"),
        ("blk.0.ffn_down.7.weight", "experts_down"), ("blk.0.ffn_down_shexp.weight", "experts_other"),
        ("blk.0.ffn_gate_inp.weight", "experts_other"), ("blk.0.exp_probs_b.bias", "experts_other"),
        ("blk.0.ssm_out.weight", "ssm"), ("blk.0.time_mix_key.weight", "ssm"),
        ("blk.0.shortconv.in_proj.weight", "ssm"),
        ("blk.0.ssm_norm.weight", "norms"), ("enc.blk.0.attn_q.weight", "attention"),
        ("dec.blk.0.cross_attn_k.weight", "attention"), ("rope_freqs.weight", "other"), ("", "other"), ("blk", "other"),
    ],
)  # fmt: skip
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_sums_by_type_and_group() -> None:
    found = audit(
        tensor("token_embd.weight", "Q8_0", (256, 10)), tensor("blk.0.attn_q.weight", "Q4_K"),
        tensor("blk.1.attn_q.weight", "Q4_K"), tensor("blk.0.attn_norm.weight", "F32", (256,)),
        tokenizer__ggml__tokens=SkippedArray(8, 10), llama__context_length=4096, tokenizer__chat_template="{{ x }}",
    )  # fmt: skip
    assert found.n_params == 2560 + 2 * 1024 + 256 and found.n_tensors == 4
    assert found.tensor_types["Q4_K"].model_dump() == {"count": 2, "params": 2048, "bytes": 8 * 144}
    assert found.bpw == pytest.approx(8 * (2560 // 32 * 34 + 8 * 144 + 1024) / found.n_params)
    assert set(found.groups) == {"embeddings", "attention", "norms"}
    assert found.groups["attention"]["Q4_K"].count == 2
    assert (found.n_vocab, found.n_ctx_train, found.architecture) == (10, 4096, "llama")
    assert found.chat_template_sha256 and len(found.chat_template_sha256) == 64


def test_shards_are_added_up() -> None:
    headers = [header(tensor("a.weight")), header(tensor("b.weight"))]
    found = inspect(headers, size_bytes=1, name="M.gguf", shards_expected=3)
    assert found.n_params == 2048
    assert [(flag.code, flag.detail) for flag in found.flags] == [("shards-missing", "2 of 3 shards are there.")]


def test_an_empty_model_has_no_bits() -> None:
    assert audit().bpw == 0.0


@pytest.mark.parametrize(
    ("value", "name"),
    [(15, "Q4_K_M"), (0, "F32"), (1, "F16"), (30, "IQ4_XS"), (38, "MXFP4_MOE"), (15 | 1024, "Q4_K_M"),
     (999, "file_type 999"), ("15", None), (True, None), (None, None)],
)  # fmt: skip
def test_file_types(value: object, name: str | None) -> None:
    assert file_type_name({"general.file_type": value}) == name


def test_every_file_type_of_llama_has_its_name() -> None:
    for kind in LlamaFileType:
        if kind is not LlamaFileType.GUESSED:
            assert file_type_name({"general.file_type": kind.value}) == kind.name.split("_", 1)[1]


def flags(*tensors: Tensor, **more: Any) -> list[str]:
    return [flag.code for flag in audit(*tensors, **more).flags]


IMATRIX = {"quantize__imatrix__file": "i.gguf", "quantize__imatrix__chunks_count": 125}


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("Q2_K", {}, ["no-imatrix"]), ("Q2_K", IMATRIX, []), ("IQ3_S", {}, ["no-imatrix"]), ("Q4_K", {}, []),
        ("TQ1_0", {}, []), ("MXFP4", {}, ["mxfp4-attention"]), ("TYPE_99", {}, ["unknown-types"]),
    ],
)  # fmt: skip
def test_flags_by_type(kind: str, more: dict[str, Any], expected: list[str]) -> None:
    assert flags(tensor("blk.0.attn_q.weight", kind), **more) == expected


@pytest.mark.parametrize(
    ("name", "file_type", "mismatch"),
    [("M-Q4_K_M.gguf", 15, False), ("M-Q4_K_M.gguf", 14, True), ("M.i1-IQ2_S.gguf", 28, False),
     ("M.i1-IQ2_S.gguf", 29, True), ("M-UD-Q4_K_XL.gguf", 15, False), ("M-UD-IQ2_M.gguf", 28, True),
     ("M.gguf", 15, False), ("M-Q4_K_M.gguf", None, False), ("M-Q6_K_L.gguf", 18, False)],
)  # fmt: skip
def test_a_name_that_says_otherwise(name: str, file_type: int | None, mismatch: bool) -> None:
    found = flags(tensor("blk.0.attn_q.weight", "Q4_K"), name=name, general__file_type=file_type)
    assert ("label-mismatch" in found) is mismatch


@pytest.mark.parametrize(
    ("file_type", "kind", "row", "flagged"),
    [(15, "Q5_0", 64, True), (15, "Q4_K", 256, False), (15, "F16", 4, False), (2, "Q4_0", 64, False),
     (25, "IQ4_NL", 64, False), (30, "IQ4_NL", 64, True)],
)  # fmt: skip
def test_rows_that_force_other_types(file_type: int, kind: str, row: int, flagged: bool) -> None:
    found = audit(tensor("blk.0.ffn_up.weight", kind, (row, 8)), general__file_type=file_type)
    assert any(flag.code == "fallback-types" for flag in found.flags) is flagged
    if flagged:
        assert f"1 in {kind}" in found.flags[0].detail


def test_the_imatrix_of_the_header() -> None:
    found = audit(
        quantize__imatrix__file="calib.gguf", quantize__imatrix__dataset="v3.txt",
        quantize__imatrix__entries_count=224, quantize__imatrix__chunks_count=125,
    ).imatrix  # fmt: skip
    assert found and (found.file, found.dataset, found.entries, found.chunks) == ("calib.gguf", "v3.txt", 224, 125)
    assert audit().imatrix is None


@pytest.mark.parametrize(
    ("name", "file_type", "codes"),
    [
        ("stories260K-wide256-Q4_K_M", "Q4_K_M", []),
        ("stories260K-wide256-Q2_K", "Q2_K", ["no-imatrix"]),
        ("stories260K-wide256-Q8_0", "Q8_0", []),
        ("stories260K-Q4_K_M", "Q4_K_M", ["fallback-types"]),
        ("stories260K-IQ4_NL", "IQ4_NL", []),
        ("stories260K-F16", "F16", []),
    ],
)
def test_real_files(name: str, file_type: str, codes: list[str]) -> None:
    path = MODELS / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    found = inspect([read_file_header(path)], size_bytes=path.stat().st_size, name=path.name)
    assert (found.file_type, [flag.code for flag in found.flags]) == (file_type, codes)
    assert found.architecture == "llama" and found.n_vocab and found.n_ctx_train
    assert 0 < found.n_params * found.bpw / 8 < path.stat().st_size
