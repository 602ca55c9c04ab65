"""Records full logits: llama-perplexity's ``.kld``, byte for byte, and a companion with what it can't hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.canonical import write_atomic
from core.statistics import perplexity
from jobs.baseline.checksums import ChunkSums, row_sums
from jobs.baseline.kld_file import header_bytes
from jobs.baseline.meta import BaselineMeta, meta_path, pack_nll, tokens_sha256
from jobs.baseline.part_file import PartFile
from jobs.baseline.record import Recording, nll_task
from jobs.context import Context
from jobs.decode import Span, Step
from jobs.scoring import RowBuffers, blocks


class LogitsRecorder:
    """Encodes each row where a thread has it in its cache, and writes it to its place."""

    needs_states = False

    def __init__(self, recording: Recording, out: Path) -> None:
        self._recording, self._out, self._shape = recording, out, recording.shape
        self._sums = ChunkSums()
        self._buffers = RowBuffers(self._shape.row_u16)

    def begin(self, part: PartFile, stack: ExitStack) -> None:
        shape = self._shape
        part.require(shape.file_bytes)
        self._part = part
        part.write(header_bytes(shape, self._recording.tokens), 0)

    def _place(self, chunk: int, row: int) -> int:
        shape = self._shape
        return shape.rows_offset + chunk * shape.chunk_bytes + row * shape.row_u16 * 2

    def accepts(self, chunk: int, chunk_sum: int, nll: NDArray[np.float64]) -> bool:
        shape = self._shape
        data = self._part.read(shape.chunk_bytes, self._place(chunk, 0))
        if len(data) != shape.chunk_bytes:
            return False
        return row_sums(np.frombuffer(data, "<u2").reshape(-1, shape.row_u16), 0) == chunk_sum

    def rows(
        self, group: range, step: Step, logits: NDArray[np.float32], context: Context, nll: NDArray[np.float64]
    ) -> list[Callable[[], None]]:
        return [partial(self._encode, group, block, logits, nll) for block in blocks(step.spans, self._shape.n_vocab)]

    def _encode(
        self,
        group: range,
        block: Span,
        logits: NDArray[np.float32],
        nll: NDArray[np.float64],
    ) -> None:
        chunk, row, _, n = block
        encoded = self._buffers.rows(n)
        nll_task(self._recording, group, block, logits, encoded, nll)
        where = group.start + chunk
        self._part.write(encoded, self._place(where, row))
        self._sums.add(where, encoded, row)

    def close_group(self, group: range) -> tuple[list[int], list[float]]:
        return self._sums.take_all(group), []

    def end(self, nll: NDArray[np.float64], sums: list[int], checks: list[float]) -> None:
        recording, shape = self._recording, self._shape
        meta = BaselineMeta(
            reference_name=recording.model.path.name,
            reference_sha256=recording.reference_sha256,
            corpus_sha256=recording.corpus_sha256,
            n_ctx=shape.n_ctx,
            n_chunks=shape.n_chunks,
            n_vocab=shape.n_vocab,
            vocab_sha256=recording.vocab_sha256,
            add_bos=recording.model.add_bos,
            ppl=perplexity(nll.ravel()),
            nll=pack_nll(nll.ravel()),
            tokens_sha256=tokens_sha256(recording.tokens),
            chunk_sums=sums,
            n_batch=recording.spec.n_batch,
            n_ubatch=recording.spec.n_ubatch,
            flash_attn=recording.spec.flash_attn,
            environment=recording.found,
        )
        # Written before the file appears, so that a disk that is full for it is full before that.
        write_atomic(self._waiting, meta.model_dump_json())
        # Between the file's coming and its companion's there is none, rather than one of another recording.
        meta_path(self._out).unlink(missing_ok=True)

    @property
    def _waiting(self) -> Path:
        """Where the companion waits for the file to appear."""
        return self._out.with_name(f".{meta_path(self._out).name}.part")

    def published(self) -> None:
        self._waiting.replace(meta_path(self._out))

    def given_up(self) -> None:
        self._waiting.unlink(missing_ok=True)

    def judge(self, checks: list[float]) -> None:
        pass

    def result(self) -> dict[str, Any]:
        return {"format": "logits"}
