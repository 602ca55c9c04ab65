"""What convert_hf_to_gguf does to a model's tensors and settings, as far as a proof needs it: names, order, types.

Names are gguf's own map. What converters change beyond that was read in llama.cpp's ``conversion/*.py``, for the
classes listed here; of other classes only what comes out unchanged can be recognized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose, pi
from typing import Any, Final

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import quantize
from gguf.tensor_mapping import TensorNameMap
from numpy.typing import NDArray

MAX_BLOCKS: Final = 256
#: Tensor types that keep weights unquantized, with their bytes an element.
FLOATS: Final = {"F32": 4, "F16": 2, "BF16": 2}

#: Classes whose query and key rows are reordered head by head (``undo_permute``).
_PERMUTED: Final = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "SmolLM3ForCausalLM", "GraniteForCausalLM"}
)
#: Classes whose norms are stored as the difference to one.
_SHIFTED: Final = frozenset(
    {"GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"}
)
#: Classes whose tensors are only renamed, and experts stacked.
_PLAIN: Final = frozenset(
    {"Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM"}
    | {"Olmo2ForCausalLM", "OlmoeForCausalLM", "Starcoder2ForCausalLM", "CohereForCausalLM", "SeedOssForCausalLM"}
    | {"Exaone4ForCausalLM"}
)
_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,5})\.(.+)", re.DOTALL)
_BLOCK = re.compile(r"\Ablk\.(\d+)\.")
#: Parts of multimodal models, which are no part of the text model's GGUF.
_OTHER_PARTS = ("visual.", "vision.", "vision_", "audio.", "audio_", "talker.", "token2wav.", "projector.", "patch_")


@dataclass(frozen=True, slots=True)
class Rules:
    """How a class is converted. ``known``: a tensor that comes out otherwise was not made from these weights."""

    known: bool
    permuted: bool = False
    norm_shift: float = 0.0


def rules_of(config: Mapping[str, Any]) -> Rules:
    """The rules of the class that a model's ``config.json`` names."""
    named = config.get("architectures")
    kind = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    return Rules(
        known=kind in _PERMUTED | _SHIFTED | _PLAIN,
        permuted=kind in _PERMUTED,
        norm_shift=1.0 if kind in _SHIFTED else 0.0,
    )


class Names:
    """The GGUF names of a checkpoint's tensors."""

    def __init__(self, architecture: str, n_blocks: int) -> None:
        """Raises ValueError for an architecture that gguf does not know, or a number of blocks that can't be true."""
        found = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
        if found is None or not 0 < n_blocks <= MAX_BLOCKS:
            raise ValueError(f"gguf knows no {architecture!r} of {n_blocks} blocks")
        # gguf's own class changes a table that all its instances share.
        own = type("_OwnTable", (TensorNameMap,), {"block_mappings_cfg": dict(TensorNameMap.block_mappings_cfg)})
        self._map: TensorNameMap = own(found, n_blocks)

    def of(self, name: str) -> tuple[str, int | None] | None:
        """The GGUF tensor that a checkpoint's tensor goes to, and as which expert; None for what has no place."""
        if any(part in name for part in _OTHER_PARTS):
            return None
        name = name.replace("language_model.", "").replace("e_score_correction_bias", "e_score_correction.bias")
        split = _EXPERT.fullmatch(name)
        merged = f"{split[1]}.{split[3]}" if split else name
        found = self._map.get_name(merged, try_suffixes=(".weight", ".bias"))
        return (found, int(split[2]) if split else None) if found else None


def role_of(tensor: str) -> str:
    """What a tensor is, whichever block it is in: ``blk.*.ffn_up.weight``."""
    return _BLOCK.sub("blk.*.", tensor)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the text model's own values on top."""
    inner = config.get("text_config")
    return {**config, **(inner if isinstance(inner, dict) else {})}


def as_floats(raw: bytes, kind: str) -> NDArray[np.float32]:
    """Values of a type of :data:`FLOATS` as f32, which holds each of them exactly."""
    if kind == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if kind == "F32" else "<f2").astype(np.float32)


