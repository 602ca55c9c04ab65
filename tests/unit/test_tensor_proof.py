"""What is compared to prove a reference, that honest conversions come out equal, and what each difference is called."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.conversion import (
    Names,
    Rules,
    as_floats,
    converted,
    differing_generated,
    generated,
    role_of,
    rules_of,
    settings_difference,
    text_config,
)
from core.gguf_header import GGUFHeader, Tensor, read_file_header
from core.safetensors import SafeTensor, parse_header
from core.tensor_proof import (
    MAX_PIECE,
    Compared,
    Counterpart,
    Draw,
    Piece,
    Span,
    choose_pieces,
    differing,
    judge,
    n_different,
    span_of,
)
from tests.checkpoints import Checkpoint

KINDS = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "Gemma2ForCausalLM"]


def opened(checkpoint: Checkpoint, path: Path) -> tuple[GGUFHeader, bytes, dict[str, SafeTensor], bytes]:
    base = checkpoint.files()["model.safetensors"]
    return read_file_header(path), path.read_bytes(), parse_header(base, size=len(base), name="m"), base


def compare_all(checkpoint: Checkpoint, path: Path) -> tuple[list[Compared], list[str]]:
    """Every piece of a proof, over files at hand."""
    header, ours, tensors, theirs = opened(checkpoint, path)
    names = Names(checkpoint.arch, checkpoint.layers)
    counterparts: dict[str, list[Counterpart]] = {}
    for name in tensors:
        place = names.of(name)
        assert place is not None, name
        counterparts.setdefault(place[0], []).append(Counterpart(name, place[1]))
    draw = Draw("seed")
    pieces, missing = choose_pieces(
        header.tensors, counterparts, dict.fromkeys(tensors, "m"), draw, n_pieces=60, n_files=1
    )
    by_name = {tensor.name: tensor for tensor in header.tensors}
    compared = []
    for piece in pieces:
        span = span_of(
            piece, by_name[piece.tensor], tensors[piece.counterpart.name], rules_of(checkpoint.config),
            checkpoint.config, draw,
        )  # fmt: skip
        assert isinstance(span, Span), span
        at = header.data_start + span.gguf_offset
        found = n_different(
            span, ours[at : at + span.gguf_bytes], theirs[span.base_offset : span.base_offset + span.base_bytes]
        )
        compared.append(Compared(piece, span.gguf_bytes, span.n_values, found))
    return compared, missing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", ["BF16", "F16", "F32"])
def test_an_honest_conversion_is_equal_everywhere(kind: str, kept: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(kind)
    compared, missing = compare_all(checkpoint, checkpoint.gguf(tmp_path / "m.gguf", kept))
    assert not missing and not any(one.n_different for one in compared)
    roles = {role_of(one.piece.tensor) for one in compared}
    assert {"token_embd.weight", "output_norm.weight", "blk.*.attn_q.weight", "blk.*.attn_norm.weight"} <= roles
    found = judge(compared, rules=rules_of(checkpoint.config), uncovered=[], n_bytes=10**9)
    assert found.verdict == "proven", found.detail


def flip(name: str) -> Any:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[5] *= -1

    return change


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.1.attn_q.weight", "blk.2.ffn_down.weight", "blk.3.ffn_norm.weight"]
)
def test_one_value_that_differs_is_counted_and_named(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    compared, _ = compare_all(checkpoint, checkpoint.gguf(tmp_path / "m.gguf", change=flip(name)))
    assert {one.piece.tensor: one.n_different for one in compared if one.n_different} == {name: 1}
    found = judge(compared, rules=rules_of(checkpoint.config), uncovered=[], n_bytes=1)
    assert found.verdict == "differs" and f"sampled values of {name} are not those of model." in found.detail


@pytest.mark.parametrize(("kind", "wrong"), [("LlamaForCausalLM", "attn_q"), ("Gemma2ForCausalLM", "norm")])
def test_a_conversion_that_leaves_out_what_its_class_needs_differs(kind: str, wrong: str, tmp_path: Path) -> None:
    # The same weights without their reordering, or their shift: a model that computes nonsense.
    checkpoint = Checkpoint(kind)
    plain = Checkpoint(kind)
    plain.kind, plain.shift = "another", 0.0
    compared, _ = compare_all(checkpoint, plain.gguf(tmp_path / "m.gguf"))
    assert any(one.n_different and wrong in one.piece.tensor for one in compared)


def test_a_difference_is_not_held_against_a_class_that_is_not_known() -> None:
    one = Compared(Piece("a", Counterpart("b")), 1 << 22, 100, 3)
    assert judge([one], rules=Rules(known=False), uncovered=[], n_bytes=1).verdict == "unprovable"
    assert judge([one], rules=Rules(known=True), uncovered=["x"], n_bytes=1).verdict == "differs"


def test_what_a_proof_needs_at_least() -> None:
    rules = Rules(known=True)
    many = [Compared(Piece(f"t{i}", Counterpart("b")), 1 << 18, 100, 0) for i in range(8)]
    assert judge(many, rules=rules, uncovered=[], n_bytes=10**9).verdict == "proven"
    for compared, uncovered in ((many[:7], []), (many, ["blk.*.ffn_up.weight has no counterpart"]), ([], [])):
        assert judge(compared, rules=rules, uncovered=uncovered, n_bytes=10**9).verdict == "unprovable"
    small = [Compared(one.piece, 1000, 100, 0) for one in many]
    assert "bytes could be compared" in judge(small, rules=rules, uncovered=[], n_bytes=10**9).detail
    assert judge(small, rules=rules, uncovered=[], n_bytes=20_000).verdict == "proven"


# The sample


def tensors(n_layers: int, *, size: int = 4096) -> list[Tensor]:
    found = [Tensor("token_embd.weight", (size, size), "BF16", 0, 2 * size * size)]
    for i in range(n_layers):
        found += [Tensor(f"blk.{i}.{role}.weight", (size, size), "BF16", 0, 0) for role in ("attn_v", "ffn_up")]
        found.append(Tensor(f"blk.{i}.attn_norm.weight", (size,), "F32", 0, 0))
    return found


def test_every_kind_is_sampled_in_blocks_that_nobody_can_foretell() -> None:
    gguf = tensors(32)
    counterparts = {t.name: [Counterpart(t.name)] for t in gguf}
    where = {t.name: f"{i // 10}" for i, t in enumerate(gguf)}
    seen: Counter[str] = Counter()
    for salt in range(200):
        pieces, missing = choose_pieces(gguf, counterparts, where, Draw("key", str(salt)), n_pieces=22, n_files=8)
        assert not missing and len(pieces) == 22 == len({one.tensor for one in pieces})
        assert {role_of(t.name) for t in gguf} == {role_of(one.tensor) for one in pieces}
        assert len({where[one.counterpart.name] for one in pieces}) <= 8
        seen.update(one.tensor for one in pieces)
    big = [seen[f"blk.{i}.ffn_up.weight"] for i in range(32)]
    assert min(big) > 20, "every block has its turn"
    again = choose_pieces(gguf, counterparts, where, Draw("key", "7"), n_pieces=22, n_files=8)
    assert again == choose_pieces(gguf, counterparts, where, Draw("key", "7"), n_pieces=22, n_files=8)


def test_a_kind_without_counterpart_or_beyond_the_files_is_told() -> None:
    gguf = [*tensors(2), Tensor("blk.0.strange.weight", (8,), "F32", 0, 0)]
    counterparts = {t.name: [Counterpart(t.name)] for t in gguf if "strange" not in t.name}
    where = {name: name for name in counterparts}
    _, missing = choose_pieces(gguf, counterparts, where, Draw("x"), n_pieces=22, n_files=8)
    assert missing == ["blk.*.strange.weight"]
    _, missing = choose_pieces(gguf, counterparts, where, Draw("x"), n_pieces=22, n_files=2)
    assert len(missing) >= 2


def span(tensor: Tensor, base: SafeTensor, *, expert: int | None = None, rules: Rules = Rules(known=True)) -> Any:
    config = {"num_attention_heads": 32, "num_key_value_heads": 8}
    return span_of(Piece(tensor.name, Counterpart(base.name, expert)), tensor, base, rules, config, Draw("x"))


def test_a_piece_of_a_large_tensor_lies_at_the_same_rows_of_both() -> None:
    tensor = Tensor("blk.0.ffn_up.weight", (4096, 14336), "F16", 1000, 2 * 4096 * 14336)
    found = span(tensor, SafeTensor("b", "F32", (14336, 4096), 500, 4 * 4096 * 14336))
    assert found.gguf_bytes == 384 << 10 and found.base_bytes == 2 * found.gguf_bytes
    assert (found.gguf_offset - 1000) / 2 == (found.base_offset - 500) / 4
    assert found.gguf_offset + found.gguf_bytes <= 1000 + tensor.n_bytes


def test_whole_heads_are_compared_where_rows_are_reordered() -> None:
    tensor = Tensor("blk.0.attn_k.weight", (4096, 1024), "BF16", 0, 2 * 4096 * 1024)
    found = span(tensor, SafeTensor("b", "BF16", (1024, 4096), 0, 1 << 23), rules=Rules(known=True, permuted=True))
    assert found.n_heads == 1 and found.gguf_bytes == 128 * 4096 * 2 and found.gguf_offset % found.gguf_bytes == 0


def test_an_experts_rows_are_its_own() -> None:
    tensor = Tensor("blk.0.ffn_up_exps.weight", (64, 32, 4), "BF16", 0, 2 * 64 * 32 * 4)
    found = span(tensor, SafeTensor("b", "BF16", (32, 64), 0, 4096), expert=3)
    assert found.gguf_offset == 3 * 64 * 32 * 2 and found.gguf_bytes == 4096 == found.base_bytes


@pytest.mark.parametrize(
    ("tensor", "base", "expert"),
    [
        (Tensor("t", (8, 4), "BF16", 0, 64), ("BF16", (8, 4)), None),
        (Tensor("t", (8, 4), "Q8_0", 0, 64), ("BF16", (4, 8)), None),
        (Tensor("t", (8, 4), "BF16", 0, 64), ("F8_E4M3", (4, 8)), None),
        (Tensor("t", (8, 4, 2), "BF16", 0, 64), ("BF16", (4, 8)), 2),
        (Tensor("t", (8, 4), "BF16", 0, 64), ("BF16", ()), None),
        (Tensor("t", (), "BF16", 0, 2), ("BF16", (1,)), None),
        (Tensor("t", (0,), "BF16", 0, 0), ("BF16", (0,)), None),
        (Tensor("token_embd.weight", (8, 80), "BF16", 0, 64), ("BF16", (100, 8)), None),
        (Tensor("t", (MAX_PIECE,), "BF16", 0, 2 * MAX_PIECE), ("BF16", (MAX_PIECE,)), None),
        (Tensor("blk.0.attn_q.weight", (8, 33), "BF16", 0, 528), ("BF16", (33, 8)), None),
    ],
)
def test_what_can_not_be_compared_is_told_in_words(tensor: Tensor, base: Any, expert: int | None) -> None:
    found = span(
        tensor, SafeTensor("b", base[0], base[1], 0, 64), expert=expert, rules=Rules(known=True, permuted=True)
    )
    assert isinstance(found, str) and tensor.name in found


def test_tokens_that_a_converter_cuts_off_or_adds_do_not_matter() -> None:
    tensor = Tensor("token_embd.weight", (8, 98), "BF16", 0, 8 * 98 * 2)
    assert span(tensor, SafeTensor("b", "BF16", (100, 8), 0, 1600)).n_values == 98 * 8


# Values


@given(st.lists(st.floats(width=32), min_size=1, max_size=64))
def test_converting_and_reading_back_is_what_the_types_say(values: list[float]) -> None:
    data = np.array(values, np.float32)
    assert differing(converted(data, "F32"), data) == 0
    with np.errstate(over="ignore"):
        assert differing(converted(data, "F16"), data.astype(np.float16).astype(np.float32)) == 0
    twice = converted(converted(data, "BF16"), "BF16")
    assert differing(converted(data, "BF16"), twice) == 0


def test_bf16_as_it_lies_in_a_file() -> None:
    assert as_floats(b"\x80\x3f\x00\xc0", "BF16").tolist() == [1.0, -2.0]
    assert as_floats(b"\x00\x3c", "F16").tolist() == [1.0]


def test_nan_is_nan_and_subnormals_are_nothing() -> None:
    a = np.array([np.nan, 1e-40, 0.0, 1.0, np.inf], np.float32)
    b = np.array([np.nan, 0.0, -0.0, 1.0, -np.inf], np.float32)
    assert differing(a, b) == 1


# Names, settings


def test_names_of_both_sides() -> None:
    names = Names("qwen3moe", 2)
    assert names.of("model.layers.1.mlp.experts.17.gate_proj.weight") == ("blk.1.ffn_gate_exps.weight", 17)
    assert names.of("model.layers.1.self_attn.q_proj.weight") == ("blk.1.attn_q.weight", None)
    assert names.of("language_model.model.layers.0.mlp.gate.weight") == ("blk.0.ffn_gate_inp.weight", None)
    for other in ("model.layers.2.mlp.gate.weight", "vision_tower.x.weight", "model.visual.norm.weight", "", "x" * 999):
        assert names.of(other) is None
    assert Names("llama", 1).of("model.layers.0.block_sparse_moe.experts.3.w1.weight") == (
        "blk.0.ffn_gate_exps.weight",
        3,
    )


def test_one_architectures_names_are_not_anothers() -> None:
    # gguf's own class keeps what an architecture changes for all that come after.
    assert Names("arctic", 1).of("model.layers.0.residual_layernorm.weight") is not None
    assert Names("llama", 1).of("model.layers.0.post_attention_layernorm.weight") == ("blk.0.ffn_norm.weight", None)


@pytest.mark.parametrize(("architecture", "blocks"), [("no such", 1), ("llama", 0), ("llama", 10**9), ("llama", -1)])
def test_names_of_nothing(architecture: str, blocks: int) -> None:
    with pytest.raises(ValueError, match="gguf knows no"):
        Names(architecture, blocks)


def header(**changed: Any) -> dict[str, Any]:
    known = {"block_count": 4, "attention.head_count": 4, "rope.freq_base": 500000.0, "logit_scale": None}
    return {f"llama.{key}": value for key, value in (known | changed).items() if value is not None}


@pytest.mark.parametrize(
    ("kv", "config", "said"),
    [
        ({}, {}, None),
        ({"block_count": 3}, {}, "block_count = 3, the base model's config.json 4"),
        ({"rope.freq_base": 10000.0}, {}, "rope.freq_base = 10000"),
        ({"rope.freq_base": None}, {}, "rope.freq_base = 10000"),
        ({"logit_scale": 2.0}, {}, "logit_scale = 2, the base model's config.json has none"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}, "scales RoPE (yarn)"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            None,
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "by 2",
        ),
        ({}, {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0}}, "by 1, the base"),
        ({"attention.head_count": [1, 2]}, {}, None),
        ({"attention.head_count": True}, {"num_attention_heads": "four"}, None),
    ],
)
def test_the_same_weights_under_other_settings_are_another_model(
    kv: dict[str, Any], config: dict[str, Any], said: str | None
) -> None:
    known = {"num_hidden_layers": 4, "num_attention_heads": 4, "rope_theta": 500000.0, **config}
    found = settings_difference(header(**kv), "llama", text_config({"text_config": known}))
    assert (found is None) if said is None else said in (found or "")


def test_generated_tensors_follow_from_the_config() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}
    config = {"rope_theta": 500000.0, "head_dim": 32, "rope_scaling": rope}
    made = generated("rope_freqs.weight", config)
    assert made is not None and made.shape == (16,) and made[0] == 1.0 and made[-1] == 8.0
    assert differing_generated("rope_freqs.weight", made.tobytes(), "F32", config) is None
    assert "is not what" in (differing_generated("rope_freqs.weight", (made * 2).tobytes(), "F32", config) or "")
    assert "can't be derived" in (differing_generated("rope_freqs.weight", made.tobytes(), "F32", {}) or "")
    long = {"rope_scaling": {"long_factor": [1.0, 2.5], "short_factor": [1.0, "x"]}}
    assert generated("rope_factors_long.weight", long) is not None
    assert generated("rope_factors_short.weight", long) is None
    assert generated("rope_freqs.weight", config | {"head_dim": "many"}) is None
