"""What convert_hf_to_gguf does to a model's tensors and settings, as far as a proof needs it: names, order, types.

Names are gguf's own map. What converters change beyond that was read in llama.cpp's ``conversion/*.py``, for the
classes listed here; of other classes only what comes out unchanged can be recognized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any, Final

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import quantize
from gguf.tensor_mapping import TensorNameMap
from numpy.typing import NDArray

MAX_BLOCKS: Final = 256
#: Tensor types that keep weights unquantized, with their bytes an element.
FLOATS: Final = {"F32": 4, "F16": 2, "BF16": 2}

_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,5})\.(.+)", re.DOTALL)
_BLOCK = re.compile(r"\Ablk\.(\d+)\.")
#: Parts of multimodal models, which are no part of the text model's GGUF.
_OTHER_PARTS = (
    "visual.", "vision.", "vision_", "audio.", "audio_", "talker.", "token2wav.", "code2wav.", "projector.",
    "patch_embed", "patch_merge", "image_newline", "model.connector.",
)  # fmt: skip
_OTHER_MODULES = ("vit.", "vpm.", "siglip2.", "conformer.", "merger.", "resampler.", "sound_", "speech_embeddings.")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a GGUF is not what converting gives: words that begin a sentence.

    ``certain``: it can't have been made so from these weights. Otherwise it only can't be said.
    """

    said: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """How a class is converted. ``known``: a tensor that comes out otherwise was not made from these weights.

    Attributes:
        architecture: what its files call themselves; None where the class is not known.
        permuted: query and key rows are reordered head by head (``undo_permute``).
        norm_shift: norms are stored as the difference to this.
        rope_freqs: RoPE factors of Llama 3 become a tensor.
        cuts_tokens: rows of the embeddings that the tokenizer does not know are left out.
        drops_head: a head that stands in the checkpoint is left out, since it is the embeddings.
    """

    known: bool
    architecture: str | None = None
    permuted: bool = False
    norm_shift: float = 0.0
    rope_freqs: bool = False
    cuts_tokens: bool = False
    drops_head: bool = False


def _llama(architecture: str) -> Rules:
    return Rules(True, architecture, permuted=True, rope_freqs=True)


_GEMMA_3: Final = Rules(True, "gemma3", norm_shift=1.0, cuts_tokens=True)
#: What a Gemma 3 has where its ``config.json`` leaves it out.
_GEMMA_3_DEFAULTS: Final[dict[str, Any]] = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072, "rope_theta": 1e6,
}  # fmt: skip
_CLASSES: Final[dict[str, Rules]] = {
    "LlamaForCausalLM": _llama("llama"),
    "MistralForCausalLM": _llama("llama"),
    "MixtralForCausalLM": _llama("llama"),
    "SmolLM3ForCausalLM": _llama("smollm3"),
    "GraniteForCausalLM": _llama("granite"),
    "GemmaForCausalLM": Rules(True, "gemma", norm_shift=1.0, drops_head=True),
    "Gemma2ForCausalLM": Rules(True, "gemma2", norm_shift=1.0, drops_head=True),
    "Gemma3ForCausalLM": _GEMMA_3,
    "Gemma3ForConditionalGeneration": _GEMMA_3,
    "Exaone4ForCausalLM": Rules(True, "exaone4", rope_freqs=True),
    # Tensors are only renamed, and experts stacked.
    "Qwen2ForCausalLM": Rules(True, "qwen2"),
    "Qwen2MoeForCausalLM": Rules(True, "qwen2moe"),
    "Qwen3ForCausalLM": Rules(True, "qwen3"),
    "Qwen3MoeForCausalLM": Rules(True, "qwen3moe"),
    "Phi3ForCausalLM": Rules(True, "phi3"),
    "Olmo2ForCausalLM": Rules(True, "olmo2"),
    "OlmoeForCausalLM": Rules(True, "olmoe"),
    "Starcoder2ForCausalLM": Rules(True, "starcoder2"),
    "CohereForCausalLM": Rules(True, "command-r"),
    "SeedOssForCausalLM": Rules(True, "seed_oss"),
}


