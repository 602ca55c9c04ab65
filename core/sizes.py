"""What a job takes, from a variant's header and its protocol, and where that fits. Pure.

Every part is the most that it can be: KV caches as if every layer saw the whole context, compute buffers as llama.cpp
reserves them. What a run really took corrects later estimates for its architecture: :func:`compare`, :func:`corrected`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from core.contract import BaselineFormat
from core.inspection import Inspection
from core.model_shape import ModelShape
from core.need import Need
from core.protocol import Protocol

Kind = Literal["baseline", "quality", "speed"]

_MIB: Final = 1 << 20
#: A measuring process before it loads anything: Python, NumPy and llama.cpp; for quality and baselines Numba and
#: pyarrow too. Measured: 75 and 255 MB.
_PROCESS: Final[dict[Kind, int]] = {"speed": 128 * _MIB, "quality": 320 * _MIB, "baseline": 320 * _MIB}
#: Bytes for each token of a vocabulary, its text in llama.cpp's tables and in ours, with the merges (measured: 450).
_TOKEN: Final = 640
#: Rows of a baseline that its head rebuilds at once, on the CPU.
_HEAD_ROWS: Final = 64
#: Channels that a head has beside the reference's own.
_HEAD_PAD: Final = 256
#: llama.cpp's caches hold a multiple of this many tokens.
_CELLS: Final = 256
#: Tokens that a text is taken for where nobody counted them: wikitext-2's test split has 245 to 340 thousand.
_TOKENS_OF_A_TEXT: Final = 400_000
#: Bytes a scored token takes in sidecar and checkpoint.
_SCORED: Final = 128
#: Where a header tells no shape: weights times this for everything else.
_BLIND: Final = 0.25


@dataclass(frozen=True, slots=True)
class _Run:
    """How a job runs the model: cells of its cache, tokens of a micro-batch, sequences, rows of logits kept."""

    cells: int
    n_ubatch: int
    n_seq: int
    rows: int
    type_k: str
    type_v: str


def estimate(
    inspection: Inspection,
    protocol: Protocol,
    kind: Kind,
    *,
    baseline_format: BaselineFormat = "states",
    reference: Inspection | None = None,
    on_gpu: bool = False,
    n_tokens: int | None = None,
) -> Need:
    """What a job takes at most.

    Args:
        inspection: of the variant; of one that an older audit saw, the weights are known and the rest is a share.
        reference: of a quality job, for its head's size; by default one of two bytes a weight.
        on_gpu: the next batch is decoded while one is scored, which takes twice the sequences.
        n_tokens: of the corpus, where known.
    """
    shape = inspection.shape
    tensors = sum(share.bytes for share in inspection.tensor_types.values())
    if shape is None:
        rest = int(_BLIND * tensors)
        return Need(
            weights=tensors, kv_cache=rest // 4, logits=rest // 4, compute=rest // 2, baseline=rest // 2,
            disk=inspection.size_bytes, n_layers=0, outside_layers=tensors, process=_PROCESS[kind], reclaimable=tensors,
        )  # fmt: skip
    n_vocab = max(shape.n_vocab, inspection.n_vocab or 0)
    run = _run_of(protocol, kind, on_gpu=on_gpu)
    rows = run.n_ubatch if on_gpu else _HEAD_ROWS
    with_head = kind != "speed" and baseline_format == "states"
    head = _head_bytes(shape, n_vocab, reference) if with_head else 0
    return Need(
        weights=shape.weights,
        kv_cache=_cache_bytes(shape, run),
        logits=4 * run.rows * n_vocab,
        compute=_compute_bytes(shape, run, n_vocab, flash_attn=protocol.flash_attn != "off"),
        baseline=head + (8 * rows * (n_vocab + 4 * shape.n_embd) if with_head else 0),
        disk=inspection.size_bytes + _written(shape, protocol, kind, baseline_format, n_vocab, n_tokens, head),
        n_layers=shape.n_layers,
        largest_layer=shape.largest_layer,
        outside_layers=shape.outside_layers,
        process=_PROCESS[kind] + _TOKEN * n_vocab,
        reclaimable=shape.repacked,
    )


def _run_of(protocol: Protocol, kind: Kind, *, on_gpu: bool) -> _Run:
    """As :mod:`jobs.passes`, :mod:`jobs.decode` and :mod:`jobs.speed` make their contexts."""
    if kind == "speed":
        n_tokens = protocol.n_prompt + protocol.n_gen + protocol.n_depth
        n_ubatch = min(protocol.n_ubatch, protocol.n_batch)
        return _Run(_padded(n_tokens), n_ubatch, 1, 1, protocol.type_k, protocol.type_v)
    n_seq = max(1, protocol.n_batch // protocol.n_ctx)
    if protocol.chunks > 0:
        n_seq = min(n_seq, protocol.chunks)
    n_ubatch = max(n_seq, min(protocol.n_ubatch, protocol.n_batch, n_seq * protocol.n_ctx))
    # A reference is recorded with f16 whatever the protocol's cache is.
    types = ("f16", "f16") if kind == "baseline" else (protocol.type_k, protocol.type_v)
    n_all = n_seq * (2 if on_gpu and kind == "quality" else 1)
    return _Run(n_all * _padded(protocol.n_ctx), n_ubatch, n_all, n_ubatch, *types)


def _padded(n_tokens: int) -> int:
    return -(-n_tokens // _CELLS) * _CELLS


def _cache_bytes(shape: ModelShape, run: _Run) -> int:
    cells = run.cells * (_width_bytes(shape.k_width, run.type_k) + _width_bytes(shape.v_width, run.type_v))
    return cells + 4 * run.n_seq * shape.state_values


def _width_bytes(width: int, kind: str) -> int:
    """Bytes of so many values in a type, whole blocks of it."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return -(-width // block) * size


