"""What a GGUF header says about a variant: size, types by tensor group, provenance, tokenizer, flags.

The parts live where their subject is (:mod:`core.inspection`, :mod:`core.flags`, :mod:`core.provenance`,
:mod:`core.overlap`); this module puts them together.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from core.flags import LOW_BIT, header_flags
from core.gguf_header import GGUFHeader, SkippedArray, SkippedString, Tensor
from core.inspection import (
    AUDIT_VERSION,
    GROUPS,
    BaseModelRef,
    Flag,
    Group,
    Imatrix,
    Inspection,
    TypeShare,
    file_type_name,
    group_of,
    int_of,
    str_of,
)
from core.model_shape import shape_of
from core.overlap import flags_under, overlap_flag
from core.provenance import base_models, imatrix_of, repo_id_of, source_of

__all__ = [
    "AUDIT_VERSION", "GROUPS", "LOW_BIT", "BaseModelRef", "Flag", "Group", "Imatrix", "Inspection", "TypeShare",
    "base_models", "chat_template", "file_type_name", "flags_under", "group_of", "inspect", "overlap_flag",
    "repo_id_of",
]  # fmt: skip


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
    grouped: dict[Group, list[Tensor]] = {group: [] for group in GROUPS}
    for tensor in tensors:
        grouped[group_of(tensor.name)].append(tensor)
    tokens = kv.get("tokenizer.ggml.tokens")
    arch = str_of(headers[0].architecture)
    inspection = Inspection(
        architecture=arch,
        n_params=n_params,
        size_bytes=size_bytes,
        bpw=8 * n_bytes / n_params if n_params else 0.0,
        file_type=file_type_name(kv),
        n_tensors=len(tensors),
        tensor_types=_shares(tensors),
        groups={group: _shares(members) for group, members in grouped.items() if members},
        imatrix=imatrix_of(kv),
        base_models=base_models(kv),
        shards=shards_expected,
        chat_template_sha256=_template_sha256(kv),
        n_vocab=tokens.length if isinstance(tokens, SkippedArray) else None,
        n_ctx_train=int_of(kv.get(f"{arch}.context_length")),
        flags=[],
        vocab_sha256=tokens.sha256 if isinstance(tokens, SkippedArray) else None,
        tokenizer_model=str_of(kv.get("tokenizer.ggml.model")),
        tokenizer_pre=str_of(kv.get("tokenizer.ggml.pre")),
        source=source_of(kv),
        shards_found=len(headers),
        shape=shape_of(headers),
        audit_version=AUDIT_VERSION,
    )
    return inspection.model_copy(update={"flags": header_flags(inspection, headers, name=name)})


def chat_template(headers: Sequence[GGUFHeader]) -> str | None:
    """The chat template's text, or None where there is none or it is too long to be kept. Never to be rendered."""
    found = headers[0].kv.get("tokenizer.chat_template")
    return found if isinstance(found, str) else None


def _template_sha256(kv: dict[str, Any]) -> str | None:
    found = kv.get("tokenizer.chat_template")
    if isinstance(found, SkippedString):
        return found.sha256
    return hashlib.sha256(found.encode("utf-8", "replace")).hexdigest() if isinstance(found, str) else None


def _shares(tensors: Iterable[Tensor]) -> dict[str, TypeShare]:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in tensors:
        row = sums[tensor.type_name]
        row[0] += 1
        row[1] += tensor.n_elements
        row[2] += tensor.n_bytes
    return {name: TypeShare(count=c, params=p, bytes=b) for name, (c, p, b) in sorted(sums.items())}
