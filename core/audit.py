"""What a GGUF header says about a variant: size, types by tensor group, imatrix provenance, flags."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from gguf import LlamaFileType
from pydantic import BaseModel, ConfigDict

from core.gguf_files import bare_label, label_of
from core.gguf_header import GGUFHeader, Tensor
from core.protocol import CORPUS_SOURCES, WIKITEXT2_TEST, Corpus, Source

Group = Literal["attention", "ffn", "experts", "ssm", "embeddings", "output", "norms", "other"]
GROUPS: tuple[Group, ...] = ("attention", "ffn", "experts", "ssm", "embeddings", "output", "norms", "other")

#: Types under four bits a weight that an importance matrix matters most for (the ternary TQ types take none).
LOW_BIT = frozenset({"Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"})
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
_REPO_URL = re.compile(
    r"https?://(?!(?:www\.)?(?:github|gitlab|modelscope)\.)[^/\s]+/([\w.-]+)/([\w.-]+)(?:[/?#]|\Z)", re.ASCII
)
_NOT_OWNERS = frozenset({"datasets", "spaces", "collections", "api", "docs", "blog", "papers"})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TypeShare(_Model):
    """How much of a model is kept in one tensor type."""

    count: int
    params: int
    bytes: int


class Imatrix(_Model):
    """The importance matrix that llama-quantize wrote into the header (its keys may be stale after requantizing)."""

    file: str | None
    dataset: str | None
    entries: int | None
    chunks: int | None


class BaseModelRef(_Model):
    """A base model that the header names; a claim of the uploader, not a proof."""

    name: str | None = None
    organization: str | None = None
    repo_url: str | None = None
    repo_id: str | None = None


class Flag(_Model):
    """Something worth a look: a stable code and a sentence."""

    code: str
    detail: str


class Inspection(_Model):
    """Everything ``quantcard inspect`` tells; sizes in bytes, ``bpw`` = 8 x tensor bytes / parameters."""

    architecture: str | None
    n_params: int
    size_bytes: int
    bpw: float
    file_type: str | None
    n_tensors: int
    tensor_types: dict[str, TypeShare]
    groups: dict[Group, dict[str, TypeShare]]
    imatrix: Imatrix | None
    base_models: list[BaseModelRef]
    shards: int
    chat_template_sha256: str | None
    n_vocab: int | None
    n_ctx_train: int | None
    flags: list[Flag]


def group_of(name: str) -> Group:
    """The group a tensor belongs to, by llama.cpp's naming (``blk.3.attn_q.weight``)."""
    parts = name.split(".")
    if parts[0] in ("enc", "dec") and len(parts) > 1:
        parts = parts[1:]
    short = parts[2] if parts[0] == "blk" and len(parts) > 2 else parts[0]
    if "norm" in short:
        return "norms"
    if short in ("token_embd", "position_embd", "token_types", "per_layer_token_embd"):
        return "embeddings"
    if short == "output":
        return "output"
    if "_exps" in short or "shexp" in short or short in ("ffn_gate_inp", "exp_probs_b"):
        return "experts"
    if short.startswith(("ssm_", "time_mix")):
        return "ssm"
    if short.startswith(("ffn_", "channel_mix")):
        return "ffn"
    if "attn" in short:
        return "attention"
    return "other"


def file_type_name(kv: dict[str, Any]) -> str | None:
    """``general.file_type`` as llama.cpp's label (``Q4_K_M``), or None when absent or unknown."""
    value = _int(kv.get("general.file_type"))
    if value is None:
        return None
    try:
        return LlamaFileType(value & ~1024).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return f"file_type {value}"


def _shares(tensors: Sequence[Tensor]) -> dict[str, TypeShare]:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in tensors:
        row = sums[tensor.type_name]
        row[0] += 1
        row[1] += tensor.n_elements
        row[2] += tensor.n_bytes
    return {name: TypeShare(count=c, params=p, bytes=b) for name, (c, p, b) in sorted(sums.items())}


