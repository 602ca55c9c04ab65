"""Whether a header's settings are those that converting a ``config.json`` gives: by a list of what may stand there.

Each key of the architecture must be known here and equal what follows from the config; what is missing counts as
llama.cpp's default. One that is not known may change what the same weights compute, so that nothing can be said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isclose, log, sqrt
from typing import Any, Final

from core.conversion import Mismatch, Rules, number, rope_of

#: Names that ``config.json`` has for a setting, by its key.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "block_count": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "embedding_length": ("hidden_size", "n_embd", "dim"),
    "feed_forward_length": ("intermediate_size", "n_inner", "hidden_dim"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "n_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "vocab_size": ("vocab_size",),
}
_CONTEXT: Final = ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length",
                   "model_max_length")  # fmt: skip
_THETA: Final = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
_LOCAL_THETA: Final = ("local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta",
                       "rope_local_base_freq")  # fmt: skip
#: What is in a header because its architecture has it, and the config's name.
_OWN: Final[dict[str, dict[str, str]]] = {
    "granite": {
        "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
    },
    "command-r": {"logit_scale": "logit_scale"},
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
        "attention.sliding_window": "sliding_window",
    },
    "gemma3": {"final_logit_softcapping": "final_logit_softcapping", "attention.sliding_window": "sliding_window"},
    "phi3": {"attention.sliding_window": "sliding_window"},
    "olmo2": {"attention.sliding_window": "sliding_window"},
    "exaone4": {"attention.sliding_window": "sliding_window"},
}  # fmt: skip
#: What llama.cpp takes for a setting that is not there. Others are needed, or follow from the rest.
_DEFAULTS: Final[dict[str, Any]] = {
    "expert_count": 0, "expert_used_count": 0, "expert_group_count": 0, "expert_group_used_count": 0,
    "expert_gating_func": 1, "attention.causal": True, "attention.scale": 0, "embedding_scale": 0,
    "residual_scale": 0, "logit_scale": 0, "attn_logit_softcapping": 0, "final_logit_softcapping": 0,
    "attention.sliding_window": 0, "rope.freq_base": 10000.0, "rope.scaling.type": "none", "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
}  # fmt: skip
_GEMMA_2_DEFAULTS: Final = {
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 4096
}  # fmt: skip
#: What may be missing: llama.cpp does not need it, or refuses the file without it.
_FREE: Final = frozenset(
    {"vocab_size", "feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"}
)
_GATING: Final = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}
_SCORE: Final = ("score_function", "scoring_func", "score_func", "moe_router_activation", "expert_selection_fn")
#: What of a class that is not known may stand in its config without a meaning for its weights.
_HARMLESS: Final = re.compile(
    r"architectures|model_type|\w*dtype|transformers_version|vocab_size|\w+_token_id|use_cache|initializer_range"
    r"|\w*dropout\w*|\w*pdrop|pretraining_tp|auto_map|_name_or_path|hidden_act\w*|activation_function|\w+_bias"
    r"|tie_word_embeddings|rope_scaling|rope_parameters|head_dim|original_max_position_embeddings|text_config"
)


def settings_difference(
    kv: Mapping[str, Any], architecture: str, config: Mapping[str, Any], rules: Rules
) -> Mismatch | None:
    """Words when a header's settings are not those of ``config.json``, or can't be derived from it.

    Args:
        config: as :func:`core.conversion.text_config` gives it.
    """
    if found := _other_architecture(architecture, config, rules):
        return found
    ours = {
        key.removeprefix(f"{architecture}."): value
        for key, value in kv.items()
        if key.startswith((f"{architecture}.", "xielu.", "general.tensor_extra."))
    }
    expected, defaults = _expected(config, rules, ours)
    for key in sorted(ours.keys() - expected.keys()):
        return Mismatch(f"its header sets {key[:80]}, which can't be derived from the base model's config.json", False)
    for key, due in expected.items():
        default = defaults.get(key)
        if found := _differs(key, ours.get(key), due, default):
            return Mismatch(found.said, found.certain and rules.known)
    return None


def _other_architecture(architecture: str, config: Mapping[str, Any], rules: Rules) -> Mismatch | None:
    if rules.known:
        if architecture == rules.architecture:
            return None
        said = f"its header's architecture is {architecture[:40]!r}, its base model's {rules.architecture!r}"
        return Mismatch(said, True)
    kind = str(config.get("model_type", "")).lower().removesuffix("_text")
    if re.sub(r"\W|_", "", kind) != re.sub(r"\W|_", "", architecture.lower()):
        return Mismatch("how the base model's class is converted is not known here", False)
    known = {name for names in _NAMES.values() for name in names} | {*_CONTEXT, *_THETA, *_SCORE}
    for name, value in config.items():
        if value not in (None, False, [], {}) and name not in known and not _HARMLESS.fullmatch(name):
            said = f"how the base model's class is converted is not known here, and its config.json sets {name[:80]}"
            return Mismatch(said, False)
    return None


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := number(config.get(name))) is not None), None)


def _expected(
    config: Mapping[str, Any], rules: Rules, ours: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what each key must be, what it is where it is missing); None: ``config`` does not say."""
    arch = rules.architecture or ""
    due: dict[str, Any] = dict.fromkeys(_DEFAULTS)
    due |= {key: _first(config, names) for key, names in _NAMES.items()}
    heads, width = due["attention.head_count"], due["embedding_length"]
    plain = width // heads if heads and width else None
    head = _first(config, ("head_dim",)) or plain
    if due["attention.head_count_kv"] is None:
        due["attention.head_count_kv"] = heads
    due |= {"attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head}
    due |= {key: number(config.get(name)) for key, name in _OWN.get(arch, {}).items()}
    if arch == "olmoe":
        due["attention.layer_norm_rms_epsilon"] = 1e-5
    if arch == "gemma3" and config.get("sliding_window_pattern") == 1:
        due["attention.sliding_window"] = None
    due["expert_gating_func"] = next((_GATING.get(str(config[name])) for name in _SCORE if name in config), None)
    due["attention.causal"] = config.get("is_causal") is not False
    contexts = [value for name in _CONTEXT if (value := number(config.get(name))) is not None]
    # Either of several that a config may have.
    ctx = number(ours.get("context_length"))
    due["context_length"] = ctx if ctx in contexts or not contexts else contexts[0]
    _expect_rope(due, config, rules)
    if arch in ("olmo2", "exaone4"):
        due["attention.sliding_window_pattern"] = _pattern(config, due["block_count"])
    defaults = dict(_DEFAULTS)
    if arch == "gemma2":
        defaults |= _GEMMA_2_DEFAULTS
    defaults |= {
        "attention.head_count_kv": heads, "attention.key_length": plain, "attention.value_length": plain,
        "rope.dimension_count": number(ours.get("attention.key_length")) or plain,
        "rope.scaling.original_context_length": ctx,
        "rope.freq_base_swa": 10000.0 if arch == "gemma3" else due["rope.freq_base"],
    }  # fmt: skip
    return due, defaults


def _expect_rope(due: dict[str, Any], config: Mapping[str, Any], rules: Rules) -> None:
    arch, rope = rules.architecture, rope_of(config)
    theta = _first(rope, ("rope_theta",)) or _first(config, _THETA)
    # The converters of the first two Gemmas write none.
    due["rope.freq_base"] = None if arch in ("gemma", "gemma2") else theta
    inner = (config.get("rope_parameters") or {}) if isinstance(config.get("rope_parameters"), dict) else {}
    local = inner.get("sliding_attention")
    due["rope.freq_base_swa"] = _first(local if isinstance(local, dict) else {}, ("rope_theta",))
    if due["rope.freq_base_swa"] is None:
        due["rope.freq_base_swa"] = _first(config, _LOCAL_THETA)
    kind = str(rope.get("rope_type", rope.get("type", ""))).lower()
    factor = _first(rope, ("factor",))
    original = _first(rope, ("original_max_position_embeddings",))
    original = original or _first(config, ("original_max_position_embeddings",))
    due["rope.scaling.original_context_length"] = None
    part = _first(rope, ("partial_rotary_factor",)) or _first(config, ("partial_rotary_factor", "rope_pct"))
    if arch == "phi3":
        due["rope.scaling.original_context_length"] = original
        width, heads = due["embedding_length"], due["attention.head_count"]
        due["rope.dimension_count"] = int((part or 1.0) * width) // heads if width and heads else None
        if rope.get("long_factor"):
            due["rope.scaling.attn_factor"] = _attn_factor(kind, due["context_length"], original)
    elif arch == "command-r":
        due["rope.scaling.type"] = "none"
    elif kind == "linear" and factor is not None:
        due |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
    elif kind == "yarn" and factor is not None:
        due |= {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
        due["rope.scaling.original_context_length"] = original
        due["rope.scaling.yarn_ext_factor"] = _first(rope, ("extrapolation_factor",))
        due["rope.scaling.yarn_attn_factor"] = _first(rope, ("attention_factor", "attn_factor"))
        due["rope.scaling.yarn_beta_fast"] = _first(rope, ("beta_fast",))
        due["rope.scaling.yarn_beta_slow"] = _first(rope, ("beta_slow",))
    elif kind in ("su", "longrope"):
        due["rope.scaling.type"] = "longrope"


def _attn_factor(kind: str, length: float | None, original: float | None) -> float | None:
    if not length or not original or original <= 1:
        return None
    scale = length / original
    if scale <= 1:
        return 1.0
    return 0.1 * log(scale) + 1 if kind == "yarn" else sqrt(1 + log(scale) / log(original))


def _pattern(config: Mapping[str, Any], n_blocks: float | None) -> list[bool] | None:
    """Which layers attend in a window; None where the converter writes none."""
    if config.get("sliding_window") is None or not n_blocks or n_blocks > 256:
        return None
    types, every = config.get("layer_types"), config.get("sliding_window_pattern")
    if isinstance(types, list):
        return [kind == "sliding_attention" for kind in types[:256]]
    if isinstance(every, str) and every:
        return [every[i % len(every)] == "L" for i in range(int(n_blocks))]
    if type(every) is int and every > 0:
        return [(i + 1) % every != 0 for i in range(int(n_blocks))]
    return None


def _differs(key: str, found: Any, due: Any, default: Any) -> Mismatch | None:
    """Words when a setting is not what it must be."""
    if isinstance(due, list) or isinstance(found, list) or key == "attention.sliding_window_pattern":
        if found == due:
            return None
        return Mismatch(f"its header's {key} is not what can be derived from the base model's config.json", False)
    wants = str if key == "rope.scaling.type" else bool if key == "attention.causal" else float
    if found is not None and not (number(found) is not None if wants is float else isinstance(found, wants)):
        return Mismatch(f"its header's {key} is not one {'number' if wants is float else 'value'}", False)
    if found is None and default is None:
        if due is None or key in _FREE:
            return None
        return Mismatch(f"its header lacks {key}", False)
    if due is None and default is None:
        said = f"its header says {key} = {_told(found)}, which can't be derived from the base model's config.json"
        return Mismatch(said, False)
    ours, theirs = (default if value is None else value for value in (found, due))
    if wants is float and isclose(ours, theirs, rel_tol=1e-6):
        return None
    if ours == theirs:
        return None
    its = "has none" if due is None else _told(theirs)
    # A longer context by itself changes nothing.
    said = f"its header says {key} = {_told(ours)}, the base model's config.json {its}"
    return Mismatch(said, key != "context_length")


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)[:40]
