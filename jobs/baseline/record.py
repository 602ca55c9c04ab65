"""Records a baseline: a pass of the reference over the corpus, into a states file or a ``.kld``.

An interrupted recording goes on from its last finished chunks and ends in the same bytes.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.canonical import sha256_file
from core.contract import BaselineResult, BaselineSpec, Environment, Estimate
from core.errors import (
    BaselineError,
    CorpusError,
    GGUFError,
    NonFiniteLogitsError,
    QuantcardError,
    SettingsError,
    StatesUnavailableError,
)
from core.protocol import SCORING_VERSION
from core.statistics import perplexity
from jobs import Progress, kernel
from jobs.baseline.kld_file import KldShape
from jobs.baseline.meta import read_meta, vocab_sha256
from jobs.baseline.part_file import PartFile
from jobs.checkpoint import Checkpoint
from jobs.context import Context
from jobs.decode import BatchShape, Span, Step, batch_shape, chunk_tokens, groups
from jobs.llama import Model, environment
from jobs.passes import make_context, model_sha256, stamp
from jobs.scoring import RowPool
from jobs.walk import Walk

logger = logging.getLogger(__name__)


class HeadMismatch(Exception):
    """States do not give this reference's logits back; ``str()`` says why. Full logits are kept instead."""


class Recorder(Protocol):
    """What a format does with the rows of a pass."""

    #: whether it wants to see what enters the head
    needs_states: bool

    def begin(self, part: PartFile, stack: ExitStack) -> None:
        """Write what is known before the pass (again, with the same bytes, after an interruption)."""

    def accepts(self, chunk: int, chunk_sum: int, nll: NDArray[np.float64]) -> bool:
        """Whether a chunk that an earlier run recorded, with that NLL of each row, is whole in the file."""

    def rows(
        self, group: range, step: Step, logits: NDArray[np.float32], context: Context, nll: NDArray[np.float64]
    ) -> list[Callable[[], None]]:
        """Tasks that record a decode's rows and write their NLL, shape (n_chunks, rows_per_chunk)."""

    def judge(self, checks: list[float]) -> None:
        """Raise :class:`HeadMismatch` where the KLDs at all rows checked so far say that states will not do."""

    def close_group(self, group: range) -> tuple[list[int], list[float]]:
        """Checksums of a finished group's chunks; KLDs of rebuilt from true logits at the rows checked."""

    def end(self, nll: NDArray[np.float64], sums: list[int], checks: list[float]) -> None:
        """Write what is known after the pass."""

    def published(self) -> None:
        """Told that the file stands where it belongs."""

    def given_up(self) -> None:
        """Told that it will not be made: leave nothing behind."""

    def result(self) -> dict[str, Any]:
        """What this format adds to the result."""


