"""What in a variant's headers is worth a look. They stand on uploaders' cards: each has to be true, and of use.

Every code is explained in docs/audit.md. What they rest on: measurements of 121 mixtures of Qwen3.5-35B-A3B (MXFP4 on
attention and ssm tensors, ssm_out and ffn_down_exps at low bits, attention in hybrid models), llama-quantize's own
recipes, and what llama.cpp refuses to load.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from gguf import GGML_QUANT_SIZES

from core.gguf_files import bare_label, label_of
from core.gguf_header import GGUFHeader, Tensor
from core.inspection import FILE_TYPES, Flag, Inspection, group_of, int_of, layer_of, short_name
from core.provenance import contradiction

#: Types under four bits a weight that an importance matrix matters most for (the ternary TQ types take none).
LOW_BIT = frozenset({"Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"})
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
#: Bits a weight of every type that is known.
_BITS = {kind.name: 8 * n_bytes / block for kind, (block, n_bytes) in GGML_QUANT_SIZES.items()}
#: Types that llama-quantize makes most layers of, where they are not called like the label.
_RECIPES: dict[str, frozenset[str]] = {
    "Q3_K_M": frozenset({"Q3_K", "Q4_K"}), "Q3_K_L": frozenset({"Q3_K", "Q5_K"}), "Q2_K": frozenset({"Q2_K", "Q3_K"}),
    "IQ1_M": frozenset({"IQ1_M", "IQ2_XXS"}), "IQ1_S": frozenset({"IQ1_S", "IQ2_XXS"}),
    "IQ2_S": frozenset({"IQ2_XS", "IQ3_S"}), "IQ2_M": frozenset({"IQ2_S", "IQ3_S"}),
    "IQ3_XXS": frozenset({"IQ3_XXS", "IQ2_S", "Q3_K"}), "IQ3_XS": frozenset({"IQ3_S", "IQ3_XXS"}),
    "IQ3_M": frozenset({"IQ3_S", "Q4_K"}), "MXFP4_MOE": frozenset({"MXFP4", "Q8_0"}),
}  # fmt: skip
#: A file is not what its label says when less of its layers than this is in the label's types.
_PROMISED_SHARE = 0.4
#: How far (bits a weight) below its siblings an expert's down projection has to lie.
_FAR_BELOW = 0.75
#: An importance matrix fits loosely: routers are in it, layers for drafts and experts that nothing reached are not.
_MORE_ENTRIES, _FEWER_ENTRIES = 1.25, 0.5


def header_flags(found: Inspection, headers: Sequence[GGUFHeader], *, name: str) -> list[Flag]:
    """The flags of one variant, from its headers alone.

    Args:
        found: what the audit knows so far.
        headers: one per file at hand, first shard first.
        name: the variant's file name.
    """
    tensors = [tensor for header in headers for tensor in header.tensors]
    label = bare_label(label_of(name))
    whole = len(headers) >= found.shards
    flags: list[Flag] = []

    def flag(code: str, detail: str | None) -> None:
        if detail:
            flags.append(Flag(code=code, detail=detail))

    if not whole:
        flag("shards-missing", f"{len(headers)} of {found.shards} shards are there.")
    flag("split-mismatch", _split(headers, found.shards, whole=whole))
    if found.file_type and label != found.file_type and label in FILE_TYPES:
        flag("label-mismatch", f"The name says {label}, the header says {found.file_type}.")
    fallback = _fallbacks(found.file_type, tensors)
    flag("fallback-types", fallback)
    if whole and not fallback:
        flag("mixture-mismatch", _mixture(found.file_type or (label if label in FILE_TYPES else None), tensors))
    # A first shard holds the key-values: without it nothing is known of the imatrix.
    if whole:
        flag("no-imatrix", _without_imatrix(found, tensors))
        flag("imatrix-stale", _stale_imatrix(found, tensors))
        flag("imatrix-mismatch", _imatrix_of_another(found, tensors))
    flag("mxfp4-attention", _mxfp4(tensors, "attention"))
    flag("mxfp4-ssm", _mxfp4(tensors, "ssm"))
    flag("low-bit-ssm-out", _ssm_out(tensors))
    flag("low-bit-attention-hybrid", _attention_of_hybrid(tensors))
    flag("low-bit-experts-down", _experts_down(tensors))
    if claims := contradiction(headers[0].kv):
        flag("base-models-disagree", f"Its header contradicts itself: {claims}.")
    if any(kind.startswith("TYPE_") for kind in found.tensor_types):
        flag("unknown-types", "Tensor types that this version of gguf does not know.")
    return flags


def _split(headers: Sequence[GGUFHeader], shards: int, *, whole: bool) -> str | None:
    """A sentence when the shards' own numbers are not those of their names; llama.cpp goes by both."""
    counts = {count for header in headers if (count := int_of(header.kv.get("split.count"))) is not None and count > 1}
    if wrong := sorted(counts - {shards}):
        said = "is one file" if shards == 1 else f"is one of {shards} shards"
        return f"Its header says that it is one of {wrong[0]} shards, its name that it {said}; llama.cpp can't load it."
    if not whole:
        return None
    numbers = [int_of(header.kv.get("split.no")) for header in headers]
    if shards > 1 and None not in numbers and numbers != list(range(shards)):
        return "The shards' names and the numbers in their headers are in different order; llama.cpp can't load it."
    names = [tensor.name for header in headers for tensor in header.tensors]
    if len(headers) > 1 and len(set(names)) < len(names):
        return "The same tensor stands in more than one shard; llama.cpp can't load it."
    promised = int_of(headers[0].kv.get("split.tensors.count"))
    if shards > 1 and promised is not None and promised != len(names):
        return f"Its shards hold {len(names)} tensors, its header promises {promised}; llama.cpp can't load it."
    return None


