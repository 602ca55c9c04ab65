"""Each side's tensors by the other's: what is missing, what is too much, what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.conversion import Mismatch, Names, rules_of, text_config
from core.correspondence import Correspondence, correspond
from tests.checkpoints import Checkpoint

Change = Callable[[dict[str, Any]], object]


def without(*ends: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(ends)]:
            del tensors[name]

    return change


def nothing(_: dict[str, Any]) -> None:
    return None


def found(
    kind: str = "LlamaForCausalLM",
    *,
    ours: Change = nothing,
    theirs: Change = nothing,
    tied: bool = False,
    **config: Any,
) -> Correspondence | Mismatch:
    """An honest GGUF and its checkpoint, after ``ours`` changed the one and ``theirs`` the other."""
    checkpoint = Checkpoint(kind, layers=2, tied=tied)
    converted, tensors = checkpoint.converted(), dict(checkpoint.tensors)
    ours(converted)
    theirs(tensors)
    known = text_config(checkpoint.config | config)
    shapes = {name: values.shape[::-1] for name, values in converted.items()}
    return correspond(shapes, tensors, Names(checkpoint.arch, 2), known, rules_of(known))


@pytest.mark.parametrize(
    "kind", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "Gemma2ForCausalLM", "UnheardOfForCausalLM"]
)
def test_an_honest_conversion_has_all_of_both(kind: str) -> None:
    both = found(kind)
    assert isinstance(both, Correspondence) and not both.generated
    assert sorted({one.name for those in both.counterparts.values() for one in those}) == sorted(
        Checkpoint(kind, layers=2).tensors
    )


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("LlamaForCausalLM", without("output.weight"), "lacks"),
        ("LlamaForCausalLM", lambda t: t.pop("output.weight"), "It lacks output.weight"),
        ("Qwen2ForCausalLM", without(".bias"), "It lacks blk.0.attn_q.bias"),
        ("LlamaForCausalLM", without("blk.1.attn_q.weight"), "It lacks blk.1.attn_q.weight"),
        ("LlamaForCausalLM", without("blk.0.attn_norm.weight"), "It lacks blk.0.attn_norm.weight"),
        ("Qwen3MoeForCausalLM", without("blk.1.ffn_gate_inp.weight"), "It lacks blk.1.ffn_gate_inp.weight"),
    ],
)
def test_what_is_missing_is_noticed(kind: str, change: Change, said: str) -> None:
    it = found(kind, ours=change)
    assert isinstance(it, Mismatch) and it.certain and said.lower() in it.said.lower()


def test_of_a_class_that_is_not_known_what_is_missing_is_no_accusation() -> None:
    it = found("UnheardOfForCausalLM", ours=without("blk.1.ffn_up.weight"))
    assert isinstance(it, Mismatch) and not it.certain


def test_a_head_may_be_missing_only_where_it_is_the_embeddings() -> None:
    def head(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    assert isinstance(found(tied=True), Correspondence)
    assert isinstance(found("Gemma2ForCausalLM", theirs=head), Correspondence), "its converter leaves it out"
    assert isinstance(found(tied=True, theirs=head, tie_word_embeddings=True), Correspondence)
    for said in (False, "true", None):
        assert isinstance(found(tied=True, theirs=head, tie_word_embeddings=said), Mismatch)
    doubled = found(tied=True, ours=lambda t: t.update({"output.weight": t["token_embd.weight"]}))
    assert isinstance(doubled, Correspondence)
    assert doubled.counterparts["output.weight"] == doubled.counterparts["token_embd.weight"]


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}


def rope(tensors: dict[str, Any]) -> None:
    tensors["rope_freqs.weight"] = tensors["output_norm.weight"][:16]


def test_what_the_converter_generates_must_be_there_and_only_then() -> None:
    lacking = found(rope_scaling=LLAMA_3)
    assert isinstance(lacking, Mismatch) and lacking.certain and "rope_freqs.weight" in lacking.said
    there = found(rope_scaling=LLAMA_3, ours=rope)
    assert isinstance(there, Correspondence) and there.generated == {"rope_freqs.weight"}
    assert "rope_freqs.weight" not in there.counterparts
    for kind, config in (("LlamaForCausalLM", {}), ("Qwen2ForCausalLM", {"rope_scaling": LLAMA_3})):
        it = found(kind, ours=rope, **config)
        assert isinstance(it, Mismatch) and not it.certain and "no counterpart" in it.said


@pytest.mark.parametrize("name", ["blk.0.attn_q.scale", "blk.1.attn_q.bias", "strange.weight", "blk.7.ffn_up.weight"])
def test_what_is_too_much_makes_a_file_unprovable(name: str) -> None:
    it = found(ours=lambda t: t.update({name: t["output_norm.weight"]}))
    assert isinstance(it, Mismatch) and not it.certain and name in it.said


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("transformer.h.0.attention.masked_bias", True),
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", True),
        ("multi_modal_projector.linear_1.weight", True),
        ("model.layers.2.mlp.up_proj.weight", False),
        ("model.layers.0.adapter.weight", False),
    ],
)
def test_what_of_the_checkpoint_has_no_place(name: str, passes: bool) -> None:
    it = found(theirs=lambda t: t.update({name: t["model.norm.weight"]}))
    assert isinstance(it, Correspondence) is passes


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda t: t.update({"blk.0.ffn_up_exps.weight": t["blk.0.ffn_up_exps.weight"][:3]}), nothing),
        (nothing, without("layers.0.mlp.experts.1.up_proj.weight")),
        (nothing, lambda t: t.update({"model.layers.0.mlp.experts.up_proj.weight": t["model.norm.weight"]})),
        (nothing, lambda t: t.update({"language_model.model.norm.weight": t["model.norm.weight"]})),
    ],
)
def test_experts_and_names_that_are_not_one_to_one(ours: Change, theirs: Change) -> None:
    it = found("Qwen3MoeForCausalLM", ours=ours, theirs=theirs)
    assert isinstance(it, Mismatch) and not it.certain
