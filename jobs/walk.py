"""Walks chunks through models, a micro-batch at a time, and hands out each decode's logits for scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.figures import Timings
from jobs.context import Context
from jobs.decode import BatchShape, Step, fed_tokens, groups, schedule, steps
from jobs.scoring import wait

#: Told of a decode's outputs: the group, the decode, and per context its logits (n_rows, n_vocab; None for one that is
#: skipped), which are valid until the futures that it returns are done.
OnOutputs = Callable[[range, Step, list[NDArray[np.float32] | None]], list["Future[None]"]]


@dataclass(slots=True)
class Walk:
    """One pass over chunks ``tokens``, shape (n_chunks, n_ctx), through one context or several of one vocabulary.

    Args:
        overlap: whether the next decode begins while the last one's rows are scored. Contexts then need room for two
            groups of sequences. Worth it where the model runs on another device than the scoring.
        start: the first chunk that is not done yet.
    """

    contexts: Sequence[Context]
    shape: BatchShape
    tokens: NDArray[np.int32]
    on_outputs: OnOutputs
    on_group: Callable[[range], None]
    before_group: Callable[[range], None]
    start: int = 0
    overlap: bool = False
    timings: Timings = field(default_factory=Timings)
    #: Contexts (by index) that are decoded no more; when all are, the walk ends.
    skip: set[int] = field(default_factory=set)
    _pending: tuple[list[Future[None]], range | None] | None = None

    def run(self) -> None:
        """Walk to the end; whatever ends it early, no thread is at the contexts' logits any more."""
        begin = time.perf_counter()
        try:
            self._run()
        finally:
            if self._pending is not None:
                wait_for_all(self._pending[0])
        self.timings.wall += time.perf_counter() - begin

    def _run(self) -> None:
        todo = list(groups(len(self.tokens), self.shape.n_seq, start=self.start))
        plans = [steps(self.shape, len(group)) for group in todo]
        order = schedule([[bool(step.spans) for step in plan] for plan in plans], overlap=self.overlap)
        fed: dict[int, list[NDArray[np.int32]]] = {}
        for number, at in order:
            if len(self.skip) == len(self.contexts):
                return
            group, step = todo[number], plans[number][at]
            if at == 0:
                self.before_group(group)
                fed[number] = self._begin(group, number)
            logits = self._decode(step, fed[number], number)
            last = at == len(plans[number]) - 1
            if last:
                del fed[number]
            if step.spans:
                begin_score = time.perf_counter()
                self._pending = (self.on_outputs(group, step, logits), group if last else None)
                self.timings.score += time.perf_counter() - begin_score
                if not self.overlap:
                    self._settle()
            elif last:
                self._settle()
                self.on_group(group)
        self._settle()

    def _slot(self, number: int) -> int:
        return (number % 2) * self._width if self.overlap else 0

    @property
    def _width(self) -> int:
        """Chunks of the largest group."""
        return min(self.shape.n_seq, len(self.tokens))

    def _begin(self, group: range, number: int) -> list[NDArray[np.int32]]:
        """Make room for a group; what each model is fed."""
        tokens = self.tokens[group.start : group.stop]
        fed = []
        for context in self.contexts:
            if self.overlap:
                slot = self._slot(number)
                context.forget(range(slot, slot + self._width))
            else:
                context.clear()
            fed.append(fed_tokens(tokens, bos=context.model.bos if context.model.add_bos else None))
        return fed

    def _decode(self, step: Step, fed: list[NDArray[np.int32]], number: int) -> list[NDArray[np.float32] | None]:
        if step.spans:
            # This decode will overwrite the logits that are still being scored.
            self._settle()
        begin = time.perf_counter()
        sequences = step.sequences + np.int32(self._slot(number))
        alive = [index not in self.skip for index in range(len(self.contexts))]
        for context, tokens, wanted in zip(self.contexts, fed, alive, strict=True):
            if wanted:
                context.decode(tokens[step.sequences, step.positions], step.positions, sequences, step.outputs)
        logits = [
            context.logits(len(step.rows)) if wanted and step.spans else None
            for context, wanted in zip(self.contexts, alive, strict=True)
        ]
        self.timings.decode += time.perf_counter() - begin
        return logits

    def _settle(self) -> None:
        """Wait for rows that are being scored; the group whose last they were is done."""
        if self._pending is None:
            return
        begin = time.perf_counter()
        futures, group = self._pending
        wait(futures)
        self._pending = None
        self.timings.score += time.perf_counter() - begin
        if group is not None:
            self.on_group(group)
