"""Scores against a ``.kld`` baseline: rows are read, checked and compared in a thread's own cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import BaselineFormat
from core.errors import BaselineError
from jobs import kernel
from jobs.baseline.checksums import ChunkSums
from jobs.baseline.kld_file import KldReader
from jobs.baseline.meta import BaselineMeta, check_meta, content_hash, read_meta
from jobs.decode import Span, Step
from jobs.scoring import RowBuffers, RowPool, Table, blocks


class LogitsBaseline:
    """A ``.kld`` file opened to score against.

    Raises:
        BaselineError: missing or corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = KldReader(path)
        self.meta: BaselineMeta | None = read_meta(path)
        check_meta(self._reader, self.meta)
        self.shape = self._reader.shape
        self.tokens = self._reader.tokens
        self._sums = ChunkSums()
        self._buffers = RowBuffers(self.shape.row_u16)

    @property
    def format(self) -> BaselineFormat:
        return "logits"

    @property
    def facts(self) -> BaselineMeta | None:
        return self.meta

    @property
    def identity(self) -> Any:
        """The checksums where it has them; else what the file system says of the file."""
        if self.meta:
            return [self.meta.tokens_sha256, self.meta.chunk_sums]
        found = self.path.stat()
        return [found.st_size, found.st_mtime_ns]

    @property
    def content(self) -> str | None:
        """What it says of which text, as a hash: the same for states of the same recording; None if unknown."""
        return content_hash(self.meta.reference_sha256, self.tokens, self.exact_nll) if self.meta else None

    @property
    def head_seconds(self) -> float:
        return 0.0

    @property
    def exact_nll(self) -> NDArray[np.float64] | None:
        """The reference's own NLL of each scored token (f64, nats), where the recording kept it."""
        return self.meta.exact_nll if self.meta else None

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def prefetch(self, chunks: range) -> None:
        """Tell the system which rows come next, so that the disk reads while the model computes."""
        self._reader.prefetch(chunks)

    def start(
        self,
        pool: RowPool,
        group: range,
        step: Step,
        variants: Sequence[tuple[NDArray[np.float32], Table]],
        targets: NDArray[np.int64],
    ) -> list[Future[None]]:
        tasks = [self._task(group, block, variants, targets) for block in blocks(step.spans, self.shape.n_vocab)]
        return pool.start(tasks)

    def _task(
        self,
        group: range,
        block: Span,
        variants: Sequence[tuple[NDArray[np.float32], Table]],
        targets: NDArray[np.int64],
    ) -> Callable[[], None]:
        def work() -> None:
            chunk, row, output, length = block
            where = group.start + chunk
            rows = self._read(where, row, length)
            wanted = targets[chunk, row : row + length]
            for logits, table in variants:
                kernel.score_clipped(
                    logits[output : output + length],
                    rows,
                    wanted,
                    table.scores[where, row : row + length],
                    table.same_top[where, row : row + length],
                    table.verdicts[where, row : row + length],
                )

        return work

    def _read(self, chunk: int, row: int, length: int) -> NDArray[np.uint16]:
        """Encoded rows, shape (length, row_u16), in this thread's buffer."""
        rows = self._buffers.rows(length)
        self._reader.read(chunk, row, rows)
        if self.meta is not None:
            self._sums.add(chunk, rows, row)
        return rows

    def finish(self, group: range) -> None:
        """Check the checksums of a group whose rows were all read.

        Raises:
            BaselineError: a chunk is not what was recorded.
        """
        if self.meta is None:
            return
        for chunk in group:
            if self._sums.take(chunk) != self.meta.chunk_sums[chunk]:
                raise BaselineError(f"The baseline is corrupt: chunk {chunk} fails its checksum. Record it again.")
