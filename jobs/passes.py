"""What recording and measuring share: the context of a pass over chunks, stamps in its checkpoint, identities."""

from __future__ import annotations

from pathlib import Path

from core.canonical import sha256_file
from core.contract import BaselineSpec, QualityManySpec, QualitySpec
from core.errors import SettingsError
from core.gguf_files import identity
from jobs.context import Context
from jobs.decode import BatchShape, groups
from jobs.llama import Model, shard_paths


def make_context(
    model: Model,
    spec: BaselineSpec | QualitySpec | QualityManySpec,
    shape: BatchShape,
    *,
    n_chunks: int,
    n_threads: int,
    overlap: bool = False,
    capture: bool = False,
) -> Context:
    """The context for a pass over chunks.

    Raises:
        SettingsError: the chunks are longer than the model was made for.
        JobError: llama.cpp can't make it.
    """
    if shape.n_ctx > model.n_ctx_train > 0:
        raise SettingsError(
            f"{model.path.name} was made for contexts of {model.n_ctx_train} tokens; chunks of {shape.n_ctx} would "
            "measure something else. Use a smaller --ctx."
        )
    n_seq = min(shape.n_seq, n_chunks)
    # The last group may be a smaller one, whose micro-batches are cut otherwise.
    sizes = {len(group) for group in groups(n_chunks, shape.n_seq)}
    return Context(
        model,
        n_ctx=shape.n_ctx,
        n_seq=n_seq * (2 if overlap else 1),
        n_batch=max(shape.most_tokens(size) for size in sizes),
        n_ubatch=shape.n_ubatch,
        type_k=spec.type_k,
        type_v=spec.type_v,
        flash_attn=spec.flash_attn,
        n_threads=n_threads,
        capture=capture,
    )


def stamp(group: range) -> bytes:
    """Which chunks a record of a checkpoint speaks of (8 bytes)."""
    return group.start.to_bytes(4, "little") + group.stop.to_bytes(4, "little")


def model_sha256(path: Path) -> str:
    """sha256 of a model's file, or of its shards' joined hashes (the same identity that the Hub's files have)."""
    return identity([sha256_file(shard) for shard in shard_paths(path)])
