"""Tiny random checkpoints as safetensors, and the GGUFs that convert_hf_to_gguf would make of them.

Names and reordering are written out here by hand, not taken from what is tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

Array = NDArray[np.float32]

EMBD, FF, HEADS, KV_HEADS, HEAD = 128, 256, 4, 2, 32

_BLOCK = {
    "input_layernorm.weight": ("attn_norm.weight", (EMBD,)),
    "self_attn.q_proj.weight": ("attn_q.weight", (HEADS * HEAD, EMBD)),
    "self_attn.k_proj.weight": ("attn_k.weight", (KV_HEADS * HEAD, EMBD)),
    "self_attn.v_proj.weight": ("attn_v.weight", (KV_HEADS * HEAD, EMBD)),
    "self_attn.o_proj.weight": ("attn_output.weight", (EMBD, HEADS * HEAD)),
    "post_attention_layernorm.weight": ("ffn_norm.weight", (EMBD,)),
}
_BIASES = {
    "self_attn.q_proj.bias": ("attn_q.bias", (HEADS * HEAD,)),
    "self_attn.k_proj.bias": ("attn_k.bias", (KV_HEADS * HEAD,)),
    "self_attn.v_proj.bias": ("attn_v.bias", (KV_HEADS * HEAD,)),
}
_DENSE = {
    "mlp.gate_proj.weight": ("ffn_gate.weight", (FF, EMBD)),
    "mlp.up_proj.weight": ("ffn_up.weight", (FF, EMBD)),
    "mlp.down_proj.weight": ("ffn_down.weight", (EMBD, FF)),
}
_EXPERTS = {
    "mlp.experts.{}.gate_proj.weight": ("ffn_gate_exps.weight", (FF, EMBD)),
    "mlp.experts.{}.up_proj.weight": ("ffn_up_exps.weight", (FF, EMBD)),
    "mlp.experts.{}.down_proj.weight": ("ffn_down_exps.weight", (EMBD, FF)),
}
_ARCH = {
    "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma2ForCausalLM": "gemma2", "UnheardOfForCausalLM": "llama",
}  # fmt: skip


def bf16(values: Array) -> Array:
    """Rounded to what BF16 holds."""
    return (quantize(values, GGMLQuantizationType.BF16).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class Checkpoint:
    """A random model. ``tensors`` by their checkpoint's names, in BF16's values; ``config`` its config.json."""

    def __init__(
        self, kind: str = "LlamaForCausalLM", *, seed: int = 1, layers: int = 4, vocab: int = 512, tied: bool = False
    ) -> None:
        self.kind, self.arch, self.layers, self.vocab = kind, _ARCH[kind], layers, vocab
        self.tied = tied or self.arch == "gemma2"
        self.shift = 1.0 if self.arch == "gemma2" else 0.0
        self.experts = 4 if "moe" in self.arch else 0
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, Array] = {}
        self.tensors["model.embed_tokens.weight"] = self._new(vocab, EMBD)
        for layer in range(layers):
            at = f"model.layers.{layer}."
            inner = {**_BLOCK, **(_BIASES if self.arch == "qwen2" else {}), **({} if self.experts else _DENSE)}
            for name, (_, shape) in inner.items():
                self.tensors[at + name] = self._new(*shape)
            if self.experts:
                self.tensors[at + "mlp.gate.weight"] = self._new(self.experts, EMBD)
            for name, (_, shape) in _EXPERTS.items() if self.experts else ():
                for expert in range(self.experts):
                    self.tensors[at + name.format(expert)] = self._new(*shape)
        self.tensors["model.norm.weight"] = self._new(EMBD)
        if not self.tied:
            self.tensors["lm_head.weight"] = self._new(vocab, EMBD)
        self.config: dict[str, Any] = {
            "architectures": [kind], "model_type": self.arch, "vocab_size": vocab, "hidden_size": EMBD,
            "num_hidden_layers": layers, "intermediate_size": FF, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
            "rope_theta": 10000.0 if self.arch == "gemma2" else 500000.0,
        }  # fmt: skip
        if self.experts:
            self.config |= {"num_experts": self.experts, "num_experts_per_tok": 2}

    def _new(self, *shape: int) -> Array:
        return bf16(self.random.normal(0, 0.05, shape).astype(np.float32))

    def files(self, *, shards: int = 1, dtype: str = "BF16") -> dict[str, bytes]:
        """The repo's files."""
        config = json.dumps(self.config).encode()
        names = list(self.tensors)
        if shards == 1:
            return {"config.json": config, "model.safetensors": safetensors(self.tensors, dtype=dtype)}
        where = {
            name: f"model-{i * shards // len(names) + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)
        }
        found = {
            file: safetensors({n: self.tensors[n] for n in names if where[n] == file}, dtype=dtype)
            for file in sorted(set(where.values()))
        }
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where}).encode()
        return {"config.json": config, "model.safetensors.index.json": index, **found}

    def converted(self) -> dict[str, Array]:
        """The tensors as the converter names, reorders and stacks them, in f32."""
        shift = np.float32(self.shift)
        found = {
            "token_embd.weight": self.tensors["model.embed_tokens.weight"],
            "output_norm.weight": self.tensors["model.norm.weight"] + shift,
        }
        if not self.tied:
            found["output.weight"] = self.tensors["lm_head.weight"]
        for layer in range(self.layers):
            at, to = f"model.layers.{layer}.", f"blk.{layer}."
            for name, (ours, _) in {**_BLOCK, **_BIASES, **_DENSE}.items():
                if (values := self.tensors.get(at + name)) is not None:
                    if self.kind == "LlamaForCausalLM" and ours in ("attn_q.weight", "attn_k.weight"):
                        values = _interleaved(values)
                    if self.arch == "gemma2" and ours == "ffn_norm.weight":
                        ours = "post_attention_norm.weight"
                    found[to + ours] = values + shift if "norm" in ours else values
            if self.experts:
                found[to + "ffn_gate_inp.weight"] = self.tensors[at + "mlp.gate.weight"]
                for name, (ours, _) in _EXPERTS.items():
                    stack = [self.tensors[at + name.format(expert)] for expert in range(self.experts)]
                    found[to + ours] = np.stack(stack)
        return found

    def gguf(
        self,
        path: Path,
        kind: str = "BF16",
        *,
        change: Callable[[dict[str, Array]], None] | None = None,
        settings: Mapping[str, Any] | None = None,
        metadata: str = "",
        per_file: int = 0,
    ) -> Path:
        """Write the GGUF of this type; ``change`` tampers with the tensors, ``settings`` with the header.

        With ``per_file``, in shards of so many tensors beside ``path``.
        """
        writer = GGUFWriter(path, self.arch, split_max_tensors=per_file)
        known: dict[str, Any] = {
            "block_count": self.layers, "embedding_length": EMBD, "feed_forward_length": FF, "context_length": 512,
            "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
        }  # fmt: skip
        if self.arch == "llama":
            known |= {"vocab_size": self.vocab, "rope.dimension_count": HEAD}
        if self.arch != "gemma2":
            known["rope.freq_base"] = 500000.0
        if self.experts:
            known |= {"expert_count": self.experts, "expert_used_count": 2}
        for key, value in (known | dict(settings or {})).items():
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(f"{self.arch}.{key}", value)
        writer.add_string("general.description", metadata)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"t{i}" for i in range(self.vocab)])
        tensors = self.converted()
        if change:
            change(tensors)
        for name, values in tensors.items():
            f32 = values.ndim == 1 or "norm" in name or "gate_inp" in name or name.endswith(".bias") or kind == "F32"
            data = GGMLQuantizationType.F32 if f32 else GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(values.astype(np.float32), data), raw_dtype=data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _interleaved(values: Array) -> Array:
    """Rows of each head, the first half and the second half by turns."""
    order = [head + i // 2 + (i % 2) * HEAD // 2 for head in range(0, len(values), HEAD) for i in range(HEAD)]
    return values[order]


def safetensors(tensors: Mapping[str, Array], *, dtype: str = "BF16") -> bytes:
    """The bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, values in tensors.items():
        raw = {
            "BF16": lambda v: quantize(v, GGMLQuantizationType.BF16).tobytes(),
            "F16": lambda v: v.astype(np.float16).tobytes(),
            "F32": lambda v: v.astype(np.float32).tobytes(),
        }[dtype](values)
        header[name] = {
            "dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)
