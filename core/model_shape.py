"""What a model's size in memory depends on, read from its headers: layers, widths, bytes by place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from core.gguf_header import GGUFHeader, Tensor
from core.inspection import ModelShape, int_of, layer_of, short_name

#: Types that llama.cpp's CPU backends copy into another layout where the processor has the instructions (its "repack"
#: and "AMX" buffers): the copy is used from then on, the file's own pages are not touched again.
REPACKED_TYPES: Final = frozenset(
    {"Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "Q1_0"}
)
#: A larger number in a header is a lie; it is taken for this, and the model for too large.
_MOST: Final = 1 << 40
_NEVER_REPACKED: Final = frozenset({"token_embd", "per_layer_token_embd", "position_embd", "token_types"})


def shape_of(headers: Sequence[GGUFHeader]) -> ModelShape | None:
    """The shape that a variant's headers describe (the first shard's first), or None where they describe no layers.

    Where a header leaves a question open, the larger answer is taken; no number in it is trusted beyond 2**40.
    """
    kv, arch = headers[0].kv, headers[0].architecture
    tensors = [tensor for header in headers for tensor in header.tensors]
    layers: dict[int, list[Tensor]] = defaultdict(list)
    outside: list[Tensor] = []
    for tensor in tensors:
        layer = layer_of(tensor.name)
        (outside if layer is None else layers[layer]).append(tensor)
    if not layers or arch is None:
        return None
    keys = _Keys(kv, arch)
    widths = [_cache_widths(keys, layer, members) for layer, members in layers.items()]
    weights = _bytes(tensors)
    return ModelShape(
        n_layers=len(layers),
        n_embd=keys.number("embedding_length") or _rows(outside, "token_embd", axis=0),
        n_vocab=max(_rows(outside, "token_embd"), _rows(outside, "output")),
        n_heads=keys.number("attention.head_count"),
        widest=max(_width(tensor, keys) for members in layers.values() for tensor in members),
        k_width=_bounded(sum(k for k, _ in widths)),
        v_width=_bounded(sum(v for _, v in widths)),
        state_values=_bounded(sum(_state(keys, members) for members in layers.values())),
        weights=weights,
        largest_layer=max(_bytes(members) for members in layers.values()),
        outside_layers=_bytes(outside),
        repacked=_bytes(t for t in tensors if t.type_name in REPACKED_TYPES and _is_matrix(t)),
    )


class _Keys:
    """A header's numbers under its architecture's prefix; 0 where there is none, and never more than can be true."""

    def __init__(self, kv: dict[str, Any], arch: str) -> None:
        self._kv, self._arch = kv, arch

    def number(self, name: str, layer: int | None = None) -> int:
        """A number; of an array the layer's own element, or the largest."""
        value = self._kv.get(f"{self._arch}.{name}")
        if isinstance(value, list):
            numbers = [int_of(item) or 0 for item in value]
            value = numbers[layer] if layer is not None and layer < len(numbers) else max(numbers, default=0)
        return _bounded(int_of(value) or 0)

    def head_width(self, name: str) -> int:
        """Width of one head: as the header says, or its share of the embedding."""
        return self.number(f"attention.{name}_length") or self.number("embedding_length") // max(
            1, self.number("attention.head_count")
        )


def _bounded(value: int) -> int:
    return max(0, min(value, _MOST))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.n_bytes for tensor in tensors)


def _is_matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 and short_name(tensor.name) not in _NEVER_REPACKED


def _rows(tensors: Iterable[Tensor], name: str, *, axis: int = 1) -> int:
    """Rows of the matrix called so; 0 where there is none."""
    found = (t.shape[axis] for t in tensors if short_name(t.name) == name and len(t.shape) == 2)
    return _bounded(next(found, 0))


def _width(tensor: Tensor, keys: _Keys) -> int:
    """Values that a layer's weight makes of one token."""
    shape = tensor.shape
    if len(shape) < 2:
        return 0
    times = 1
    if len(shape) > 2:
        # Of the experts only those that are used, of other stacks (MLA's heads) all.
        times = (keys.number("expert_used_count") or shape[2]) if "_exps" in tensor.name else shape[2]
    return _bounded(shape[1] * times)


def _cache_widths(keys: _Keys, layer: int, members: Sequence[Tensor]) -> tuple[int, int]:
    """Widths of one layer's K and V cache; (0, 0) where it has no attention."""
    rows = {short_name(t.name): t.shape[1] for t in members if len(t.shape) > 1 and t.name.endswith(".weight")}
    if not any(name.startswith("attn_") and "norm" not in name for name in rows):
        return 0, 0
    heads = keys.number("attention.head_count_kv", layer) or keys.number("attention.head_count", layer)
    k, v = heads * keys.head_width("key"), heads * keys.head_width("value")
    if "attn_kv_a_mqa" in rows:
        # Multi-head latent attention: one latent vector a token where the file has its halves apart, else all heads.
        return (rows["attn_kv_a_mqa"],) * 2 if "attn_k_b" in rows else (k, v)
    # A layer without a V takes its K for it.
    return rows.get("attn_k", k), rows.get("attn_v", rows.get("attn_k", v))


def _state(keys: _Keys, members: Sequence[Tensor]) -> int:
    """Values of the state that one layer keeps for each sequence; 0 for a layer of attention alone."""
    kinds = {short_name(tensor.name).split("_")[0] for tensor in members}
    n_embd = keys.number("embedding_length")
    found = 0
    if "ssm" in kinds:
        inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
        groups, kernel = keys.number("ssm.group_count"), keys.number("ssm.conv_kernel")
        found += inner * state + max(0, kernel - 1) * (inner + 2 * groups * state)
    if "time" in kinds:
        found += n_embd * (keys.number("wkv.head_size") + 2)
    if "shortconv" in kinds:
        found += n_embd * max(0, keys.number("shortconv.l_cache") - 1)
    return _bounded(found)
