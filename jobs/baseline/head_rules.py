"""What llama.cpp computes between the tensor ``result_norm`` and its logits, by architecture.

A baseline keeps ``result_norm`` and rebuilds logits from it, so that it must know everything that comes after it.
Read from the sources of llama.cpp as vendored in llama-cpp-python 0.3.36: every ``src/models/*.cpp`` between
``cb(cur, "result_norm", -1)`` and ``res->t_logits``, with ``load_arch_hparams`` and ``src/llama-hparams.h`` for what
holds where a key is missing. All but the architectures named below have one ``build_lora_mm(model.output, cur)``,
nothing before and nothing after it; ``logit_scale`` and the like are not read there, whatever a file says.

====================================================  ============================================================
command-r, cohere2, cohere2moe                        logits x ``logit_scale``; 0 means no scale; only command-r may
                                                      leave the key out (no scale)
grok                                                  x ``logit_scale`` (default 1/sqrt 3), then the cap (default none)
muse-glimmer                                          x ``logit_scale``, then the cap (default 30, 0: none)
talkie                                                x ``logit_scale``
granite, granitemoe, granite_swa, graniteswitch       x 1/``logit_scale``
granitehybrid                                         x 1/``logit_scale`` where it is there and not 0
minicpm                                               granite's graph: x 1/``logit_scale``; missing: 256/n_embd is taken
                                                      for it, so that logits are multiplied by n_embd/256
minicpm3                                              ``result_norm`` x 256/n_embd before the head
gemma2                                                cap, default 30; 0 is not looked at and makes every logit NaN
gemma3n                                               cap, 30 always: its key is never read
gemma4                                                cap, default 30, 0: none
gemma3                                                cap, default none
phi2, phimoe, qwen2, (phi3, pangu-embedded)           + ``output.bias``; the last two have the addition in their graph,
                                                      but never load the tensor, and refuse a file that has it
qwen2vl, dream                                        load ``output.bias`` and do not add it
====================================================  ============================================================

Masks: chameleon sets the logits of tokens 4 to 8195 (its image tokens) to -FLT_MAX, with ``ggml_set_1d``, which
reaches the first row of each micro-batch only; qwen3tts puts -inf before the logits of its head, which has fewer rows
than the vocabulary; the drafters eagle3 and dflash spread theirs over a row of -inf. None of them can be rebuilt from
a state alone, so they are refused. Every other architecture's logits are finite.

Two things that change the matrix product itself are not rules: a scale tensor beside an NVFP4 head (refused), and
``general.tensor_extra.prec_a4``, which only matters where FP4 weights meet FP4 activations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np


class HeadNotSupported(Exception):
    """This model's logits can't be rebuilt from ``result_norm``; ``str()`` is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class HeadRule:
    """From ``result_norm`` to logits: ``x = pre_scale * result_norm``, ``y = scale * (W @ x)``,
    ``y = y + bias``, ``y = softcap * tanh(y / softcap)``, in this order.

    No architecture has a bias and a scale or cap, so that their order is llama.cpp's by default; scale before cap is
    grok's and muse-glimmer's.

    Attributes:
        pre_scale: multiplied onto ``result_norm`` before the matrix product.
        scale: multiplied onto the product.
        bias: name of the tensor added to the scaled product.
        softcap: the final soft cap; 0 means none.
    """

    pre_scale: float = 1.0
    scale: float = 1.0
    bias: str | None = None
    softcap: float = 0.0


_ENCODER: Final = "is an encoder and has no logits"
_DRAFTER: Final = "is a drafter that can't run without its target model"
_REFUSED: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
            "eurobert", "gemma-embedding", "llama-embed", "t5encoder",
        ),
        _ENCODER,
    ),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), _DRAFTER),
    "t5": "is an encoder-decoder, which a text alone does not make decode",
    "clip": "is a projector and has no logits",
    "wavtokenizer-dec": "makes sound and has no logits",
    "pockettts": "makes sound: it has no output head, and the logits llama.cpp gives mean nothing",
    "qwen3tts": "has a head with fewer rows than its vocabulary, filled up with -inf",
    "chameleon": "has its image tokens masked in the first row of each micro-batch only",
    "cogvlm": "computes a row for every token of a batch, not for those whose logits were asked for",
    "plamo3": "names no tensor result_norm in its graph",
}  # fmt: skip