def converted(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """``values`` as they come back from a GGUF tensor of this type."""
    if kind == "F32":
        return values
    with np.errstate(over="ignore"):
        raw = quantize(np.ascontiguousarray(values), GGMLQuantizationType[kind])
    return as_floats(raw.tobytes(), kind)


def permuted(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Rows of ``n_heads`` whole heads, shape (rows, row length), in llama.cpp's order."""
    rows, length = values.shape
    return values.reshape(n_heads, 2, rows // n_heads // 2, length).swapaxes(1, 2).reshape(rows, length)


def heads_of(tensor: str, config: Mapping[str, Any]) -> int | None:
    """How many heads the rows of a query or key tensor are of; None where ``config`` does not say."""
    heads, kv = config.get("num_attention_heads"), config.get("num_key_value_heads")
    found = (kv if kv is not None else heads) if ".attn_k." in tensor else heads
    return found if type(found) is int and found > 0 else None


def generated(tensor: str, config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """A tensor that the converter makes from ``config.json`` alone (RoPE factors), or None where it makes none."""
    rope = _rope(config)
    if tensor in ("rope_factors_long.weight", "rope_factors_short.weight"):
        factors = rope.get("long_factor" if "long" in tensor else "short_factor")
        return _row(factors)
    if tensor != "rope_freqs.weight" or str(rope.get("rope_type", rope.get("type"))).lower() != "llama3":
        return None
    try:
        theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
        n = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        factor, low, high = (
            float(rope.get(name, default))
            for name, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
        )
        length = float(rope.get("original_max_position_embeddings", 8192))
        if not 0 < n <= 4096 or high == low:
            return None
        waves = 2 * pi * np.power(theta, np.arange(0, n, 2) / n)
        smooth = (length / waves - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        return None
    return np.where(waves < length / high, 1.0, np.where(waves > length / low, factor, between)).astype(np.float32)


def differing_generated(tensor: str, raw: bytes, kind: str, config: Mapping[str, Any]) -> str | None:
    """Words when a generated tensor's bytes are not what ``config.json`` gives, or can't be checked."""
    expected = generated(tensor, config)
    if kind != "F32" or expected is None:
        return f"{tensor} can't be derived from the base model's config.json"
    found = as_floats(raw[: len(raw) // 4 * 4], kind)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=0):
        return f"{tensor} is not what the base model's config.json gives"
    return None


def _row(values: Any) -> NDArray[np.float32] | None:
    if not isinstance(values, list) or not 0 < len(values) <= 4096 or not all(_number(v) is not None for v in values):
        return None
    return np.array(values, dtype=np.float32)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, dict):
        return {}
    inner = found.get("full_attention")
    return inner if isinstance(inner, dict) else found


#: What a header says, and the names that ``config.json`` has for it.
_SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "block_count": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "embedding_length": ("hidden_size", "n_embd", "dim"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "n_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
}
#: What changes every logit and is in a header only because ``config.json`` has it.
_ONLY_IF_GIVEN: Final = frozenset({"attn_logit_softcapping", "final_logit_softcapping", "logit_scale"})


def settings_difference(kv: Mapping[str, Any], architecture: str, config: Mapping[str, Any]) -> str | None:
    """A sentence when a header's settings are not those of ``config.json``: the same weights would compute otherwise.

    Only what changes a model's output and stands in both under a known name is compared, and RoPE.
    """
    rope = _rope(config)
    for key, names in _SETTINGS.items():
        ours = _number(kv.get(f"{architecture}.{key}"))
        theirs = next((value for name in names if (value := _number(config.get(name))) is not None), None)
        if ours is not None and theirs is None and key in _ONLY_IF_GIVEN:
            return f"its header says {key} = {ours:g}, the base model's config.json has none"
        if ours is not None and theirs is not None and not isclose(ours, theirs, rel_tol=1e-6):
            return f"its header says {key} = {ours:g}, the base model's config.json {theirs:g}"
    theta = _number(rope.get("rope_theta", config.get("rope_theta")))
    ours = _number(kv.get(f"{architecture}.rope.freq_base", 10000.0))
    if theta is not None and ours is not None and not isclose(ours, theta, rel_tol=1e-6):
        return f"its header says rope.freq_base = {ours:g}, the base model's config.json {theta:g}"
    scaling, factor = (
        kv.get(f"{architecture}.rope.scaling.type"),
        _number(kv.get(f"{architecture}.rope.scaling.factor")),
    )
    kind = str(rope.get("rope_type", rope.get("type", "none"))).lower()
    if (scaling not in (None, "none") or factor not in (None, 0.0, 1.0)) and kind in ("none", "default"):
        return f"its header scales RoPE ({str(scaling)[:40]}), the base model's config.json does not"
    given = _number(rope.get("factor"))
    if kind in ("linear", "yarn") and given is not None and not isclose(factor or 1.0, given, rel_tol=1e-6):
        return f"its header scales RoPE by {factor or 1.0:g}, the base model's config.json by {given:g}"
    return None
