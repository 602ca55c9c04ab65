"""Opens a baseline of either format behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.contract import BaselineFormat, Machine
from jobs.baseline.kld_file import KldShape
from jobs.baseline.logits_rows import LogitsBaseline
from jobs.decode import Step
from jobs.scoring import RowPool, Table


class BaselineFacts(Protocol):
    """What is known of a baseline besides its rows; None where it was recorded elsewhere."""

    @property
    def reference_sha256(self) -> str | None: ...
    @property
    def corpus_sha256(self) -> str | None: ...
    @property
    def vocab_sha256(self) -> str | None: ...
    @property
    def add_bos(self) -> bool | None: ...


class Baseline(Protocol):
    """What variants are scored against."""

    path: Path
    shape: KldShape
    #: shape (n_chunks, n_ctx): the corpus, before any BOS is put in
    tokens: NDArray[np.int32]

    @property
    def format(self) -> BaselineFormat:
        """How it is stored."""

    @property
    def facts(self) -> BaselineFacts | None:
        """What it was recorded from and with, where that is known."""

    @property
    def exact_nll(self) -> NDArray[np.float64] | None:
        """The reference's own NLL of each scored token (f64, nats), shape (n_chunks * rows_per_chunk,)."""

    @property
    def identity(self) -> Any:
        """What tells it from any other baseline, as JSON."""

    @property
    def content(self) -> str | None:
        """One hash for what the recording says, whatever format keeps it; None where that is not known."""

    @property
    def head_seconds(self) -> float:
        """Time spent so far on rebuilding logits."""

    def prefetch(self, chunks: range) -> None:
        """Say which chunks come next."""

    def start(
        self,
        pool: RowPool,
        group: range,
        step: Step,
        variants: Sequence[tuple[NDArray[np.float32], Table]],
        targets: NDArray[np.int64],
    ) -> list[Future[None]]:
        """Begin scoring a decode's logits, an array of shape (n_rows, n_vocab) per variant, into their tables.

        Args:
            targets: the next token of each of the group's scored positions, shape (n_chunks, rows_per_chunk).
        """

    def finish(self, group: range) -> None:
        """Check what was read for a group whose rows are all scored; raises BaselineError."""

    def close(self) -> None:
        """Let go of files and models."""


def open_baseline(path: Path, *, machine: Machine, n_threads: int, as_llama_cpp: bool, overlap: bool) -> Baseline:
    """The baseline at ``path``.

    Args:
        as_llama_cpp: score as llama-perplexity does against a states baseline too, and unclipped beside it.
        overlap: whether rows are scored while models decode.

    Raises:
        BaselineError: missing, corrupt, or of neither format.
    """
    from jobs.baseline.states_rows import StatesBaseline, is_states_file

    if is_states_file(path):
        return StatesBaseline(
            path, machine=machine, n_threads=n_threads, as_llama_cpp=as_llama_cpp, whole_steps=overlap
        )
    return LogitsBaseline(path)
