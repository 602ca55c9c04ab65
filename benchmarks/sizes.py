"""What a baseline takes on disk: ``.kld`` against states and head, from the files' own layout.

The sizes that recordings of this run really have are the proof of the formula, which is then applied to the case that
the issue names: a vocabulary of 152k, states of 1,024, 580 chunks of 512 (the whole of wikitext-2's test).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.setting import Subject
from benchmarks.table import BenchError, Row, Target, size
from core.contract import BaselineResult
from core.gguf_header import read_file_header
from jobs.baseline.gguf_file import Planned
from jobs.baseline.kld_file import KldShape
from jobs.baseline.states_file import StatesMeta, StatesReader, plan

WHOLE = KldShape(n_ctx=512, n_vocab=151_936, n_chunks=580)
WHOLE_EMBD = 1024
TARGET = Target("≤ 1/60", 1 / 60)
#: A GGUF's tensors begin at multiples of this.
_ALIGNMENT = 32


def data_bytes(tensors: list[Planned]) -> int:
    """Bytes of a GGUF's tensors, each padded as the format wants it."""
    return sum(-(-tensor.n_bytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)


def states_plan(shape: KldShape, n_embd: int, kind: str, *, n_samples: int, has_bias: bool = False) -> list[Planned]:
    """The tensors of a states baseline."""
    meta = StatesMeta.model_construct(
        n_ctx=shape.n_ctx,
        n_chunks=shape.n_chunks,
        n_vocab=shape.n_vocab,
        n_embd=n_embd,
        n_samples=n_samples,
        state_type=kind,
        has_bias=has_bias,
    )
    return plan(meta)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a baseline in both formats; ``over`` is what a states file and a head have before their tensors."""

    kld: int
    states: int
    head: int

    @property
    def ratio(self) -> float:
        """(states + head) / .kld"""
        return (self.states + self.head) / self.kld


def head_plan(head: Path) -> list[Planned]:
    """The tensors of a head's GGUF."""
    tensors = read_file_header(head).tensors
    return [Planned(tensor.name, tensor.shape[::-1], tensor.type_name) for tensor in tensors]


def scaled(tensors: list[Planned], *, width: tuple[int, int], vocab: tuple[int, int]) -> list[Planned]:
    """A head's tensors with another width and another vocabulary: (as they are, as they shall be) each."""
    assert len({width[0], vocab[0], 1}) == 3
    change = {width[0]: width[1], vocab[0]: vocab[1]}
    return [Planned(t.name, tuple(change.get(n, n) for n in t.shape), t.kind) for t in tensors]


def extrapolate(states: Path, head: Path, kld_bytes: int) -> tuple[Sizes, Sizes]:
    """The sizes of recorded files, and those of :data:`WHOLE` with the same overheads.

    Raises:
        BenchError: the formula does not give the recorded files' sizes.
    """
    reader = StatesReader(states)
    reader.close()
    meta, shape = reader.meta, reader.shape
    if kld_bytes != shape.file_bytes:
        raise BenchError(f"A .kld of {kld_bytes} bytes was recorded; its layout says {shape.file_bytes}.")
    planned = states_plan(shape, meta.n_embd, meta.state_type, n_samples=meta.n_samples, has_bias=meta.has_bias)
    its_head = head_plan(head)
    found = Sizes(kld_bytes, states.stat().st_size, head.stat().st_size)
    # What comes before the tensors: names, metadata.
    before = (found.states - data_bytes(planned), found.head - data_bytes(its_head))
    if before != (read_file_header(states).data_start, read_file_header(head).data_start):
        raise BenchError("A recorded states baseline is not as large as its layout says.")
    width = next(t.shape[1] for t in its_head if t.name == "token_embd.weight")
    wider = scaled(its_head, width=(width, WHOLE_EMBD + width - meta.n_embd), vocab=(shape.n_vocab, WHOLE.n_vocab))
    whole = Sizes(
        WHOLE.file_bytes,
        before[0] + data_bytes(states_plan(WHOLE, WHOLE_EMBD, meta.state_type, n_samples=meta.n_samples)),
        before[1] + data_bytes(wider),
    )
    return found, whole


def measure_sizes(subject: Subject, kld: BaselineResult, states: BaselineResult) -> None:
    """Rows of sizes: of this run's files, and of the issue's case."""
    assert states.head_path is not None
    found, whole = extrapolate(Path(states.path), Path(states.head_path), kld.size_bytes)
    for what, sizes, target in (
        (f"baseline, {kld.n_chunks} chunks, V = {kld.n_vocab:,}", found, None),
        ("baseline, 580 chunks, V = 151,936, n_embd 1024", whole, TARGET),
    ):
        subject.rows.append(
            Row(
                what,
                f"states {size(sizes.states)} + head {size(sizes.head)}: 1/{1 / sizes.ratio:.1f}",
                f".kld: {size(sizes.kld)}",
                sizes.ratio,
                target,
                samples={"kld_bytes": sizes.kld, "states_bytes": sizes.states, "head_bytes": sizes.head},
            )
        )