def _fallbacks(file_type: str | None, tensors: Sequence[Tensor]) -> str | None:
    """A sentence when rows that are no multiple of 256 forced K- or I-quants into other types, else None."""
    # IQ4_NL is the one I-quant with blocks of 32: such rows are at home in it.
    if file_type is None or file_type == "IQ4_NL" or not (file_type[:2] == "IQ" or "_K" in file_type):
        return None
    matrices = [t for t in tensors if len(t.shape) >= 2 and t.type_name != "F32"]
    forced = [t for t in matrices if t.shape[0] % 256 and t.type_name not in _FLOATS]
    if not forced:
        return None
    kinds = ", ".join(f"{n} in {kind}" for kind, n in sorted(Counter(t.type_name for t in forced).items()))
    return f"{len(forced)} of {len(tensors)} tensors fell back to other types ({kinds}): rows are no multiple of 256."


def _body(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The matrices of the layers: what a label speaks of and what an importance matrix covers."""
    outside = ("embeddings", "output", "norms")
    return [t for t in tensors if len(t.shape) >= 2 and t.name.endswith(".weight") and group_of(t.name) not in outside]


def _mixture(file_type: str | None, tensors: Sequence[Tensor]) -> str | None:
    """A sentence when most of the layers are in other types than the label's recipe has, else None."""
    if file_type is None or file_type not in FILE_TYPES:
        return None
    promised = _RECIPES.get(file_type) or {re.sub(r"_[SML]\Z", "", file_type) if "_K_" in file_type else file_type}
    params: Counter[str] = Counter()
    for tensor in _body(tensors):
        params[tensor.type_name] += tensor.n_elements
    total = sum(params.values())
    if not total or sum(params[kind] for kind in promised) >= _PROMISED_SHARE * total:
        return None
    parts = [f"{kind} {100 * n / total:.0f} %" for kind, n in params.most_common(3) if n >= 0.01 * total]
    return f"The label is {file_type}, but by parameters its layers are {', '.join(parts)}."


def _without_imatrix(found: Inspection, tensors: Sequence[Tensor]) -> str | None:
    low = _kinds(t for t in _body(tensors) if t.type_name in LOW_BIT)
    if not low or found.imatrix is not None:
        return None
    return f"It has tensors in {low} and no imatrix keys in its header; below 4 bits an imatrix helps most."


def _stale_imatrix(found: Inspection, tensors: Sequence[Tensor]) -> str | None:
    """llama-quantize copies all keys of its source, and writes its own only with ``--imatrix``."""
    if found.imatrix is None or not tensors or any(t.type_name not in _FLOATS for t in tensors):
        return None
    return (
        "It has imatrix keys, but nothing in it is quantized: a matrix without effect, or a file made back from a "
        "quantized one."
    )


def _imatrix_of_another(found: Inspection, tensors: Sequence[Tensor]) -> str | None:
    """A sentence when the matrix has far more or far fewer entries than this model has tensors for it."""
    entries = found.imatrix.entries if found.imatrix else None
    layers = [t for t in _body(tensors) if layer_of(t.name) is not None]
    quantized = sum(t.type_name not in _FLOATS for t in layers)
    # One tensor per expert, one entry for all of them: the first mixtures can't be counted.
    if entries is None or not quantized or any(re.search(r"\.ffn_\w+\.[0-9]+\.weight\Z", t.name) for t in layers):
        return None
    most = len(layers) + 1  # the output head may be in it
    if entries > _MORE_ENTRIES * most or entries < _FEWER_ENTRIES * quantized:
        return (
            f"Its imatrix has {entries} entries, where this model has {quantized} quantized matrices in its layers: "
            "it looks like another model's."
        )
    return None


def _mxfp4(tensors: Sequence[Tensor], group: str) -> str | None:
    hit = [
        t for t in tensors if t.type_name == "MXFP4" and (_is_ssm(t) if group == "ssm" else group_of(t.name) == group)
    ]
    if not hit:
        return None
    return f"MXFP4 on {_shorts(hit)}: measured to be much worse there than Q4_K at nearly the same size."


def _is_ssm(tensor: Tensor) -> bool:
    return group_of(tensor.name) == "ssm" and short_name(tensor.name).startswith(("ssm_", "time_mix"))


def _ssm_out(tensors: Sequence[Tensor]) -> str | None:
    hit = [t for t in tensors if short_name(t.name) == "ssm_out" and t.type_name in LOW_BIT]
    return f"ssm_out in {_kinds(hit)}: little saved, much lost; keep it at 4 bits or more." if hit else None


def _attention_of_hybrid(tensors: Sequence[Tensor]) -> str | None:
    attention = [t for t in _body(tensors) if group_of(t.name) == "attention"]
    hit = [t for t in attention if t.type_name in LOW_BIT]
    if not hit or not any(_is_ssm(t) for t in tensors):
        return None
    return (
        f"{_shorts(hit)} in {_kinds(hit)}, in a model that mixes attention with ssm layers, where attention is "
        "sensitive; keep it at 4 bits or more."
    )


def _experts_down(tensors: Sequence[Tensor]) -> str | None:
    """A sentence when experts' down projections lie far below their own layers' up and gate, else None."""
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        layer, group = layer_of(tensor.name), group_of(tensor.name)
        if layer is not None and "_exps" in tensor.name and group.startswith("experts_") and group != "experts_other":
            layers[layer].setdefault(group, tensor)
    hit, siblings = [], []
    for parts in layers.values():
        down = parts.pop("experts_down", None)
        if down is None or not parts or down.type_name not in LOW_BIT:
            continue
        least = min(parts.values(), key=lambda t: _BITS.get(t.type_name, 0.0))
        if _BITS.get(least.type_name, 0.0) - _BITS[down.type_name] >= _FAR_BELOW:
            hit.append(down)
            siblings.append(least)
    if not hit:
        return None
    return (
        f"ffn_down_exps in {_kinds(hit)} in {len(hit)} of {len(layers)} layers, below their siblings' "
        f"{_kinds(siblings)}: of the experts' tensors the down projection is the most sensitive."
    )


def _kinds(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({t.type_name for t in tensors}))


def _shorts(tensors: Sequence[Tensor]) -> str:
    """Short names of tensors, the first few of them."""
    names = sorted({short_name(t.name) for t in tensors})
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(name[:40] for name in names[:4]) + more