def _compute_bytes(shape: ModelShape, run: _Run, n_vocab: int, *, flash_attn: bool) -> int:
    """llama.cpp's compute buffer: the micro-batch's logits, or its widest layer where that is more, and its masks.

    It reserves room for a micro-batch that asks for the logits of all its tokens, whatever is asked for later.
    """
    cells = -(-run.cells // run.n_seq)
    # Without flash attention the scores of all heads stand beside a layer's values.
    layer = 4 * shape.n_embd + 4 * shape.widest + (0 if flash_attn else shape.n_heads * cells)
    # Masks are kept in both widths, for every token of the micro-batch over its own sequence's cells.
    return 4 * run.n_ubatch * (max(n_vocab, layer) + 2 * cells) + 16 * _MIB


def _head_bytes(shape: ModelShape, n_vocab: int, reference: Inspection | None) -> int:
    """The reference's output head as a GGUF of its own."""
    width = 4 if reference is not None and reference.file_type == "F32" else 2
    n_embd = reference.shape.n_embd if reference is not None and reference.shape is not None else shape.n_embd
    return width * n_vocab * (n_embd + _HEAD_PAD)


def _written(
    shape: ModelShape,
    protocol: Protocol,
    kind: Kind,
    baseline_format: BaselineFormat,
    n_vocab: int,
    n_tokens: int | None,
    head: int,
) -> int:
    """Bytes that the job itself leaves on disk or needs there while it runs."""
    if kind == "speed":
        return 0
    tokens = n_tokens if n_tokens is not None else _TOKENS_OF_A_TEXT
    if protocol.chunks > 0:
        tokens = min(tokens, protocol.chunks * protocol.n_ctx)
    # Half of each chunk is scored.
    scored = tokens // 2
    if kind == "quality":
        return _SCORED * scored
    if baseline_format == "logits":
        return scored * (2 * n_vocab + 10)
    return scored * (4 * shape.n_embd + 16) + head


def compare(need: Need, *, memory: int | None = None, vram: int | None = None) -> float | None:
    """How much of an estimate a run really took (1.0: all of it), or None where nothing was measured.

    Args:
        memory: its peak of resident memory in bytes (``SpeedTest.peak_memory_bytes``).
        vram: of all GPUs together; where there is any, that is what counts, since the file's pages that a process
            has read on the way to a GPU say nothing.
    """
    if vram:
        on_gpu = need.memory - need.process
        return vram / on_gpu if on_gpu > 0 else None
    return memory / need.peak if memory and need.peak > 0 else None


#: What is kept in hand beside a run that took more than its estimate, and how far that may raise the next ones.
_MARGIN: Final = 1.1
_MOST: Final = 4.0


def corrected(need: Need, ratios: Sequence[float]) -> Need:
    """An estimate raised by what runs of the same architecture took of theirs (:func:`compare`).

    Never lowered: a small model, or one whose buffers were not all used, says nothing about a large one. Weights are
    known and stay; the difference is put on the compute buffers.
    """
    factor = _MARGIN * max((ratio for ratio in ratios if 1.0 < ratio < float("inf")), default=0.0)
    if factor <= 1.0:
        return need
    return replace(need, compute=need.compute + int((min(factor, _MOST) - 1.0) * need.memory))
