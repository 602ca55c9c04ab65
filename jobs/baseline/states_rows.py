"""Scores against a states baseline: rebuilds the reference's logits with its own head, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import BaselineFormat, Machine
from core.errors import BaselineError
from jobs import kernel
from jobs.baseline.checksums import ChunkSums
from jobs.baseline.head import Head
from jobs.baseline.meta import content_hash
from jobs.baseline.states_file import StatesMeta, StatesReader, is_states_file, restored
from jobs.decode import Span, Step
from jobs.scoring import KLD, RowBuffers, RowPool, Table, blocks, wait

__all__ = ["HEAD_ROWS", "StatesBaseline", "is_states_file", "pieces"]

#: States that the head is given at once: few, so that its logits take little memory beside the variant's; with fewer,
#: the head's weights are read too often.
HEAD_ROWS = 64


def pieces(spans: Sequence[Span], size: int) -> Iterator[list[Span]]:
    """Spans in parts of at most ``size`` outputs each, in order."""
    part: list[Span] = []
    room = size
    for chunk, row, output, length in spans:
        done = 0
        while done < length:
            n = min(room, length - done)
            part.append((chunk, row + done, output + done, n))
            done, room = done + n, room - n
            if room == 0:
                yield part
                part, room = [], size
    if part:
        yield part


class StatesBaseline:
    """A states baseline opened to score against; its head is loaded when it is first needed.

    Args:
        as_llama_cpp: write llama-perplexity's KLD (the base encoded to 16 bits and clipped) into a table's scores and
            the unclipped one beside it; else the unclipped one into its scores.
        whole_steps: rebuild all rows of a decode at once, so that they can be scored while the next one runs.

    Raises:
        BaselineError: missing, damaged, or without its head.
    """

    def __init__(
        self, path: Path, *, machine: Machine, n_threads: int, as_llama_cpp: bool = False, whole_steps: bool = False
    ) -> None:
        self.path = path
        self.reader = StatesReader(path)
        self.shape, self.tokens = self.reader.shape, self.reader.tokens
        self._machine, self._n_threads = machine, n_threads
        self._as_llama_cpp, self._whole_steps = as_llama_cpp, whole_steps
        self._head: Head | None = None
        self._sums = ChunkSums()
        self._buffers = RowBuffers(self.shape.row_u16)

    @property
    def format(self) -> BaselineFormat:
        return "states"

    @property
    def facts(self) -> StatesMeta:
        return self.reader.meta

    @property
    def exact_nll(self) -> NDArray[np.float64]:
        """The reference's own NLL of each scored token (f64, nats)."""
        return self.reader.nll.ravel()

    @property
    def identity(self) -> Any:
        return [self.reader.meta.model_dump(mode="json"), self.reader.chunk_sums]

    @property
    def content(self) -> str | None:
        return content_hash(self.reader.meta.reference_sha256, self.tokens, self.reader.nll)

    @property
    def head_seconds(self) -> float:
        return self._head.seconds if self._head else 0.0

    def close(self) -> None:
        """Close the file and free the head."""
        self.reader.close()
        if self._head:
            self._head.close()

    def prefetch(self, chunks: range) -> None:
        self.reader.prefetch(chunks)

    def head(self, n_rows: int) -> Head:
        """The head; the first call decides how many rows it takes at a time."""
        if self._head is None:
            meta = self.reader.meta
            self._head = Head(
                self.reader.head,
                reference_sha256=meta.reference_sha256,
                n_embd=meta.n_embd,
                machine=self._machine,
                n_rows=n_rows,
                n_threads=self._n_threads,
            )
            if self._head.n_vocab != meta.n_vocab:
                raise BaselineError(f"{self.reader.head} does not fit the baseline. Record the baseline again.")
        return self._head

    def start(
        self,
        pool: RowPool,
        group: range,
        step: Step,
        variants: Sequence[tuple[NDArray[np.float32], Table]],
        targets: NDArray[np.int64],
    ) -> list[Future[None]]:
        n_rows = len(step.rows) if self._whole_steps else HEAD_ROWS
        head = self.head(n_rows)
        futures: list[Future[None]] = []
        for part in pieces(step.spans, min(n_rows, head.n_rows)):
            # The head's own buffer is used again: its last rows must be scored first.
            wait(futures)
            first = part[0][2]
            base = head.run(np.concatenate([self._read(group.start + span[0], *span[1::2]) for span in part]))
            tasks = [
                self._task(group, block, base[block[2] - first : block[2] - first + block[3]], variants, targets)
                for block in blocks(part, self.shape.n_vocab)
            ]
            futures = pool.start(tasks)
        return futures

    def _read(self, chunk: int, row: int, n: int) -> NDArray[np.float32]:
        values = self.reader.read(chunk, row, n)
        self._sums.add(chunk, values, row)
        return restored(values, self.reader.meta.state_type)

    def rebuild(self, raw: NDArray[np.float32]) -> None:
        """Make logits of the head's raw output, in place."""
        meta = self.reader.meta
        if meta.scale != 1 or meta.softcap or meta.has_bias:
            kernel.apply_head_rule(raw, np.float32(meta.scale), self.reader.bias, np.float32(meta.softcap))

    def _task(
        self,
        group: range,
        block: Span,
        base: NDArray[np.float32],
        variants: Sequence[tuple[NDArray[np.float32], Table]],
        targets: NDArray[np.int64],
    ) -> Callable[[], None]:
        def work() -> None:
            chunk, row, output, n = block
            where, rows = group.start + chunk, slice(row, row + n)
            wanted = targets[chunk, rows]
            self.rebuild(base)
            encoded = self._encode(base, wanted) if self._as_llama_cpp else None
            for logits, table in variants:
                mine = logits[output : output + n]
                scores, same, verdicts = (
                    table.scores[where, rows],
                    table.same_top[where, rows],
                    table.verdicts[where, rows],
                )
                kernel.score_unclipped(mine, base, wanted, scores, same, verdicts)
                if encoded is not None and (verdicts == kernel.FINE).all():
                    table.unclipped[where, rows] = scores[:, KLD]
                    kernel.score_clipped(mine, encoded, wanted, scores, same, verdicts)

        return work

    def _encode(self, base: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Rebuilt logits as a base file would hold them, in this thread's buffer."""
        n = len(base)
        encoded = self._buffers.rows(n)
        kernel.encode_rows(base, wanted, encoded, np.empty(n), np.empty(n, np.int64))
        return encoded

    def finish(self, group: range) -> None:
        for chunk in group:
            if self._sums.take(chunk) != self.reader.chunk_sums[chunk]:
                raise BaselineError(f"The baseline is damaged: chunk {chunk} fails its checksum. Record it again.")
