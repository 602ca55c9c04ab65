"""Tiny random models that llama.cpp really loads and decodes, one for each way logits come out of a last norm.

Weights are random, but the output head is scaled so that the next-token distribution has a peak (about 0.1 to 0.6),
and the final norm's weights have random signs, so that a tied head does not just repeat the last token. What tensors
an architecture needs was read from llama.cpp's ``src/models/*.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

#: Written as tokens of their own, most frequent first; a space is SentencePiece's mark.
_LETTERS: Final = "▁etaoinshrdlucmfwypvbgkqjxzETAOINSHRDLUCMFWYPVBGKQJXZ0123456789.,;:!?'\"-()/&%$#@*+=_<>[]{}|\\^~`"
_SPECIAL: Final = ("<unk>", "<s>", "</s>", "<0x0A>")
#: Chameleon's image tokens have fixed ids, 4 to 8195, whose logits llama.cpp masks.
CHAMELEON_IMAGES: Final = range(4, 8196)
_UNKNOWN, _NORMAL, _CONTROL, _BYTE, _UNUSED = 2, 1, 3, 6, 5
_HEAD_DIM: Final = 32
_LAYERS: Final = 2
_EXPERTS: Final = 4
#: Standard deviation of the logits before any soft cap.
_SPREAD: Final = 3.0

HEAD_TYPES: Final = {
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "f32": GGMLQuantizationType.F32,
    "q8_0": GGMLQuantizationType.Q8_0,
}


class Tiny:
    """A model in the making: key-values and tensors; shapes are given as llama.cpp gives them, row length first."""

    def __init__(self, arch: str, *, n_vocab: int, n_embd: int, seed: int) -> None:
        if n_embd % _HEAD_DIM or n_vocab < 96:
            raise ValueError(f"n_embd must be a multiple of {_HEAD_DIM} and n_vocab at least 96.")
        self.arch, self.n_vocab, self.n_embd, self.n_ff = arch, n_vocab, n_embd, 2 * n_embd
        self.n_head = n_embd // _HEAD_DIM
        self.n_head_kv = self.n_head // 2 if self.n_head % 2 == 0 else self.n_head
        self.n_kv = self.n_head_kv * _HEAD_DIM
        self.images = arch == "chameleon"
        self.random = np.random.default_rng(seed)
        self.heads: list[str] = []
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self.kv: dict[str, Any] = {
            "context_length": 2048, "embedding_length": n_embd, "block_count": _LAYERS,
            "feed_forward_length": self.n_ff, "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": _HEAD_DIM,
        }  # fmt: skip

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Random weights that keep a vector's size, times ``gain``."""
        std = gain / np.sqrt(shape[0])
        self.tensors[name] = self.random.normal(0, std, shape[::-1]).astype(np.float32)

    def norm(self, name: str, n: int, *, bias: bool = False) -> None:
        """A norm's weights, near one."""
        self.tensors[f"{name}.weight"] = self.random.normal(1, 0.1, n).astype(np.float32)
        if bias:
            self.bias(f"{name}.bias", n)

    def bias(self, name: str, n: int, std: float = 0.1) -> None:
        self.tensors[name] = self.random.normal(0, std, n).astype(np.float32)

    def last_norm(self, *, name: str = "output_norm", bias: bool = False) -> None:
        signs = self.random.choice([-1, 1], self.n_embd)
        self.tensors[f"{name}.weight"] = (signs * self.random.uniform(0.5, 1.4, self.n_embd)).astype(np.float32)
        if bias:
            self.bias(f"{name}.bias", self.n_embd)

    def head(self, *, tied: bool, spread: float = _SPREAD) -> None:
        """Embeddings and output head (one tensor where tied), so that logits have this standard deviation."""
        self.matrix("token_embd.weight", self.n_embd, self.n_vocab, gain=spread)
        if not tied:
            self.matrix("output.weight", self.n_embd, self.n_vocab, gain=spread)
        self.heads = ["token_embd.weight" if tied else "output.weight"]

    def attention(self, i: int, *, bias: bool = False, out_bias: bool = False, norm_bias: bool = False) -> None:
        at, n = f"blk.{i}.", self.n_head * _HEAD_DIM
        self.norm(f"{at}attn_norm", self.n_embd, bias=norm_bias)
        for name, width in (("q", n), ("k", self.n_kv), ("v", self.n_kv)):
            self.matrix(f"{at}attn_{name}.weight", self.n_embd, width)
            if bias:
                self.bias(f"{at}attn_{name}.bias", width)
        self.matrix(f"{at}attn_output.weight", n, self.n_embd)
        if out_bias:
            self.bias(f"{at}attn_output.bias", self.n_embd)

    def feed_forward(self, i: int, *, norm: bool = True) -> None:
        at = f"blk.{i}."
        if norm:
            self.norm(f"{at}ffn_norm", self.n_embd)
        self.matrix(f"{at}ffn_gate.weight", self.n_embd, self.n_ff)
        self.matrix(f"{at}ffn_up.weight", self.n_embd, self.n_ff)
        self.matrix(f"{at}ffn_down.weight", self.n_ff, self.n_embd, gain=2)

    def experts(self, i: int, *, norm_bias: bool = False) -> None:
        at = f"blk.{i}."
        self.kv |= {"expert_count": _EXPERTS, "expert_used_count": 2}
        self.norm(f"{at}ffn_norm", self.n_embd, bias=norm_bias)
        self.matrix(f"{at}ffn_gate_inp.weight", self.n_embd, _EXPERTS)
        self.matrix(f"{at}ffn_gate_exps.weight", self.n_embd, self.n_ff, _EXPERTS)
        self.matrix(f"{at}ffn_up_exps.weight", self.n_embd, self.n_ff, _EXPERTS)
        self.matrix(f"{at}ffn_down_exps.weight", self.n_ff, self.n_embd, _EXPERTS, gain=4)

    def write(self, path: Path, head_type: str) -> None:
        writer = GGUFWriter(path, self.arch)
        for key, value in self.kv.items():
            name = f"{self.arch}.{key}"
            if isinstance(value, bool):
                writer.add_bool(name, value)
            elif isinstance(value, int):
                writer.add_uint32(name, value)
            elif isinstance(value, float):
                writer.add_float32(name, value)
            else:
                writer.add_array(name, value)
        tokens, scores, kinds = vocabulary(self.n_vocab, images=self.images)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        kind = HEAD_TYPES[head_type]
        for name, data in self.tensors.items():
            if name in self.heads and kind is not GGMLQuantizationType.F32:
                writer.add_tensor(name, quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def vocabulary(n_vocab: int, *, images: bool = False) -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece vocabulary: special tokens, newline, ASCII (without ``^~`` and the backtick below 99), then the
    remaining bytes, pairs of letters, and unused tokens. Tokenizing any other character needs all bytes (354)."""
    tokens = list(_SPECIAL)
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, _BYTE]
    if images:
        tokens += [f"<img{i}>" for i in CHAMELEON_IMAGES]
        kinds += [_CONTROL] * len(CHAMELEON_IMAGES)
    small = [letter for letter in _LETTERS if letter.islower() or letter == "▁"]
    rest = [(letter, _NORMAL) for letter in _LETTERS]
    rest += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256) if byte != 0x0A]
    rest += [(a + b, _NORMAL) for a in small for b in small if b != "▁"]
    rest = rest[: n_vocab - len(tokens)]
    rest += [(f"<unused{i}>", _UNUSED) for i in range(n_vocab - len(tokens) - len(rest))]
    tokens += [text for text, _ in rest]
    kinds += [kind for _, kind in rest]
    return tokens, [0.0 if kind != _NORMAL else -float(i) for i, kind in enumerate(kinds)], kinds


def _llama(model: Tiny, *, tied: bool, spread: float = _SPREAD, bias: bool = False) -> None:
    model.head(tied=tied, spread=spread)
    model.last_norm()
    for i in range(_LAYERS):
        model.attention(i, bias=bias)
        model.feed_forward(i)


def _qwen2_bias(model: Tiny) -> None:
    if model.arch == "qwen2vl":
        model.kv["rope.dimension_sections"] = [4, 6, 6, 0]
    _llama(model, tied=True, bias=True)
    model.bias("output.bias", model.n_vocab, std=2)


def _phi2(model: Tiny) -> None:
    model.n_kv = model.n_embd
    model.kv |= {"attention.head_count_kv": model.n_head, "attention.layer_norm_epsilon": 1e-5}
    model.head(tied=False)
    model.bias("output.bias", model.n_vocab, std=2)
    model.last_norm(bias=True)
    for i in range(_LAYERS):
        model.attention(i, bias=True, out_bias=True, norm_bias=True)
        model.matrix(f"blk.{i}.ffn_up.weight", model.n_embd, model.n_ff)
        model.bias(f"blk.{i}.ffn_up.bias", model.n_ff)
        model.matrix(f"blk.{i}.ffn_down.weight", model.n_ff, model.n_embd)
        model.bias(f"blk.{i}.ffn_down.bias", model.n_embd)


def _phimoe(model: Tiny) -> None:
    model.head(tied=False)
    model.bias("output.bias", model.n_vocab, std=2)
    model.last_norm(bias=True)
    for i in range(_LAYERS):
        model.attention(i, bias=True, out_bias=True, norm_bias=True)
        model.experts(i, norm_bias=True)


def _gemma(model: Tiny, *, spread: float, softcap: float | None = None) -> None:
    model.kv |= {"attention.key_length": _HEAD_DIM, "attention.value_length": _HEAD_DIM, "attention.sliding_window": 64}
    if softcap is not None:
        model.kv["final_logit_softcapping"] = softcap
    if model.arch == "gemma4":
        model.kv |= {
            "attention.sliding_window_pattern": [True, False], "embedding_length_per_layer_input": 0,
            "attention.key_length_swa": _HEAD_DIM, "attention.value_length_swa": _HEAD_DIM,
            "rope.dimension_count_swa": _HEAD_DIM,
        }  # fmt: skip
        model.tensors["rope_freqs.weight"] = np.ones(_HEAD_DIM // 2, dtype=np.float32)
    _llama(model, tied=True, spread=spread)
    for i in range(_LAYERS):
        model.norm(f"blk.{i}.post_attention_norm", model.n_embd)
        model.norm(f"blk.{i}.post_ffw_norm", model.n_embd)
        if model.arch != "gemma2":
            model.norm(f"blk.{i}.attn_q_norm", _HEAD_DIM)
            model.norm(f"blk.{i}.attn_k_norm", _HEAD_DIM)


def _cohere(model: Tiny) -> None:
    scale = 0.0625
    model.kv |= {"logit_scale": scale, "attention.layer_norm_epsilon": 1e-5}
    if model.arch == "cohere2":
        model.kv["attention.sliding_window"] = 64
    model.head(tied=True, spread=_SPREAD / scale)
    model.last_norm()
    for i in range(_LAYERS):
        model.attention(i)
        model.feed_forward(i, norm=False)


def _granite(model: Tiny, *, divisor: float, keys: bool = True) -> None:
    if keys:
        model.kv |= {"logit_scale": divisor, "embedding_scale": 4.0, "residual_scale": 0.5}
    _llama(model, tied=True, spread=_SPREAD * divisor)


def _minicpm3(model: Tiny) -> None:
    lora, rope = 32, 16
    model.kv |= {
        "attention.q_lora_rank": lora, "attention.kv_lora_rank": lora, "attention.head_count_kv": model.n_head,
        "attention.key_length": _HEAD_DIM, "rope.dimension_count": rope,
    }  # fmt: skip
    model.head(tied=True, spread=_SPREAD * model.n_embd / 256)
    model.last_norm()
    for i in range(_LAYERS):
        at, n = f"blk.{i}.", model.n_head * _HEAD_DIM
        model.norm(f"{at}attn_norm", model.n_embd)
        model.norm(f"{at}attn_q_a_norm", lora)
        model.norm(f"{at}attn_kv_a_norm", lora)
        model.matrix(f"{at}attn_q_a.weight", model.n_embd, lora)
        model.matrix(f"{at}attn_q_b.weight", lora, n)
        model.matrix(f"{at}attn_kv_a_mqa.weight", model.n_embd, lora + rope)
        model.matrix(f"{at}attn_kv_b.weight", lora, n + model.n_head * (_HEAD_DIM - rope))
        model.matrix(f"{at}attn_output.weight", n, model.n_embd)
        model.feed_forward(i)


def _chameleon(model: Tiny) -> None:
    model.n_vocab += len(CHAMELEON_IMAGES)
    model.kv["swin_norm"] = False
    _llama(model, tied=False)
    for i in range(_LAYERS):
        for name, heads in (("q", model.n_head), ("k", model.n_head_kv)):
            ones = model.random.normal(1, 0.1, (heads, _HEAD_DIM))
            model.tensors[f"blk.{i}.attn_{name}_norm.weight"] = ones.astype(np.float32)


def _lfm2(model: Tiny) -> None:
    model.kv |= {"attention.head_count_kv": [0, model.n_head_kv], "shortconv.l_cache": 3}
    model.head(tied=True)
    model.last_norm(name="token_embd_norm")
    at = "blk.0.shortconv."
    model.norm("blk.0.attn_norm", model.n_embd)
    model.matrix(f"{at}conv.weight", 3, model.n_embd)
    model.matrix(f"{at}in_proj.weight", model.n_embd, 3 * model.n_embd)
    model.matrix(f"{at}out_proj.weight", model.n_embd, model.n_embd)
    model.attention(1)
    model.norm("blk.1.attn_q_norm", _HEAD_DIM)
    model.norm("blk.1.attn_k_norm", _HEAD_DIM)
    for i in range(_LAYERS):
        model.feed_forward(i)


def _mamba(model: Tiny) -> None:
    inner, state, rank, conv = 2 * model.n_embd, 16, 4, 4
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "rope.dimension_count"):
        del model.kv[key]
    model.kv |= {
        "attention.head_count": 0, "feed_forward_length": 0, "ssm.conv_kernel": conv, "ssm.inner_size": inner,
        "ssm.state_size": state, "ssm.time_step_rank": rank,
    }  # fmt: skip
    model.head(tied=True)
    model.last_norm()
    for i in range(_LAYERS):
        at = f"blk.{i}."
        model.norm(f"{at}attn_norm", model.n_embd)
        model.matrix(f"{at}ssm_in.weight", model.n_embd, 2 * inner)
        model.matrix(f"{at}ssm_conv1d.weight", conv, inner)
        model.bias(f"{at}ssm_conv1d.bias", inner)
        model.matrix(f"{at}ssm_x.weight", inner, rank + 2 * state)
        model.matrix(f"{at}ssm_dt.weight", rank, inner)
        model.bias(f"{at}ssm_dt.bias", inner)
        model.tensors[f"{at}ssm_a"] = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        model.tensors[f"{at}ssm_d"] = np.ones(inner, dtype=np.float32)
        model.matrix(f"{at}ssm_out.weight", inner, model.n_embd, gain=2)


def _qwen35(model: Tiny) -> None:
    heads, conv = 2, 4
    inner = heads * _HEAD_DIM
    model.kv |= {
        "rope.dimension_sections": [4, 6, 6, 0], "ssm.conv_kernel": conv, "ssm.inner_size": inner,
        "ssm.state_size": _HEAD_DIM, "ssm.time_step_rank": heads, "ssm.group_count": heads,
        "full_attention_interval": 2, "attention.key_length": _HEAD_DIM, "attention.value_length": _HEAD_DIM,
    }  # fmt: skip
    model.head(tied=True)
    model.last_norm()
    at = "blk.0."
    model.norm(f"{at}attn_norm", model.n_embd)
    model.matrix(f"{at}attn_qkv.weight", model.n_embd, 3 * inner)
    model.matrix(f"{at}attn_gate.weight", model.n_embd, inner)
    model.matrix(f"{at}ssm_conv1d.weight", conv, 3 * inner)
    model.bias(f"{at}ssm_dt.bias", heads)
    model.tensors[f"{at}ssm_a"] = -np.ones(heads, dtype=np.float32)
    model.matrix(f"{at}ssm_beta.weight", model.n_embd, heads)
    model.matrix(f"{at}ssm_alpha.weight", model.n_embd, heads)
    model.norm(f"{at}ssm_norm", _HEAD_DIM)
    model.matrix(f"{at}ssm_out.weight", inner, model.n_embd)
    model.attention(1)
    model.matrix("blk.1.attn_q.weight", model.n_embd, 2 * model.n_head * _HEAD_DIM)  # queries and their gates
    model.norm("blk.1.attn_q_norm", _HEAD_DIM)
    model.norm("blk.1.attn_k_norm", _HEAD_DIM)
    for i in range(_LAYERS):
        model.norm(f"blk.{i}.post_attention_norm", model.n_embd)
        model.feed_forward(i, norm=False)


def _qwen2moe(model: Tiny) -> None:
    model.kv |= {"expert_feed_forward_length": model.n_ff, "expert_shared_feed_forward_length": model.n_ff}
    model.head(tied=False)
    model.last_norm()
    for i in range(_LAYERS):
        at = f"blk.{i}."
        model.attention(i, bias=True)
        model.experts(i)
        model.matrix(f"{at}ffn_gate_inp_shexp.weight", model.n_embd)
        model.matrix(f"{at}ffn_gate_shexp.weight", model.n_embd, model.n_ff)
        model.matrix(f"{at}ffn_up_shexp.weight", model.n_embd, model.n_ff)
        model.matrix(f"{at}ffn_down_shexp.weight", model.n_ff, model.n_embd)


def _grok(model: Tiny) -> None:
    scale, softcap = 0.5, 6.0
    model.kv |= {"logit_scale": scale, "final_logit_softcapping": softcap}
    model.head(tied=False, spread=_SPREAD / scale)
    model.last_norm()
    for i in range(_LAYERS):
        model.attention(i)
        model.norm(f"blk.{i}.attn_output_norm", model.n_embd)
        model.experts(i)
        model.norm(f"blk.{i}.layer_output_norm", model.n_embd)


def _talkie(model: Tiny) -> None:
    scale = 2.5
    model.kv["logit_scale"] = scale
    model.head(tied=False, spread=_SPREAD / scale)
    for i in range(_LAYERS):
        model.attention(i)
        model.feed_forward(i, norm=False)
        del model.tensors[f"blk.{i}.attn_norm.weight"]
        model.tensors[f"blk.{i}.attn_q_norm.weight"] = np.ones((model.n_head, 1), dtype=np.float32)
        model.tensors[f"blk.{i}.layer_output_scale.weight"] = np.ones(1, dtype=np.float32)


def _plamo3(model: Tiny) -> None:
    model.kv |= {"attention.key_length": _HEAD_DIM, "attention.value_length": _HEAD_DIM}
    model.head(tied=True)
    model.last_norm()
    for i in range(_LAYERS):
        at, n = f"blk.{i}.", model.n_head * _HEAD_DIM
        for name in ("attn_norm.weight", "post_attention_norm", "ffn_norm.weight", "post_ffw_norm"):
            model.norm(f"{at}{name.removesuffix('.weight')}", model.n_embd)
        for name in ("post_attention_norm", "post_ffw_norm"):  # without a suffix, as llama.cpp wants them
            model.tensors[at + name] = model.tensors.pop(f"{at}{name}.weight")
        model.norm(f"{at}attn_q_norm", _HEAD_DIM)
        model.norm(f"{at}attn_k_norm", _HEAD_DIM)
        model.matrix(f"{at}attn_qkv.weight", model.n_embd, n + 2 * model.n_kv)
        model.matrix(f"{at}attn_output.weight", n, model.n_embd)
        model.matrix(f"{at}ffn_up.weight", model.n_embd, 2 * model.n_ff)
        model.matrix(f"{at}ffn_down.weight", model.n_ff, model.n_embd)


#: By kind: the architecture and what makes it.
MAKERS: Final[dict[str, tuple[str, Callable[[Tiny], None]]]] = {
    "llama-tied": ("llama", lambda m: _llama(m, tied=True)),
    "llama-untied": ("llama", lambda m: _llama(m, tied=False)),
    "odd-vocab": ("llama", lambda m: _llama(m, tied=False)),
    "qwen2-tied": ("qwen2", lambda m: _llama(m, tied=True, bias=True)),
    "qwen2-bias": ("qwen2", _qwen2_bias),
    "qwen2vl-bias": ("qwen2vl", _qwen2_bias),
    "phi2": ("phi2", _phi2),
    "phimoe": ("phimoe", _phimoe),
    "gemma2": ("gemma2", lambda m: _gemma(m, spread=4, softcap=7.0)),
    "gemma2-default": ("gemma2", lambda m: _gemma(m, spread=6)),
    "gemma3": ("gemma3", lambda m: _gemma(m, spread=_SPREAD)),
    "gemma3-softcap": ("gemma3", lambda m: _gemma(m, spread=4, softcap=7.0)),
    "gemma4": ("gemma4", lambda m: _gemma(m, spread=6)),
    "command-r": ("command-r", _cohere),
    "cohere2": ("cohere2", _cohere),
    "granite": ("granite", lambda m: _granite(m, divisor=6.0)),
    "minicpm": ("minicpm", lambda m: _granite(m, divisor=0.25)),
    "minicpm-default": ("minicpm", lambda m: _granite(m, divisor=256 / m.n_embd, keys=False)),
    "minicpm3": ("minicpm3", _minicpm3),
    "lfm2": ("lfm2", _lfm2),
    "qwen35": ("qwen35", _qwen35),
    "mamba": ("mamba", _mamba),
    "qwen2moe": ("qwen2moe", _qwen2moe),
    "grok": ("grok", _grok),
    "talkie": ("talkie", _talkie),
    "chameleon": ("chameleon", _chameleon),
    "plamo3": ("plamo3", _plamo3),
}
KINDS: Final = tuple(MAKERS)
#: Kinds whose logits can't be rebuilt from ``result_norm``.
UNSUPPORTED: Final = ("chameleon", "plamo3")


def tiny_model(
    path: Path, kind: str, *, n_vocab: int = 96, n_embd: int = 64, head_type: str = "f16", seed: int = 0
) -> None:
    """Write a tiny random model to ``path``.

    Args:
        path: the GGUF file to write.
        kind: one of :data:`KINDS`. ``odd-vocab`` has one token more where ``n_vocab`` is even; ``chameleon`` has its
            8192 image tokens on top.
        n_vocab: at least 96; plain text (letters, digits, common punctuation) can always be tokenized.
        n_embd: a multiple of 32.
        head_type: type of the output head, where tied of the token embeddings too; all other weights are F32.
        seed: of the weights.
    """
    arch, make = MAKERS[kind]
    model = Tiny(arch, n_vocab=n_vocab | 1 if kind == "odd-vocab" else n_vocab, n_embd=n_embd, seed=seed)
    make(model)
    model.write(path, head_type)
