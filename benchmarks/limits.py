"""What our runs are held against, measured with the product's own parts: a process of its own per measurement.

``python -m benchmarks.limits decode|head|truth|kernel`` takes its arguments as JSON on stdin and prints JSON.

- decode: the same chunks through the same context, scored rows asked for, nothing done with them.
- head: the head of a states baseline over all its states, its logits not looked at.
- truth: the unclipped mean KLD from both models' true logits, decoded side by side.
- kernel: see :mod:`benchmarks.kernel_alone`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import BaselineSpec, Machine
from jobs import kernel
from jobs.baseline.record import read_corpus
from jobs.baseline.states_file import restored
from jobs.baseline.states_rows import HEAD_ROWS, StatesBaseline, pieces
from jobs.decode import Step, batch_shape, chunk_tokens, groups, steps
from jobs.llama import Model, environment
from jobs.passes import make_context
from jobs.scoring import KLD, RowPool, Table, blocks
from jobs.walk import OnOutputs, Walk


def _walk(
    models: list[Path], corpus: str, machine: Machine, *, chunks: int, n_ctx: int, stack: ExitStack
) -> tuple[Walk, list[Model], float]:
    """A walk over the corpus as recording and measuring make it, its models, and the seconds that loading took."""
    begin = time.perf_counter()
    found = environment(machine)
    loaded = [stack.enter_context(Model(path, machine)) for path in models]
    spec = BaselineSpec(reference=str(models[0]), corpus=corpus, out="", n_ctx=n_ctx, chunks=chunks, machine=machine)
    tokens = chunk_tokens(loaded[0].tokenize(read_corpus(Path(corpus))), n_ctx=n_ctx, chunks=chunks)
    shape = batch_shape(n_ctx=n_ctx, n_batch=spec.n_batch, n_ubatch=spec.n_ubatch)
    # As the product: where a GPU decodes one model, decodes of the next group lie between those with outputs.
    overlap = found.backend != "CPU" and found.n_gpu_layers != 0 and len(models) == 1
    contexts = [
        stack.enter_context(
            make_context(model, spec, shape, n_chunks=len(tokens), n_threads=found.n_threads, overlap=overlap)
        )
        for model in loaded
    ]
    walk = Walk(
        contexts=contexts,
        shape=shape,
        tokens=tokens,
        on_outputs=lambda group, step, logits: [],
        on_group=lambda group: None,
        before_group=lambda group: None,
        overlap=overlap,
    )
    return walk, loaded, time.perf_counter() - begin


def decode(model: str, corpus: str, machine: Machine, *, chunks: int, n_ctx: int) -> dict[str, Any]:
    """Decode alone: seconds of loading, of the walk, and of the decodes in it."""
    with ExitStack() as stack:
        walk, _, load = _walk([Path(model)], corpus, machine, chunks=chunks, n_ctx=n_ctx, stack=stack)
        walk.run()
    return {"load": load, "wall": walk.timings.wall, "decode": walk.timings.decode, "n_chunks": len(walk.tokens)}


def head(baseline: str, machine: Machine) -> dict[str, Any]:
    """The head pass alone: seconds in the head for every scored row, in the pieces that measuring makes."""
    found = environment(machine)
    with closing(StatesBaseline(Path(baseline), machine=machine, n_threads=found.n_threads)) as opened:
        begin = time.perf_counter()
        its_head = opened.head(HEAD_ROWS)
        load = time.perf_counter() - begin
        shape = batch_shape(n_ctx=opened.shape.n_ctx, n_batch=2048, n_ubatch=512)
        kind = opened.reader.meta.state_type
        begin = time.perf_counter()
        for group in groups(opened.shape.n_chunks, shape.n_seq):
            for step in steps(shape, len(group)):
                for part in pieces(step.spans, HEAD_ROWS):
                    rows = [opened.reader.read(group.start + chunk, row, n) for chunk, row, _, n in part]
                    its_head.run(restored(np.concatenate(rows), kind))
        wall = time.perf_counter() - begin
        return {"load": load, "wall": wall, "head": its_head.seconds}


def truth(model: str, reference: str, corpus: str, machine: Machine, *, chunks: int, n_ctx: int) -> dict[str, Any]:
    """The mean unclipped KLD (nats) of the model from the reference, from the true logits of both."""
    with ExitStack() as stack:
        walk, loaded, _ = _walk(
            [Path(reference), Path(model)], corpus, machine, chunks=chunks, n_ctx=n_ctx, stack=stack
        )
        pool = stack.enter_context(RowPool(environment(machine).n_threads))
        table = Table.empty(len(walk.tokens), n_ctx - 1 - n_ctx // 2)
        walk.on_outputs = _scorer(pool, walk.tokens[:, n_ctx // 2 + 1 :].astype(np.int64), table, loaded[0].n_vocab)
        walk.run()
    if table.verdicts.any():
        raise SystemExit("the model's logits are not finite")
    return {"kld_mean": float(table.scores[..., KLD].mean()), "n_chunks": len(walk.tokens)}


def _scorer(pool: RowPool, targets: NDArray[np.int64], table: Table, n_vocab: int) -> OnOutputs:
    def task(group: range, block: tuple[int, int, int, int], logits: list[NDArray[np.float32] | None]) -> None:
        chunk, row, output, n = block
        base, mine = logits
        assert base is not None and mine is not None
        where, rows, outputs = group.start + chunk, slice(row, row + n), slice(output, output + n)
        kernel.score_unclipped(
            mine[outputs],
            base[outputs],
            targets[where, rows],
            table.scores[where, rows],
            table.same_top[where, rows],
            table.verdicts[where, rows],
        )

    def on_outputs(group: range, step: Step, logits: list[NDArray[np.float32] | None]) -> list[Future[None]]:
        return pool.start([partial(task, group, block, logits) for block in blocks(step.spans, n_vocab)])

    return on_outputs


def main() -> int:
    """Entry point of the process."""
    what, given = sys.argv[1], json.load(sys.stdin)
    if "machine" in given:
        given["machine"] = Machine.model_validate(given["machine"])
    if what == "kernel":
        from benchmarks.kernel_alone import measure

        answer = measure(**given)
    else:
        limits: dict[str, Callable[..., dict[str, Any]]] = {"decode": decode, "head": head, "truth": truth}
        answer = limits[what](**given)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