def read_corpus(path: Path) -> bytes:
    """The corpus as llama-perplexity reads it: the file's bytes, less exactly one final newline.

    Raises:
        CorpusError: missing, unreadable or empty.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"The corpus {path} can't be read ({error.strerror}). Check the path.") from None
    text = text.removesuffix(b"\n")
    if not text:
        raise CorpusError(f"The corpus {path} is empty.")
    return text


class Recording:
    """One pass of a reference over a corpus: what both formats share."""

    def __init__(self, spec: BaselineSpec, model: Model, found: Environment, batches: BatchShape) -> None:
        self.spec, self.model, self.found, self.batches = spec, model, found, batches
        text = read_corpus(Path(spec.corpus))
        if model.add_eos:
            raise GGUFError(f"{model.path.name} adds an end-of-text token to every text; perplexity is not defined.")
        self.tokens = chunk_tokens(model.tokenize(text), n_ctx=spec.n_ctx, chunks=spec.chunks)
        self.shape = KldShape(spec.n_ctx, model.n_vocab, len(self.tokens))
        self.corpus_sha256 = sha256_file(Path(spec.corpus))
        self.reference_sha256 = model_sha256(Path(spec.reference))
        self.vocab_sha256 = vocab_sha256(model.vocab_texts())

    @property
    def identity(self) -> Any:
        """Everything that decides the bytes of the recording, for its checkpoint."""
        asked = self.spec.model_dump(mode="json", exclude={"reference", "corpus", "out", "fallback"})
        found = self.found.model_dump(mode="json")
        return [asked, self.corpus_sha256, self.reference_sha256, found, SCORING_VERSION]


def record(spec: BaselineSpec, progress: Progress) -> BaselineResult:
    """Record ``spec.reference`` over ``spec.corpus``.

    Where states were asked for and do not give the reference's logits back, full logits are kept and the result says
    so; the file then ends in ``.kld``.

    Raises:
        GGUFError: the reference can't be used.
        CorpusError: the corpus can't be used.
        NonFiniteLogitsError: the reference itself is broken.
        SettingsError: the settings contradict each other.
        StorageError: no room for the result.
    """
    from jobs.baseline.record_logits import LogitsRecorder
    from jobs.baseline.record_states import StatesRecorder

    batches = batch_shape(n_ctx=spec.n_ctx, n_batch=spec.n_batch, n_ubatch=spec.n_ubatch)
    found = environment(spec.machine)
    with Model(Path(spec.reference), spec.machine) as model:
        recording = Recording(spec, model, found, batches)
        out, fallback = Path(spec.out), None
        if spec.format == "states":
            try:
                return _run(recording, StatesRecorder(recording, out), out, progress, None)
            except HeadMismatch as error:
                fallback = str(error)
            if not spec.fallback:
                raise StatesUnavailableError(
                    f"States of {model.path.name} do not give its logits back, so that unclipped figures can't be had. "
                    f"{fallback} Measure under a protocol with scoring llama-cpp."
                )
            logger.warning("%s: full logits are kept instead of states. %s", spec.reference, fallback)
            out = out.with_suffix(".kld")
            _check_free(out, recording)
        return _run(recording, LogitsRecorder(recording, out), out, progress, fallback)


def _check_free(out: Path, recording: Recording) -> None:
    """Raise :class:`SettingsError` rather than replace a file that nobody asked us to replace."""
    if not out.exists():
        return
    try:
        meta = read_meta(out)
    except BaselineError:
        meta = None
    if meta is None or meta.reference_sha256 != recording.reference_sha256:
        raise SettingsError(f"Full logits have to be kept, but {out} exists. Move it away, or give another --out.")


def _run(
    recording: Recording, recorder: Recorder, out: Path, progress: Progress, fallback: str | None
) -> BaselineResult:
    with closing(PartFile(out)) as part:
        try:
            with ExitStack() as stack:
                recorder.begin(part, stack)
                ppl = _pass(recording, recorder, part, stack, progress)
            part.finish()
        except (QuantcardError, HeadMismatch):
            part.discard()
            recorder.given_up()
            raise
    recorder.published()
    shape = recording.shape
    return BaselineResult(
        path=str(out),
        size_bytes=out.stat().st_size,
        sha256=sha256_file(out),
        reference_sha256=recording.reference_sha256,
        fallback=fallback,
        ppl=ppl,
        n_ctx=shape.n_ctx,
        n_vocab=shape.n_vocab,
        n_chunks=shape.n_chunks,
        n_tokens=shape.n_chunks * shape.rows_per_chunk,
        environment=recording.found,
        **recorder.result(),
    )


def _pass(recording: Recording, recorder: Recorder, part: PartFile, stack: ExitStack, progress: Progress) -> Estimate:
    spec, found, shape = recording.spec, recording.found, recording.batches
    n_chunks, rows = recording.shape.n_chunks, recording.shape.rows_per_chunk
    nll = np.zeros((n_chunks, rows))
    sums: list[int] = []
    checks: list[float] = []
    capture = recorder.needs_states
    with closing(Checkpoint(part.checkpoint, [recording.identity, capture])) as checkpoint:
        start = _resume(checkpoint, recorder, shape, nll, sums, checks)
        context = stack.enter_context(
            make_context(recording.model, spec, shape, n_chunks=n_chunks, n_threads=found.n_threads, capture=capture)
        )
        # Entered last, so left first: no thread is at work when contexts are freed.
        pool = stack.enter_context(RowPool(found.n_threads))

        def on_outputs(group: range, step: Step, logits: list[NDArray[np.float32] | None]) -> list[Future[None]]:
            (mine,) = logits
            assert mine is not None
            return pool.start(recorder.rows(group, step, mine, context, nll))

        def on_group(group: range) -> None:
            its_sums, its_checks = recorder.close_group(group)
            sums.extend(its_sums)
            checks.extend(its_checks)
            recorder.judge(checks)
            checkpoint.append(_pack(group, nll, its_sums, its_checks), before_sync=part.sync)
            progress("recording", group.stop, n_chunks)

        progress("recording", start, n_chunks)
        Walk(
            contexts=[context],
            shape=shape,
            tokens=recording.tokens,
            on_outputs=on_outputs,
            on_group=on_group,
            before_group=lambda group: None,
            start=start,
        ).run()
        recorder.end(nll, sums, checks)
    return perplexity(nll.ravel())


def nll_task(
    recording: Recording,
    group: range,
    block: Span,
    logits: NDArray[np.float32],
    encoded: NDArray[np.uint16],
    nll: NDArray[np.float64],
) -> None:
    """Encode a block's rows into ``encoded``, shape (n, row_u16 or 0), and write their NLL.

    Raises:
        NonFiniteLogitsError: the reference itself is broken.
    """
    chunk, row, output, n = block
    where = group.start + chunk
    wanted = recording.tokens[where, recording.shape.first + 1 + row :][:n].astype(np.int64)
    verdicts = np.empty(n, np.int64)
    kernel.encode_rows(logits[output : output + n], wanted, encoded, nll[where, row : row + n], verdicts)
    if verdicts.any():
        raise NonFiniteLogitsError(
            f"INVALID: the logits of {recording.model.path.name} are NaN or infinite, or give the text's next token no "
            f"probability at all, at chunk {where}, position "
            f"{recording.shape.first + row + int(np.argmax(verdicts != kernel.FINE))}. A broken file can't be a "
            "reference (or its kernels overflow here): convert it again."
        )


def _pack(group: range, nll: NDArray[np.float64], sums: list[int], checks: list[float]) -> bytes:
    return (
        stamp(group)
        + nll[group.start : group.stop].tobytes()
        + struct.pack(f"<{len(sums)}Q", *sums)
        + np.array(checks, "<f8").tobytes()
    )


def _resume(
    checkpoint: Checkpoint,
    recorder: Recorder,
    shape: BatchShape,
    nll: NDArray[np.float64],
    sums: list[int],
    checks: list[float],
) -> int:
    """Put back what an earlier run recorded; the first chunk that is left to do."""
    n_chunks, rows = nll.shape
    done = 0
    for index, (group, data) in enumerate(zip(groups(n_chunks, shape.n_seq), checkpoint.records, strict=False)):
        n = len(group)
        its_nll = np.frombuffer(data, "<f8", n * rows, 8).reshape(n, rows)
        its_sums = struct.unpack_from(f"<{n}Q", data, 8 + its_nll.nbytes)
        told = zip(group, its_sums, its_nll, strict=True)
        whole = all(recorder.accepts(chunk, total, of_chunk) for chunk, total, of_chunk in told)
        if data[:8] != stamp(group) or not whole:
            checkpoint.keep_only(index)
            break
        nll[group.start : group.stop] = its_nll
        sums.extend(its_sums)
        checks.extend(np.frombuffer(data, "<f8", offset=8 + its_nll.nbytes + 8 * n).tolist())
        done = group.stop
    return done