#: Logits times ``logit_scale``; the default where the key is missing, None where llama.cpp refuses such a file.
_MULTIPLIED: Final[dict[str, float | None]] = {
    "command-r": 0.0, "cohere2": None, "cohere2moe": None, "grok": 0.5773502691896257, "muse-glimmer": None,
    "talkie": None,
}  # fmt: skip
#: Logits divided by ``logit_scale``; likewise. (minicpm's default depends on its width.)
_DIVIDED: Final[dict[str, float | None]] = {
    "granite": None, "granitemoe": None, "granite_swa": None, "graniteswitch": None, "granitehybrid": 0.0,
    "minicpm": None,
}  # fmt: skip
#: Where a ``logit_scale`` of 0 means that there is none.
_ZERO_IS_NONE: Final = frozenset({"command-r", "cohere2", "cohere2moe", "granitehybrid"})
#: The final soft cap where its key is missing (0: none).
_CAPPED: Final[dict[str, float]] = {
    "gemma2": 30.0, "gemma3": 0.0, "gemma3n": 30.0, "gemma4": 30.0, "grok": 0.0, "muse-glimmer": 30.0,
}  # fmt: skip
_BIASED: Final = frozenset({"phi2", "phi3", "phimoe", "qwen2", "pangu-embedded"})
#: The width that MiniCPM's scales refer to.
_MINICPM_BASE: Final = 256.0


def head_tensor(tensor_names: Collection[str]) -> str:
    """The tensor that is the output head: ``output.weight``, or the token embeddings where they are tied.

    Architectures that are always tied (gemma, gemma2, command-r, cohere2, bitnet, openelm, plm) refuse a file that
    has an ``output.weight``, so that its presence decides everywhere.

    Args:
        tensor_names: of all shards.

    Raises:
        HeadNotSupported: neither is there.
    """
    for name in ("output.weight", "token_embd.weight"):
        if name in tensor_names:
            return name
    raise HeadNotSupported("The model has neither output.weight nor token_embd.weight.")


def head_rule(metadata: Mapping[str, Any], tensor_names: Collection[str]) -> HeadRule:
    """What llama.cpp does between ``result_norm`` and the logits of the model with these key-values and tensors.

    An architecture that this module has never heard of gets the plain rule: it is right for nearly all, and a
    recording checks itself against true logits anyway.

    Args:
        metadata: the GGUF's key-values.
        tensor_names: of all shards.

    Raises:
        HeadNotSupported: the logits can't be rebuilt from ``result_norm``.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise HeadNotSupported("The model does not say its architecture.")
    if arch in _REFUSED:
        raise HeadNotSupported(f"The architecture {arch} {_REFUSED[arch]}.")
    head = head_tensor(tensor_names).removesuffix(".weight")
    for suffix in ("scale", "input_scale"):
        if f"{head}.{suffix}" in tensor_names:
            raise HeadNotSupported(f"The output head has a tensor {head}.{suffix} beside it (NVFP4).")
    return HeadRule(
        pre_scale=float(np.float32(_MINICPM_BASE) / _width(metadata, arch)) if arch == "minicpm3" else 1.0,
        scale=_scale(metadata, arch),
        bias="output.bias" if arch in _BIASED and "output.bias" in tensor_names else None,
        softcap=_softcap(metadata, arch),
    )


def _scale(metadata: Mapping[str, Any], arch: str) -> float:
    """The factor on the head's output, rounded as llama.cpp's single precision rounds it."""
    if arch not in _MULTIPLIED and arch not in _DIVIDED:
        return 1.0
    default = _MULTIPLIED.get(arch, _DIVIDED.get(arch))
    if arch == "minicpm":
        default = float(np.float32(_MINICPM_BASE) / _width(metadata, arch))
    key = f"{arch}.logit_scale"
    value = _number(metadata, key, default)
    if value == 0.0 and arch in _ZERO_IS_NONE:
        return 1.0
    if arch in _MULTIPLIED:
        return value
    with np.errstate(all="ignore"):
        factor = float(np.float32(1.0) / np.float32(value))
    if not math.isfinite(factor):
        raise HeadNotSupported(f"The architecture {arch} divides its logits by {key}, which is {value:g}.")
    return factor


def _softcap(metadata: Mapping[str, Any], arch: str) -> float:
    if arch not in _CAPPED:
        return 0.0
    if arch == "gemma3n":
        return _CAPPED[arch]
    key = f"{arch}.final_logit_softcapping"
    value = _number(metadata, key, _CAPPED[arch])
    if value == 0.0 and arch == "gemma2":
        raise HeadNotSupported(f"The architecture {arch} divides its logits by {key}, which is 0.")
    return value


def _number(metadata: Mapping[str, Any], key: str, default: float | None) -> float:
    value = metadata.get(key, default)
    if value is None:
        raise HeadNotSupported(f"The model has no key {key}, without which llama.cpp refuses its architecture.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        with np.errstate(all="ignore"):
            single = float(np.float32(value))
        if math.isfinite(single):
            return single
    raise HeadNotSupported(f"The model's {key} is {value!r}, which is not a number llama.cpp can use.")


def _width(metadata: Mapping[str, Any], arch: str) -> np.float32:
    value = metadata.get(f"{arch}.embedding_length")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise HeadNotSupported(f"The model's {arch}.embedding_length is {value!r}, which is not a width.")
    return np.float32(value)