def rules_of(config: Mapping[str, Any]) -> Rules:
    """The rules of the class that a model's ``config.json`` names."""
    named = config.get("architectures")
    kind = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    return _CLASSES.get(kind, Rules(known=False))


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
        if is_other_part(name):
            return None
        name = name.replace("language_model.", "").replace("e_score_correction_bias", "e_score_correction.bias")
        split = _EXPERT.fullmatch(name)
        merged = f"{split[1]}.{split[3]}" if split else name
        found = self._map.get_name(merged, try_suffixes=(".weight", ".bias"))
        return (found, int(split[2]) if split else None) if found else None


def is_other_part(name: str) -> bool:
    """Whether a checkpoint's tensor belongs to another part than the text model, which has a GGUF of its own."""
    return name.startswith(_OTHER_MODULES) or any(part in name for part in _OTHER_PARTS)


def role_of(tensor: str) -> str:
    """What a tensor is, whichever block it is in: ``blk.*.ffn_up.weight``."""
    return _BLOCK.sub("blk.*.", tensor)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the text model's own values on top, as its class' converter sees them."""
    inner = config.get("text_config")
    found = {**config, **(inner if isinstance(inner, dict) else {})}
    architecture = rules_of(config).architecture
    if architecture == "gemma3":
        found = {**_GEMMA_3_DEFAULTS, **{name: value for name, value in found.items() if value is not None}}
    if architecture == "granite":
        found.pop("head_dim", None)
    return found


def as_floats(raw: bytes | memoryview, kind: str) -> NDArray[np.float32]:
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


def heads_of(tensor: str, config: Mapping[str, Any]) -> int | None:
    """How many heads the rows of a query or key tensor are of; None where ``config`` does not say."""
    heads, kv = config.get("num_attention_heads"), config.get("num_key_value_heads")
    found = (kv if kv is not None else heads) if ".attn_k." in tensor else heads
    return found if type(found) is int and found > 0 else None


def generated(tensor: str, config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """A tensor that the converter makes from ``config.json`` alone (RoPE factors), or None where it makes none."""
    rope = rope_of(config)
    if tensor in ("rope_factors_long.weight", "rope_factors_short.weight"):
        factors = rope.get("long_factor" if "long" in tensor else "short_factor")
        return _row(factors)
    if tensor != "rope_freqs.weight" or str(rope.get("rope_type", rope.get("type"))).lower() != "llama3":
        return None
    usual = 16.0 if rules_of(config).architecture == "exaone4" else 8.0
    try:
        theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
        n = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        factor, low, high = (
            float(rope.get(name, default))
            for name, default in (("factor", usual), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
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


def to_generate(config: Mapping[str, Any], rules: Rules) -> frozenset[str]:
    """The tensors that the converter makes of a model from its ``config.json`` alone."""
    rope = rope_of(config)
    names: set[str] = set()
    if (rules.rope_freqs or not rules.known) and str(rope.get("rope_type", rope.get("type"))).lower() == "llama3":
        names.add("rope_freqs.weight")
    if (rules.architecture == "phi3" or not rules.known) and rope.get("long_factor"):
        names |= {"rope_factors_long.weight", "rope_factors_short.weight"}
    return frozenset(names)


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
    if not isinstance(values, list) or not 0 < len(values) <= 4096 or not all(number(v) is not None for v in values):
        return None
    return np.array(values, dtype=np.float32)


def number(value: Any) -> float | None:
    """A number of JSON or of a header; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1 << 1000:
        return None
    return float(value)


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says of RoPE, that of full attention where there are several."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, dict):
        return {}
    inner = found.get("full_attention")
    return inner if isinstance(inner, dict) else found
