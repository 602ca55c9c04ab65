"""Flags: each where it belongs, and none where llama.cpp's own tools make files like that."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from core.audit import Flag, Inspection, inspect
from core.gguf_header import GGUFHeader, Tensor, read_file_header
from core.inspection import AUDIT_VERSION

ROOT = Path(__file__).resolve().parents[2]


def tensor(name: str, kind: str = "F32", shape: tuple[int, ...] = (256, 4)) -> Tensor:
    n = 1
    for size in shape:
        n *= size
    block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return Tensor(name, shape, kind, 0, n // block * n_bytes)


def header(*tensors: Tensor, **kv: Any) -> GGUFHeader:
    return GGUFHeader(3, {"general.architecture": "llama"} | kv, tensors, 1024)


def found(*headers: GGUFHeader, name: str = "M.gguf", shards: int = 1) -> dict[str, str]:
    """Details by code; every code stands once."""
    flags: list[Flag] = inspect(headers, size_bytes=5000, name=name, shards_expected=shards).flags
    assert len({flag.code for flag in flags}) == len(flags)
    return {flag.code: flag.detail for flag in flags}


def model(*, layers: int = 4, attn: str = "Q4_K", down: str = "Q4_K", up: str = "Q4_K", **kv: Any) -> GGUFHeader:
    """A small mixture of experts: attention, router, experts, a shared expert."""
    tensors = [tensor("token_embd.weight", "Q6_K"), tensor("output_norm.weight", "F32", (256,))]
    for i in range(layers):
        tensors += [tensor(f"blk.{i}.attn_{part}.weight", attn) for part in ("q", "k", "v", "output")]
        tensors += [tensor(f"blk.{i}.attn_norm.weight", "F32", (256,)), tensor(f"blk.{i}.ffn_gate_inp.weight")]
        tensors += [tensor(f"blk.{i}.ffn_{part}_exps.weight", up, (256, 4, 8)) for part in ("up", "gate")]
        tensors += [tensor(f"blk.{i}.ffn_down_exps.weight", down, (256, 4, 8))]
        tensors += [tensor(f"blk.{i}.ffn_down_shexp.weight", "Q8_0")]
    return header(*tensors, **kv)


IMATRIX = {"quantize.imatrix.file": "i.gguf", "quantize.imatrix.chunks_count": 125}


def test_an_ordinary_mixture_has_none() -> None:
    entries = {**IMATRIX, "quantize.imatrix.entries_count": 32}
    assert found(model(**{"general.file_type": 15, **entries})) == {}


def test_every_code_is_documented_and_every_documented_code_is_made() -> None:
    made = set()
    for room in ("core", "bot"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", "")
                given = node.args[:1] if name == "flag" else [k.value for k in node.keywords if k.arg == "code"]
                if name in ("flag", "Flag"):
                    assert all(isinstance(one, (ast.Constant, ast.Name)) for one in given), path
                    made |= {one.value for one in given if isinstance(one, ast.Constant)}
    table = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8").split("## Flags")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}
    assert made == documented and len(made) > 15


@pytest.mark.parametrize("name", ["blk.0.attn_gate.weight", "blk.0.ssm_beta.weight"])
def test_mxfp4_where_it_hurts(name: str) -> None:
    code = "mxfp4-ssm" if "ssm" in name else "mxfp4-attention"
    assert name.split(".")[1 + 1] in found(header(tensor(name, "MXFP4")))[code]
    assert not found(header(tensor("blk.0.ffn_up_exps.weight", "MXFP4")))
    assert not found(header(tensor("blk.0.shortconv.in_proj.weight", "MXFP4")))


def test_ssm_out_at_low_bits() -> None:
    assert "low-bit-ssm-out" in found(header(tensor("blk.0.ssm_out.weight", "Q2_K"), **IMATRIX))
    assert not found(header(tensor("blk.0.ssm_out.weight", "Q4_K"), tensor("blk.0.ssm_in.weight", "Q3_K"), **IMATRIX))


def test_attention_at_low_bits_only_in_hybrids() -> None:
    attention = [tensor(f"blk.0.attn_{part}.weight", "Q3_K") for part in ("q", "k")]
    assert not found(header(*attention, **IMATRIX))
    hybrid = header(*attention, tensor("blk.1.ssm_in.weight", "Q6_K"), **IMATRIX)
    assert "attn_k, attn_q in Q3_K" in found(hybrid)["low-bit-attention-hybrid"]
    fine = header(tensor("blk.0.attn_q.weight", "Q4_K"), tensor("blk.1.ssm_in.weight", "Q3_K"), **IMATRIX)
    assert not found(fine)


@pytest.mark.parametrize(
    ("down", "up", "flagged"),
    [
        ("Q2_K", "Q3_K", True), ("Q2_K", "Q4_K", True), ("IQ1_S", "IQ3_S", True), ("IQ3_XXS", "IQ3_S", False),
        ("Q3_K", "Q2_K", False), ("Q4_K", "Q8_0", False), ("Q2_K", "Q2_K", False),
    ],
)  # fmt: skip
def test_experts_down_far_below_their_siblings(down: str, up: str, flagged: bool) -> None:
    flags = found(model(down=down, up=up, **IMATRIX))
    assert ("low-bit-experts-down" in flags) is flagged
    if flagged:
        assert f"ffn_down_exps in {down} in 4 of 4 layers, below their siblings' {up}" in flags["low-bit-experts-down"]


def test_no_imatrix_counts_layers_only() -> None:
    assert "no-imatrix" in found(model(up="Q3_K"))
    # An imatrix does not cover the embeddings.
    assert not found(header(tensor("token_embd.weight", "Q2_K"), tensor("blk.0.attn_q.weight", "Q4_K")))


def test_imatrix_keys_on_a_file_without_quantized_tensors() -> None:
    floats = [tensor("blk.0.attn_q.weight", "BF16"), tensor("blk.0.attn_norm.weight", "F32", (256,))]
    assert "imatrix-stale" in found(header(*floats, **IMATRIX))
    assert not found(header(*floats))
    # llama-quantize writes them for Q8_0 as well, which takes no matrix; that is nobody's mistake.
    assert not found(header(tensor("blk.0.attn_q.weight", "Q8_0"), **IMATRIX))


@pytest.mark.parametrize(
    ("entries", "flagged"), [(32, False), (36, False), (40, False), (18, False), (600, True), (3, True), (0, True)]
)
def test_an_imatrix_of_another_model(entries: int, flagged: bool) -> None:
    # 36 matrices are quantized, 4 routers are not: 32 entries lack the shared experts, 40 have the routers.
    flags = found(model(**{**IMATRIX, "quantize.imatrix.entries_count": entries}))
    assert ("imatrix-mismatch" in flags) is flagged


def test_the_imatrix_of_a_mixture_that_keeps_experts_apart_is_not_counted() -> None:
    tensors = [tensor(f"blk.0.ffn_down.{i}.weight", "Q4_K") for i in range(8)]
    assert not found(header(*tensors, **{**IMATRIX, "quantize.imatrix.entries_count": 1}))


@pytest.mark.parametrize(
    ("file_type", "kinds", "said"),
    [
        (15, {"attn": "Q8_0", "up": "Q4_K", "down": "Q6_K"}, None),
        (12, {"attn": "Q3_K", "up": "Q3_K", "down": "Q4_K"}, None),
        (38, {"attn": "Q8_0", "up": "MXFP4", "down": "MXFP4"}, None),
        (30, {"attn": "Q8_0", "up": "IQ3_S", "down": "IQ4_XS"}, "IQ4_XS, but by parameters its layers are IQ3_S 5"),
        (15, {"attn": "Q8_0", "up": "MXFP4", "down": "MXFP4"}, "MXFP4 80 %"),
        (1, {"attn": "BF16", "up": "BF16", "down": "BF16"}, "F16, but by parameters its layers are BF16"),
        (999, {}, None),
    ],
)
def test_a_label_that_the_mixture_does_not_keep(file_type: int, kinds: dict[str, str], said: str | None) -> None:
    flags = found(model(**kinds, **IMATRIX, **{"general.file_type": file_type}))
    assert said is None or said in flags["mixture-mismatch"]
    assert (said is None) == ("mixture-mismatch" not in flags)


def shards(*numbers: int, count: int = 2, total: int | None = None) -> list[GGUFHeader]:
    every = len(numbers) if total is None else total
    kv = {"split.count": count, "split.tensors.count": every}
    return [header(tensor(f"blk.{i}.attn_q.weight", "Q8_0"), **kv, **{"split.no": no}) for i, no in enumerate(numbers)]


def test_split_sets() -> None:
    assert not found(*shards(0, 1), shards=2)
    assert "different order" in found(*shards(1, 0), shards=2)["split-mismatch"]
    assert "promises 9" in found(*shards(0, 1, total=9), shards=2)["split-mismatch"]
    assert "one of 3 shards, its name that it is one of 2" in found(*shards(0, 1, count=3), shards=2)["split-mismatch"]
    assert "is one file" in found(*shards(0, count=2))["split-mismatch"]
    # llama-gguf-split leaves a zero behind when it merges.
    assert not found(*shards(0, count=0))
    twice = [shards(0, 1)[0], shards(1, 1)[0]]
    assert "more than one shard" in found(*twice, shards=2)["split-mismatch"]
    missing = found(*shards(1), shards=2)
    assert set(missing) == {"shards-missing"}, "of a set without its first shard nothing else is said"


def test_contradicting_claims() -> None:
    kv = {"general.base_model.count": 1, "general.base_model.0.repo_url": "https://huggingface.co/a/b"}
    other = {"general.base_model.0.url": "https://huggingface.co/c/d"}
    assert not found(model(**kv))
    assert "a/b" in found(model(**kv, **other))["base-models-disagree"]


QUANTS = sorted((ROOT.parent / "shared" / "data" / "models").glob("*.gguf"))


@pytest.mark.parametrize("path", QUANTS, ids=lambda p: p.stem)
def test_real_files_have_no_flag_that_is_not_theirs(path: Path) -> None:
    flags = inspect([read_file_header(path)], size_bytes=path.stat().st_size, name=path.name).flags
    assert {flag.code for flag in flags} <= {"fallback-types", "no-imatrix"}


def test_what_was_stored_before_groups_had_parts_can_be_read() -> None:
    old = inspect([model()], size_bytes=1, name="M.gguf").model_dump(mode="json")
    share = {"count": 1, "params": 2, "bytes": 3}
    for name in ("vocab_sha256", "tokenizer_model", "tokenizer_pre", "source", "shards_found", "audit_version"):
        del old[name]
    old["groups"] = {"attention": {"Q4_K": share}, "ffn": {"Q4_K": share}, "experts": {"Q4_K": share}}
    read = Inspection.model_validate(old)
    assert set(read.groups) == {"attention", "ffn_other", "experts_other"}
    assert read.outdated and read.vocab_sha256 is None
    again = Inspection.model_validate_json(read.model_dump_json())
    assert again == read
    assert not inspect([model()], size_bytes=1, name="M.gguf").outdated and AUDIT_VERSION > 1
