"""A header's settings against config.json: what must be equal, what counts as missing, and that nothing else passes."""

from __future__ import annotations

from typing import Any

import pytest

from core.conversion import rules_of, text_config
from core.conversion_settings import settings_difference

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 8192, "vocab_size": 512,
}  # fmt: skip
HEADER: dict[str, Any] = {
    "block_count": 4, "embedding_length": 128, "feed_forward_length": 256, "attention.head_count": 4,
    "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500000.0,
    "context_length": 8192, "rope.dimension_count": 32, "vocab_size": 512,
}  # fmt: skip


def difference(
    header: dict[str, Any], config: dict[str, Any], *, arch: str = "llama", kind: str = "LlamaForCausalLM"
) -> tuple[str, bool] | None:
    """(words, whether it is certain); a value None takes what is usual away."""
    settings = {f"{arch}.{key}": value for key, value in (HEADER | header).items() if value is not None}
    known = {name: value for name, value in (CONFIG | {"architectures": [kind]} | config).items() if value is not None}
    rules = rules_of(known)
    found = settings_difference({"general.name": "x", **settings}, arch, text_config(known), rules)
    return None if found is None else (found.said, found.certain)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
YARNED = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 2048
}  # fmt: skip


@pytest.mark.parametrize(
    ("header", "config"),
    [
        ({}, {}),
        ({"rope.dimension_count": None, "vocab_size": None, "attention.key_length": 32}, {}),
        ({"attention.key_length": 32, "attention.value_length": 32}, {"head_dim": 32}),
        ({"attention.head_count_kv": None}, {"num_key_value_heads": None}),
        ({"rope.freq_base": None}, {"rope_theta": None}),
        ({}, {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        (YARNED, {"rope_scaling": YARN}),
        (YARNED | {"rope.scaling.yarn_beta_fast": 32.0}, {"rope_scaling": YARN}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
         {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ({}, {"text_config": {"num_hidden_layers": 4}, "num_hidden_layers": 9}),
        ({"context_length": 4096}, {"n_positions": 4096}),
        ({"attention.causal": False}, {"is_causal": False}),
    ],
)  # fmt: skip
def test_what_converting_gives_passes(header: dict[str, Any], config: dict[str, Any]) -> None:
    assert difference(header, config) is None


@pytest.mark.parametrize(
    ("header", "config", "said"),
    [
        ({"block_count": 3}, {}, "block_count = 3, the base model's config.json 4"),
        ({"rope.freq_base": 10000.0}, {}, "rope.freq_base = 10000"),
        ({"rope.freq_base": None}, {}, "rope.freq_base = 10000"),
        ({"logit_scale": 2.0}, {}, "logit_scale = 2, the base model's config.json has none"),
        ({"attention.scale": 50.0}, {}, "attention.scale = 50"),
        ({"attention.sliding_window": 1}, {}, "attention.sliding_window = 1"),
        ({"attention.key_length": 64}, {}, "attention.key_length = 64, the base model's config.json 32"),
        ({"rope.dimension_count": 2}, {}, "rope.dimension_count = 2"),
        ({"expert_gating_func": 2}, {}, "expert_gating_func = 2"),
        ({"expert_used_count": 1}, {}, "expert_used_count = 1"),
        ({"attention.causal": False}, {}, "attention.causal"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 16.0}, {"rope_scaling": {"rope_type": "llama3"}},
         "rope.scaling.type = linear"),
        ({"rope.scaling.factor": 16.0}, {}, "rope.scaling.factor = 16"),
        (YARNED | {"rope.scaling.factor": 2.0}, {"rope_scaling": YARN}, "factor = 2"),
        (YARNED | {"rope.scaling.yarn_beta_fast": 64.0}, {"rope_scaling": YARN}, "yarn_beta_fast = 64"),
        (YARNED | {"rope.scaling.attn_factor": 3.0}, {"rope_scaling": YARN}, "attn_factor = 3"),
        ({}, {"rope_scaling": YARN}, "rope.scaling.type = none"),
        ({"rope.freq_base_swa": 5.0}, {}, "rope.freq_base_swa = 5"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, {}, "layer_norm_rms_epsilon = nan"),
    ],
)  # fmt: skip
def test_the_same_weights_under_other_settings_are_another_model(
    header: dict[str, Any], config: dict[str, Any], said: str
) -> None:
    found = difference(header, config)
    assert found and said in found[0] and found[1]


@pytest.mark.parametrize(
    ("header", "config"),
    [
        ({"expert_weights_scale": 0.0}, {}),
        ({"rope.scale_linear": 4.0}, {}),
        ({"rope.scaling.finetuned": True}, {}),
        ({"attention.clamp_kqv": 1.0}, {}),
        ({"pooling_type": 1}, {}),
        ({"attention.head_count": [1, 1, 1, 1]}, {}),
        ({"attention.head_count_kv": [2, 2, 2, 2]}, {}),
        ({"feed_forward_length": "256"}, {}),
        ({"attention.head_count": True}, {"num_attention_heads": "four"}),
        ({"attention.causal": 0}, {}),
        ({"rope.scaling.type": 3}, {}),
        ({"context_length": 131072}, {}),
        ({"block_count": None}, {}),
        ({"attention.layer_norm_rms_epsilon": None}, {}),
        ({"attention.layer_norm_epsilon": 1e-5}, {}),
        ({"attention.sliding_window_pattern": [True, False, True, False]}, {}),
    ],
)  # fmt: skip
def test_what_is_not_listed_or_no_single_value_can_not_be_judged(
    header: dict[str, Any], config: dict[str, Any]
) -> None:
    found = difference(header, config)
    assert found and not found[1]


@pytest.mark.parametrize("key", ["xielu.alpha_n", "general.tensor_extra.name"])
def test_what_llama_cpp_reads_beside_an_architectures_keys_is_not_let_through(key: str) -> None:
    kv = {f"llama.{name}": value for name, value in HEADER.items()} | {key: [1.0]}
    found = settings_difference(kv, "llama", CONFIG, rules_of(CONFIG))
    assert found and not found.certain and key in found.said


GEMMA_2 = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096, "rope_theta": None}
GRANITE = {
    "attention_multiplier": 0.015, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0,
    "head_dim": 7,
}  # fmt: skip
GRANITED = {"attention.scale": 0.015, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}
EXAONE = {"sliding_window": 4096, "sliding_window_pattern": "LLLG", "head_dim": 32}
PHI = {"original_max_position_embeddings": 4096, "sliding_window": None, "rope_theta": 10000.0}
PHI_LONG = PHI | {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}


@pytest.mark.parametrize(
    ("kind", "arch", "config", "header", "certain"),
    [
        ("Gemma2ForCausalLM", "gemma2", GEMMA_2, {"rope.freq_base": None}, None),
        ("Gemma2ForCausalLM", "gemma2", GEMMA_2, {"rope.freq_base": None, "attention.sliding_window": 1}, True),
        ("Gemma2ForCausalLM", "gemma2", GEMMA_2 | {"sliding_window": 512}, {"rope.freq_base": None}, True),
        ("GraniteForCausalLM", "granite", GRANITE, GRANITED, None),
        ("GraniteForCausalLM", "granite", GRANITE, {}, True),
        ("GraniteForCausalLM", "granite", GRANITE, GRANITED | {"residual_scale": 1.0}, True),
        ("Exaone4ForCausalLM", "exaone4", EXAONE,
         {"attention.sliding_window": 4096, "attention.sliding_window_pattern": [True, True, True, False]}, None),
        ("Exaone4ForCausalLM", "exaone4", EXAONE,
         {"attention.sliding_window": 4096, "attention.sliding_window_pattern": [True] * 4}, False),
        ("Phi3ForCausalLM", "phi3", PHI,
         {"rope.freq_base": 10000.0, "rope.scaling.original_context_length": 4096, "attention.sliding_window": 0},
         None),
        ("Phi3ForCausalLM", "phi3", PHI_LONG,
         {"rope.freq_base": 10000.0, "rope.scaling.original_context_length": 4096,
          "rope.scaling.attn_factor": 1.0408332}, None),
        ("Phi3ForCausalLM", "phi3", PHI_LONG,
         {"rope.freq_base": 10000.0, "rope.scaling.original_context_length": 4096}, True),
        ("CohereForCausalLM", "command-r", {"logit_scale": 0.06, "rms_norm_eps": None, "layer_norm_eps": 1e-5},
         {"logit_scale": 0.06, "attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5,
          "rope.scaling.type": "none"}, None),
        ("Qwen3MoeForCausalLM", "qwen3moe", {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
         {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 64}, None),
        ("Qwen3MoeForCausalLM", "qwen3moe", {"num_experts": 8, "num_experts_per_tok": 2},
         {"expert_count": 8, "expert_used_count": 1}, True),
        ("LlamaForCausalLM", "qwen2", {}, {}, True),
    ],
)  # fmt: skip
def test_each_class_has_settings_of_its_own(
    kind: str, arch: str, config: dict[str, Any], header: dict[str, Any], certain: bool | None
) -> None:
    found = difference(header, config, arch=arch, kind=kind)
    assert (found[1] if found else None) is certain, found


@pytest.mark.parametrize(
    ("config", "arch", "passes"),
    [
        ({}, "llama", True),
        (
            {"initializer_range": 0.02, "attention_bias": True, "torch_dtype": "bfloat16", "eos_token_id": 2},
            "llama",
            True,
        ),
        ({}, "qwen2", False),
        ({"model_type": None}, "llama", False),
        ({"clip_qkv": None}, "llama", True),
        ({"clip_qkv": 8.0}, "llama", False),
        ({"sliding_window": 512}, "llama", False),
    ],
)
def test_a_class_that_is_not_known_passes_only_with_what_every_class_has(
    config: dict[str, Any], arch: str, passes: bool
) -> None:
    found = difference({}, config, arch=arch, kind="UnheardOfForCausalLM")
    assert found is None if passes else found and not found[1]


def test_a_difference_of_a_class_that_is_not_known_is_not_certain() -> None:
    found = difference({"rope.freq_base": 5.0}, {}, kind="UnheardOfForCausalLM")
    assert found and not found[1]


def test_what_gemma_3_leaves_out_of_its_config_is_known() -> None:
    kind = "Gemma3ForConditionalGeneration"
    inner = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {"architectures": [kind], "text_config": inner}
    header = {
        "block_count": 34, "embedding_length": 2560, "feed_forward_length": 10240, "attention.head_count": 8,
        "attention.head_count_kv": 4, "attention.key_length": 256, "attention.value_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6, "context_length": 131072,
        "attention.sliding_window": 1024,
    }  # fmt: skip
    for changed, certain in (({}, None), ({"attention.key_length": 320}, True), ({"rope.freq_base": 10000.0}, True)):
        kv = {f"gemma3.{key}": value for key, value in (header | changed).items()}
        found = settings_difference(kv, "gemma3", text_config(config), rules_of(config))
        assert (found.certain if found else None) is certain, found