def inspect(headers: Sequence[GGUFHeader], *, size_bytes: int, name: str, shards_expected: int = 1) -> Inspection:
    """Audit a variant from its shards' headers (the first holds the key-values).

    Args:
        headers: one per file at hand, first shard first.
        size_bytes: bytes of all its files.
        name: its file name, for the label.
        shards_expected: how many shards the name or ``split.count`` promises.
    """
    kv = headers[0].kv
    tensors = [tensor for header in headers for tensor in header.tensors]
    n_params = sum(tensor.n_elements for tensor in tensors)
    n_bytes = sum(tensor.n_bytes for tensor in tensors)
    groups: dict[Group, dict[str, TypeShare]] = {}
    for group in GROUPS:
        members = [tensor for tensor in tensors if group_of(tensor.name) == group]
        if members:
            groups[group] = _shares(members)
    template = kv.get("tokenizer.chat_template")
    arch = headers[0].architecture
    inspection = Inspection(
        architecture=arch,
        n_params=n_params,
        size_bytes=size_bytes,
        bpw=8 * n_bytes / n_params if n_params else 0.0,
        file_type=file_type_name(kv),
        n_tensors=len(tensors),
        tensor_types=_shares(tensors),
        groups=groups,
        imatrix=_imatrix(kv),
        base_models=base_models(kv),
        shards=shards_expected,
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None,
        n_vocab=_vocab_size(kv),
        n_ctx_train=_int(kv.get(f"{arch}.context_length")),
        flags=[],
    )
    found = _flags(inspection, tensors, name=name, n_headers=len(headers))
    return inspection.model_copy(update={"flags": found})


def _int(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _vocab_size(kv: dict[str, Any]) -> int | None:
    tokens = kv.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        return len(tokens)
    return getattr(tokens, "length", None)


def _imatrix(kv: dict[str, Any]) -> Imatrix | None:
    keys = ("file", "dataset", "entries_count", "chunks_count")
    values = [kv.get(f"quantize.imatrix.{key}") for key in keys]
    if all(value is None for value in values):
        return None
    return Imatrix(file=_str(values[0]), dataset=_str(values[1]), entries=_int(values[2]), chunks=_int(values[3]))


def base_models(kv: dict[str, Any]) -> list[BaseModelRef]:
    """The base models that ``general.base_model.*`` names (what the uploader says)."""
    count = _int(kv.get("general.base_model.count")) or 0
    found = []
    for index in range(min(count, 16)):
        prefix = f"general.base_model.{index}."
        url = _str(kv.get(prefix + "repo_url"))
        found.append(
            BaseModelRef(
                name=_str(kv.get(prefix + "name")),
                organization=_str(kv.get(prefix + "organization")),
                repo_url=url,
                repo_id=repo_id_of(url),
            )
        )
    return found


def repo_id_of(url: str | None) -> str | None:
    """``owner/name`` of a model repo's address on the Hub (or a mirror of it), or None."""
    found = _REPO_URL.match(url or "")
    return f"{found[1]}/{found[2]}" if found and found[1] not in _NOT_OWNERS else None


def _flags(found: Inspection, tensors: Sequence[Tensor], *, name: str, n_headers: int) -> list[Flag]:
    flags: list[Flag] = []

    def flag(code: str, detail: str) -> None:
        flags.append(Flag(code=code, detail=detail))

    if n_headers < found.shards:
        flag("shards-missing", f"{n_headers} of {found.shards} shards are there.")
    label = bare_label(label_of(name))
    if found.file_type and label != found.file_type and label in _FILE_TYPES:
        flag("label-mismatch", f"The name says {label}, the header says {found.file_type}.")
    fallback = _fallbacks(found.file_type, tensors)
    if fallback:
        flag("fallback-types", fallback)
    low = sorted(set(found.tensor_types) & LOW_BIT)
    if low and found.imatrix is None:
        flag("no-imatrix", f"It has tensors in {', '.join(low)} and no imatrix keys in its header.")
    for group in ("attention", "ssm"):
        if "MXFP4" in found.groups.get(group, {}):
            flag(f"mxfp4-{group}", f"MXFP4 on {group} tensors, which it was found to hurt most.")
    ssm_low = sorted({t.type_name for t in tensors if "ssm_out" in t.name} & LOW_BIT)
    if ssm_low:
        flag("low-bit-ssm-out", f"ssm_out in {', '.join(ssm_low)}: little saved, much lost.")
    if any(kind.startswith("TYPE_") for kind in found.tensor_types):
        flag("unknown-types", "Tensor types that this version of gguf does not know.")
    return flags


_FILE_TYPES = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}


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


