"""Scores rows on a persistent pool of threads, straight from llama.cpp's logits buffer."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.closes import Closes
from core.errors import BaselineError, NonFiniteLogitsError
from jobs import kernel
from jobs.decode import Span

#: Elements of one block of rows: large enough to hide the hand-over, small enough to share out evenly.
BLOCK_ELEMENTS = 1 << 19
#: Columns of :attr:`Table.scores`.
NLL, NLL_BASE, KLD, P_TOP_BASE = range(4)


class RowPool(Closes):
    """Threads that live as long as the run; they take blocks of rows as they get free."""

    def __init__(self, n_threads: int) -> None:
        self._n = n_threads
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="score")

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        self._threads.shutdown(cancel_futures=True)

    def start(self, tasks: Sequence[Callable[[], None]]) -> list[Future[None]]:
        """Begin running all tasks; wait with :func:`wait`."""
        counter = itertools.count()

        def work() -> None:
            while (index := next(counter)) < len(tasks):
                tasks[index]()

        return [self._threads.submit(work) for _ in range(min(self._n, len(tasks)))]

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run all tasks and wait; the first error is raised."""
        wait(self.start(tasks))


def wait(futures: Sequence[Future[None]]) -> None:
    """Wait for all, also where one fails: what they work on is let go of afterwards. The first error is raised."""
    wait_for_all(futures)
    for future in futures:
        future.result()


class RowBuffers:
    """A buffer for encoded rows in each thread, made once and used again."""

    def __init__(self, row_u16: int) -> None:
        self._row_u16 = row_u16
        self._local = threading.local()

    def rows(self, n: int) -> NDArray[np.uint16]:
        """This thread's buffer, shape (n, row_u16); it holds what it held before."""
        buffer: NDArray[np.uint16] | None = getattr(self._local, "rows", None)
        if buffer is None or len(buffer) < n:
            buffer = self._local.rows = np.empty((n, self._row_u16), np.uint16)
        return buffer[:n]


def blocks(spans: Sequence[Span], n_vocab: int) -> Iterator[Span]:
    """Spans cut into blocks of about :data:`BLOCK_ELEMENTS` logits."""
    size = max(1, BLOCK_ELEMENTS // n_vocab)
    for chunk, row, output, length in spans:
        for start in range(0, length, size):
            yield chunk, row + start, output + start, min(size, length - start)


@dataclass(frozen=True, slots=True)
class Table:
    """Per-token values of one variant, in corpus order, each of shape (n_chunks, rows_per_chunk[, 4]).

    ``scores`` holds NLL, base NLL, KLD (nats) and the base's highest probability; ``unclipped`` the unclipped KLD
    where ``scores`` holds llama.cpp's, else it has no columns.
    """

    scores: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    verdicts: NDArray[np.int64]
    unclipped: NDArray[np.float64]

    @classmethod
    def empty(cls, n_chunks: int, rows: int, *, both: bool = False) -> Table:
        return cls(
            np.zeros((n_chunks, rows, 4)),
            np.zeros((n_chunks, rows), np.bool_),
            np.full((n_chunks, rows), kernel.UNSCORED),
            np.zeros((n_chunks, rows if both else 0)),
        )

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All arrays, in the order in which a checkpoint keeps them."""
        return self.scores, self.same_top, self.verdicts, self.unclipped

    def pack(self, group: range) -> bytes:
        """A group's values as bytes."""
        return b"".join(np.ascontiguousarray(a[group.start : group.stop]).tobytes() for a in self.arrays)

    def unpack(self, group: range, data: bytes) -> None:
        """Put back what :meth:`pack` gave."""
        offset = 0
        for array in self.arrays:
            part = array[group.start : group.stop]
            part[...] = np.frombuffer(data, array.dtype, part.size, offset).reshape(part.shape)
            offset += part.nbytes


def check_verdicts(name: str, verdicts: NDArray[np.int64], *, first: int) -> None:
    """Raise unless every row looked at is fine.

    Args:
        verdicts: shape (n_chunks, rows_per_chunk), of the chunks looked at.
        first: the first scored position of a chunk.

    Raises:
        BaselineError: a base row is no distribution.
        NonFiniteLogitsError: INVALID, with the share of rows and the first of them.
    """
    if (verdicts == kernel.CORRUPT).any():
        chunk = int(np.argwhere(verdicts == kernel.CORRUPT)[0][0])
        raise BaselineError(f"The baseline is corrupt: rows of chunk {chunk} are no probabilities. Record it again.")
    # A broken model is given up early: the share is of what was looked at.
    verdicts = verdicts[(verdicts != kernel.UNSCORED).all(axis=1)]
    bad = verdicts != kernel.FINE
    if not bad.any():
        return
    chunk, row = (int(i) for i in np.argwhere(bad)[0])
    n_bad = int(bad.sum())
    what = (
        "the model's logits are NaN or infinite"
        if (verdicts == kernel.NOT_FINITE).any()
        else "the model gives probability zero to tokens that the baseline does not"
    )
    raise NonFiniteLogitsError(
        f"INVALID: at {n_bad:,} of {bad.size:,} scored positions ({100 * n_bad / bad.size:.3g} %) {what}, first in "
        f"chunk {chunk} at position {first + row}. {name} is broken (or its kernels overflow here): quantize it "
        "again or report it to its uploader."
    )
