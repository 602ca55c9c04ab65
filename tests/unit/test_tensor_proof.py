"""What is compared to prove a reference, that honest conversions come out equal, and what each difference is called."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.conversion import (
    Mismatch,
    Names,
    Rules,
    as_floats,
    converted,
    differing_generated,
    generated,
    rules_of,
    text_config,
    to_generate,
)
from core.correspondence import Counterpart, correspond
from core.gguf_header import Tensor, read_file_header
from core.safetensors import SafeTensor, parse_header
from core.tensor_proof import (
    GAP,
    MAX_ROW,
    PIECE,
    Compared,
    Draw,
    Piece,
    Plan,
    Seen,
    Span,
    differing,
    in_turn,
    judge,
    merged,
    n_different,
    span_of,
)
from tests.checkpoints import Checkpoint

KINDS = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "Gemma2ForCausalLM"]


def compare_all(checkpoint: Checkpoint, path: Path, *, salt: str = "salt") -> list[Compared]:
    """A piece of every tensor, and of every expert, over files at hand."""
    header, ours, base = read_file_header(path), path.read_bytes(), checkpoint.files()["model.safetensors"]
    tensors = parse_header(base, size=len(base), name="m")
    rules, config = rules_of(checkpoint.config), text_config(checkpoint.config)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    found = correspond(shapes, tensors, Names(checkpoint.arch, checkpoint.layers), config, rules)
    assert not isinstance(found, Mismatch), found
    compared = []
    draw = Draw(salt)
    for tensor in header.tensors:
        for counterpart in found.counterparts[tensor.name]:
            piece = Piece(tensor.name, counterpart)
            span = span_of(piece, tensor, tensors[counterpart.name], rules, config, draw)
            assert isinstance(span, Span), span
            at = header.data_start + span.gguf_offset
            different = n_different(
                span, ours[at : at + span.gguf_bytes], base[span.base_offset : span.base_offset + span.base_bytes]
            )
            compared.append(Compared(piece, span.n_values, different))
    return compared


def judged(compared: list[Compared], *, rules: Rules, uncovered: tuple[str, ...] = (), n: int | None = None) -> Any:
    """The verdict on these as all that was compared."""
    n = len({one.piece.tensor for one in compared}) if n is None else n
    seen = Seen(frozenset(range(len({one.piece.tensor for one in compared}))), frozenset({0}))
    return judge(compared, rules=rules, uncovered=uncovered, seen=seen, n_tensors=n, n_files=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", ["BF16", "F16", "F32"])
def test_an_honest_conversion_is_equal_everywhere(kind: str, kept: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(kind)
    path = checkpoint.gguf(tmp_path / "m.gguf", kept)
    for salt in ("a", "b", "c"):
        compared = compare_all(checkpoint, path, salt=salt)
        assert not any(one.n_different for one in compared)
        assert len({one.piece.tensor for one in compared}) == len(read_file_header(path).tensors)
        assert judged(compared, rules=rules_of(checkpoint.config)).verdict == "proven"


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.1.attn_q.weight", "blk.2.attn_k.weight", "blk.2.ffn_down.weight",
             "blk.3.ffn_norm.weight"]
)  # fmt: skip
def test_a_tensor_that_differs_is_found_whatever_the_lot(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint()

    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = -tensors[name]

    path = checkpoint.gguf(tmp_path / "m.gguf", change=change)
    for salt in "abc":
        compared = compare_all(checkpoint, path, salt=salt)
        assert {one.piece.tensor for one in compared if one.n_different} == {name}
        found = judged(compared, rules=rules_of(checkpoint.config))
        assert found.verdict == "differs" and f"sampled values of {name} are not those of model." in found.detail
        assert found.by_values


@pytest.mark.parametrize(("kind", "wrong"), [("LlamaForCausalLM", "attn_q"), ("Gemma2ForCausalLM", "norm")])
def test_a_conversion_that_leaves_out_what_its_class_needs_differs(kind: str, wrong: str, tmp_path: Path) -> None:
    # The same weights without their reordering, or their shift: a model that computes nonsense.
    plain = Checkpoint(kind)
    plain.kind, plain.shift = "another", 0.0
    compared = compare_all(Checkpoint(kind), plain.gguf(tmp_path / "m.gguf"))
    assert any(one.n_different and wrong in one.piece.tensor for one in compared)


def test_a_difference_is_not_held_against_a_class_that_is_not_known() -> None:
    one = Compared(Piece("a", Counterpart("b")), 100, 3)
    assert judged([one], rules=Rules(known=False)).verdict == "unprovable"
    assert judged([one], rules=Rules(known=True), uncovered=("x",)).verdict == "differs"


def test_what_a_proof_needs_at_least() -> None:
    rules = Rules(known=True)
    many = [Compared(Piece(f"t{i}", Counterpart("b")), 100, 0) for i in range(8)]
    assert judged(many, rules=rules).verdict == "proven"
    assert judged(many, rules=rules, n=9).verdict == "partly"
    assert judged(many[:7], rules=rules).verdict == "unprovable"
    assert judged(many, rules=rules, uncovered=("t9 is kept in Q8_0",)).verdict == "unprovable"
    seen = Seen(frozenset(range(8)), frozenset({0}))
    found = judge(many, rules=rules, uncovered=[], seen=seen, n_tensors=8, n_files=2)
    assert found.verdict == "partly", "a file of the base model that nothing was read of"


# The sample


def test_neighbours_stay_together_and_the_beginning_is_drawn() -> None:
    names = [f"t{i}" for i in range(50)]
    orders = [in_turn(names, Draw("key", str(salt))) for salt in range(200)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert {(names.index(a) + 1) % 50 for order in orders for a in order[:-1]} >= set(range(50))
    assert all(names.index(b) == (names.index(a) + 1) % 50 for order in orders for a, b in pairwise(order))
    assert len({order[0] for order in orders}) > 40
    assert in_turn(names, Draw("key", "7")) == orders[7] and in_turn([], Draw("x")) == []


def test_the_first_and_last_values_are_drawn_as_often_as_others() -> None:
    draw, seen = Draw("x"), [0] * 100
    for _ in range(2000):
        start = draw.start(100, 10)
        assert 0 <= start <= 90
        for i in range(start, start + 10):
            seen[i] += 1
    assert min(seen) > 120 and draw.start(5, 5) == 0
    assert {draw.start(3, 1) for _ in range(50)} == {0, 1, 2}


@given(st.sets(st.integers(0, 500)), st.sets(st.integers(0, 90)), st.integers(0, 99), st.integers(0, 10**12))
def test_what_was_seen_is_stored_and_read_back(tensors: set[int], files: set[int], turns: int, values: int) -> None:
    seen = Seen(frozenset(tensors), frozenset(files), turns, values, "abc")
    assert Seen.of(seen.text()) == seen


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"tensors": "zz"}', '{"tensors": 5, "files": "1"}'])
def test_what_is_not_stored_so_is_nothing_seen(text: str) -> None:
    assert Seen.of(text) == Seen()


def test_ranges_near_each_other_take_one_request() -> None:
    assert merged([]) == []
    assert merged([(0, 10), (10 + GAP, 20 + GAP), (30 + 3 * GAP, 40 + 3 * GAP)]) == [
        (0, 20 + GAP), (30 + 3 * GAP, 40 + 3 * GAP)
    ]  # fmt: skip
    assert merged([(0, 100), (5, 50)]) == [(0, 100)]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans()), max_size=40))
def test_a_plan_never_takes_more_than_it_may(pieces: list[tuple[int, int, bool]]) -> None:
    plan = Plan(requests=9, n_bytes=12 * GAP)
    for at, other, wide in pieces:
        before = plan.cost, [plan.requests_of(file) for file in ("a", "b")]
        size = GAP if wide else 100
        taken = plan.add({"a": (at * GAP, at * GAP + size), "b": (other * GAP, other * GAP + 10)})
        after = plan.cost, [plan.requests_of(file) for file in ("a", "b")]
        if taken:
            assert any(x <= at * GAP and at * GAP + size <= y for x, y in plan.requests_of("a"))
        else:
            assert after == before
        assert plan.cost[0] == sum(map(len, after[1])) <= 9
        assert plan.cost[1] == sum(y - x for one in after[1] for x, y in one) <= 12 * GAP


LLAMA = Rules(known=True, permuted=True)


def span(tensor: Tensor, base: SafeTensor, *, expert: int | None = None, rules: Rules = Rules(known=True)) -> Any:
    config = {"num_attention_heads": 32, "num_key_value_heads": 8}
    return span_of(Piece(tensor.name, Counterpart(base.name, expert)), tensor, base, rules, config, Draw("x"))


def test_a_piece_of_a_large_tensor_lies_at_the_same_place_of_both() -> None:
    tensor = Tensor("blk.0.ffn_up.weight", (4096, 14336), "F16", 1000, 2 * 4096 * 14336)
    found = span(tensor, SafeTensor("b", "F32", (14336, 4096), 500, 4 * 4096 * 14336))
    assert found.gguf_bytes == PIECE and found.base_bytes == 2 * PIECE
    assert (found.gguf_offset - 1000) / 2 == (found.base_offset - 500) / 4
    assert found.gguf_offset + found.gguf_bytes <= 1000 + tensor.n_bytes


@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_half_a_head_are_compared_where_rows_are_reordered(bias: bool) -> None:
    # Eight heads of 128 rows: those of each half stand there by turns.
    rows = np.arange(1024, dtype=np.float32)
    values = rows if bias else np.repeat(rows[:, None], 1024, axis=1)
    ours = values.reshape(8, 2, 64, -1).swapaxes(1, 2).reshape(values.shape)
    sent, kept = ours.tobytes(), values.tobytes()
    shape, name = ((1024,), "blk.0.attn_k.bias") if bias else ((1024, 1024), "blk.0.attn_k.weight")
    wrong = 0
    for salt in range(50):
        tensor = Tensor(name, shape, "F32", 0, 4 * values.size)
        found = span_of(
            Piece(name, Counterpart("b")), tensor, SafeTensor("b", "F32", values.shape, 0, 4 * values.size), LLAMA,
            {"num_attention_heads": 32, "num_key_value_heads": 8}, Draw(str(salt)),
        )  # fmt: skip
        assert isinstance(found, Span)
        here = slice(found.gguf_offset, found.gguf_offset + found.gguf_bytes)
        there = kept[found.base_offset : found.base_offset + found.base_bytes]
        assert len(sent[here]) == found.gguf_bytes <= PIECE
        assert n_different(found, sent[here], there) == 0
        wrong += bool(n_different(found, kept[here], there))
    assert wrong > 40, "but a head's first and last row all are elsewhere without reordering"


def test_an_experts_values_are_its_own() -> None:
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
        (Tensor("token_embd.weight", (8, 98), "BF16", 0, 64), ("BF16", (100, 8)), None),
        (Tensor("blk.0.attn_q.weight", (8, 33), "BF16", 0, 528), ("BF16", (33, 8)), None),
        (Tensor("blk.0.attn_q.weight", (MAX_ROW, 64), "BF16", 0, 128 * MAX_ROW), ("BF16", (64, MAX_ROW)), None),
    ],
)
def test_what_can_not_be_compared_is_told_in_words(tensor: Tensor, base: Any, expert: int | None) -> None:
    found = span(tensor, SafeTensor("b", base[0], base[1], 0, 64), expert=expert, rules=LLAMA)
    assert isinstance(found, str) and tensor.name in found


@pytest.mark.parametrize(("rows", "fits"), [(98, True), (100, True), (89, False), (101, False)])
def test_only_tokens_that_a_converter_cuts_off_do_not_matter(rows: int, fits: bool) -> None:
    tensor = Tensor("token_embd.weight", (8, rows), "BF16", 0, 8 * rows * 2)
    found = span(tensor, SafeTensor("b", "BF16", (100, 8), 0, 1600), rules=Rules(known=True, cuts_tokens=True))
    assert isinstance(found, Span) is fits


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


# Names, generated tensors


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


def test_what_the_converter_generates_follows_from_class_and_config() -> None:
    llama, qwen, phi = (
        rules_of({"architectures": [f"{name}ForCausalLM"]}) for name in ("Llama", "Qwen2", "Phi3")
    )  # fmt: skip
    scaled = {"rope_scaling": {"rope_type": "llama3"}}
    assert to_generate(scaled, llama) == {"rope_freqs.weight"} == to_generate(scaled, Rules(known=False))
    assert to_generate(scaled, qwen) == frozenset() == to_generate({}, llama)
    long = {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}
    assert to_generate(long, phi) == {"rope_factors_long.weight", "rope_factors_short.weight"}
    assert to_generate(long, llama) == frozenset()