#: llama.cpp keeps strings of its own making in a header to this many bytes.
_CUT = 127
_OTHER_SPLITS = frozenset({"train", "training", "trn", "valid", "validation", "val", "dev", "calib", "calibration"})
#: Words beside 'wiki' and 'test' that make no other text of it.
_PLAIN = frozenset(
    {"wiki", "wikitext", "wikitest", "test", "raw", "v", "tokens", "txt", "text", "md", "gz", "zip", "parquet", "arrow"}
    | {"json", "jsonl", "of", "split", "en", "full"}
)


def overlap_flag(found: Inspection, corpus: Corpus, source: Source | None = None) -> Flag | None:
    """A flag when the text that a variant's imatrix was made from looks like the one that it is measured on.

    The header holds a name only (a path as somebody typed it, perhaps cut short), so this goes by names: the corpus'
    own, its file's, and for wikitext's test split the many that it goes by. What is cut too short is not flagged.

    Args:
        source: where the corpus is taken from; default: where the built-in one of this sha256 is.
    """
    dataset = found.imatrix.dataset if found.imatrix else None
    if not dataset:
        return None
    source = source or CORPUS_SOURCES.get(corpus.sha256)
    names = [corpus.name, *([source.basename] if source else [])]
    cut = len(dataset.encode("utf-8", "replace")) >= _CUT
    path = [part for part in re.split(r"[/\\]+", dataset.lower().strip()) if part]
    wiki = corpus.sha256 == WIKITEXT2_TEST.sha256 or any(_is_wikitext_test([name.lower()]) for name in names)
    if not (wiki and _is_wikitext_test(path)) and not any(_same_name(path, name.lower(), cut=cut) for name in names):
        return None
    return Flag(
        code="imatrix-overlap",
        detail=f"Its imatrix was made, by its file's name, from the text it is measured on ({corpus.name}), so its "
        "figures flatter it.",
    )


def flags_under(found: Inspection, corpus: Corpus, source: Source | None = None) -> list[Flag]:
    """A variant's flags where it is measured on ``corpus``: those of its header, and the overlap with its imatrix."""
    overlap = overlap_flag(found, corpus, source)
    return [*found.flags, *([overlap] if overlap else [])]


def _same_name(path: Sequence[str], name: str, *, cut: bool) -> bool:
    """Whether a path's last part is ``name``, or (either way round) that without its ending."""
    last = path[-1] if path else ""
    stem = name.rpartition(".")[0] or name
    if last in (name, stem) or (last.rpartition(".")[0] or last) == name:
        return True
    return cut and last.startswith(f"{stem}.") and name.startswith(last)


def _is_wikitext_test(path: Sequence[str]) -> bool:
    """Whether a path (lower case) is wikitext's test split, which wikitext-2 and wikitext-103 share."""
    last = path[-1] if path else ""
    words = set(re.findall(r"[a-z]+", last))
    foreign = {word for word in words - _PLAIN if len(word) == 2}  # wikitext_ja.test: another language's
    if words & _OTHER_SPLITS or foreign or not words & {"test", "wikitest"}:
        return False
    if "wikitext" in words or re.search(r"wiki[._ -]?test[._ -](raw|tokens)", last):
        return True
    folders = {word for part in path[:-1] for word in re.findall(r"[a-z]+", part)}
    return words <= _PLAIN and bool({"wiki", "wikitest"} & words or "wikitext" in folders)
