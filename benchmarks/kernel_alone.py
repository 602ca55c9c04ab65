"""The scoring kernels without a model: milliseconds a row, and the memory bandwidth that they could use at most.

A made-up ``.kld`` is written once and lies in the page cache; each row of it is read by position into a thread's
buffer, checked and compared, by the product's own code on the product's own pool, against logits in memory.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import kernel
from jobs.baseline.checksums import row_sums
from jobs.baseline.kld_file import KldShape, header_bytes
from jobs.baseline.logits_rows import LogitsBaseline
from jobs.baseline.meta import BaselineMeta, tokens_sha256, write_meta
from jobs.baseline.states_rows import HEAD_ROWS, pieces
from jobs.decode import BatchShape, Step, batch_shape, steps
from jobs.scoring import RowPool, Table, blocks, wait

N_SEQ = 4
#: Bytes that scoring one entry of a row touches: f32 logit and u16 of the base; f32 and f32.
CLIPPED_BYTES, UNCLIPPED_BYTES = 6, 8


def measure(*, n_vocab: int, n_ctx: int, n_threads: int, repeats: int, folder: str) -> dict[str, Any]:
    """Seconds a row of each path, bandwidths in bytes/s; medians of ``repeats`` passes after one that warms up."""
    shape = batch_shape(n_ctx=n_ctx, n_batch=N_SEQ * n_ctx, n_ubatch=n_ctx)
    with tempfile.TemporaryDirectory(dir=folder) as name, RowPool(n_threads) as pool:
        path = Path(name) / "kernel.kld"
        logits = _make_logits(max(len(step.rows) for step in steps(shape, N_SEQ)), n_vocab, pool)
        tokens = _write_base(path, shape, logits, pool)
        kld_shape = KldShape(n_ctx, n_vocab, N_SEQ)
        targets = tokens[:, kld_shape.first + 1 :].astype(np.int64)
        plan = [step for step in steps(shape, N_SEQ) if step.spans]
        table = Table.empty(N_SEQ, kld_shape.rows_per_chunk)
        with closing(LogitsBaseline(path)) as baseline:

            def clipped() -> None:
                for step in plan:
                    wait(baseline.start(pool, range(N_SEQ), step, [(logits[: len(step.rows)], table)], targets))
                baseline.finish(range(N_SEQ))

            found = {"clipped": _median(clipped, repeats)}
            if table.verdicts.any():
                raise SystemExit("the made-up rows were refused")

            def read(block: tuple[int, int, int, int]) -> None:
                baseline._read(block[0], block[1], block[3])

            def reads() -> None:
                for step in plan:
                    pool.run([partial(read, block) for block in blocks(step.spans, n_vocab)])
                baseline.finish(range(N_SEQ))

            found["read"] = _median(reads, repeats)
        base = logits[:HEAD_ROWS] + np.float32(0.01)

        def unclipped() -> None:
            for step in plan:
                _unclipped(pool, step, logits, base, targets, table)

        found["unclipped"] = _median(unclipped, repeats)
        n_rows = N_SEQ * kld_shape.rows_per_chunk
        bandwidth = _bandwidth(pool, n_threads, logits, repeats)
    return {
        "n_rows": n_rows,
        "n_vocab": n_vocab,
        "n_threads": n_threads,
        **{f"{name}_s": value / n_rows for name, value in found.items()},
        **bandwidth,
    }


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _make_logits(n_rows: int, n_vocab: int, pool: RowPool) -> NDArray[np.float32]:
    """Logits with a spread (standard deviation 3) like a model's."""
    logits = np.empty((n_rows, n_vocab), np.float32)

    def fill(row: int) -> None:
        generator = np.random.default_rng([1, row])
        generator.standard_normal(dtype=np.float32, out=logits[row])
        logits[row] *= 3

    pool.run([partial(fill, row) for row in range(n_rows)])
    return logits


def _write_base(path: Path, shape: BatchShape, logits: NDArray[np.float32], pool: RowPool) -> NDArray[np.int32]:
    """Write a base file, and its companion, of the logits less a little; its tokens."""
    n_vocab = logits.shape[1]
    kld = KldShape(shape.n_ctx, n_vocab, N_SEQ)
    tokens = np.random.default_rng(0).integers(0, n_vocab, (N_SEQ, shape.n_ctx), dtype=np.int32)
    sums: list[list[int]] = [[] for _ in range(N_SEQ)]
    with path.open("wb") as file:
        file.write(header_bytes(kld, tokens))
        file.flush()

        def encode(block: tuple[int, int, int, int]) -> None:
            chunk, row, output, n = block
            encoded = np.empty((n, kld.row_u16), np.uint16)
            noise = np.random.default_rng([2, chunk, row]).standard_normal((n, n_vocab), dtype=np.float32)
            rows = logits[output : output + n] + np.float32(0.1) * noise
            kernel.encode_rows(rows, np.zeros(n, np.int64), encoded, np.empty(n), np.empty(n, np.int64))
            os.pwrite(file.fileno(), encoded.data, kld.rows_offset + chunk * kld.chunk_bytes + row * kld.row_u16 * 2)
            sums[chunk].append(row_sums(encoded, row))

        for step in steps(shape, N_SEQ):
            pool.run([partial(encode, block) for block in blocks(step.spans, n_vocab)])
    meta = BaselineMeta(
        n_ctx=shape.n_ctx,
        n_chunks=N_SEQ,
        n_vocab=n_vocab,
        tokens_sha256=tokens_sha256(tokens),
        chunk_sums=[sum(found) & ((1 << 64) - 1) for found in sums],
    )
    write_meta(path, meta)
    return tokens


def _unclipped(
    pool: RowPool,
    step: Step,
    logits: NDArray[np.float32],
    base: NDArray[np.float32],
    targets: NDArray[np.int64],
    table: Table,
) -> None:
    """Score a step as a states baseline does: a head's buffer of rows at a time."""

    def task(first: int, block: tuple[int, int, int, int]) -> None:
        chunk, row, output, n = block
        kernel.score_unclipped(
            logits[output : output + n],
            base[output - first : output - first + n],
            targets[chunk, row : row + n],
            table.scores[chunk, row : row + n],
            table.same_top[chunk, row : row + n],
            table.verdicts[chunk, row : row + n],
        )

    for part in pieces(step.spans, len(base)):
        pool.run([partial(task, part[0][2], block) for block in blocks(part, logits.shape[1])])


def _bandwidth(pool: RowPool, n_threads: int, logits: NDArray[np.float32], repeats: int) -> dict[str, float]:
    """Bytes a second, on as many threads: of a maximum (read) and of copying (read and written, both counted)."""
    parts = np.array_split(logits.reshape(-1), n_threads)
    copies = [np.empty_like(part[: len(part) // 2]) for part in parts]

    def look(index: int) -> None:
        parts[index].max()

    def copy(index: int) -> None:
        np.copyto(copies[index], parts[index][: len(copies[index])])

    indices = range(n_threads)
    read = _median(lambda: pool.run([partial(look, index) for index in indices]), repeats)
    copied = _median(lambda: pool.run([partial(copy, index) for index in indices]), repeats)
    return {
        "read_bytes_per_s": logits.nbytes / read,
        "copy_bytes_per_s": 2 * sum(part.nbytes for part in copies) / copied,
    }
