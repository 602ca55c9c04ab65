"""Measures variants' quality against a baseline: perplexity, KL divergence, Δp, same top p."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.contract import (
    Environment,
    QualityFailure,
    QualityManyResult,
    QualityManySpec,
    QualityResult,
    QualitySpec,
    Timings,
)
from core.errors import (
    BaselineError,
    NonFiniteLogitsError,
    QuantcardError,
    SettingsError,
    StorageError,
    VocabularyMismatchError,
)
from core.protocol import SCORING_VERSION, Protocol
from jobs import Progress
from jobs.baseline.meta import vocab_sha256
from jobs.baseline.source import Baseline, open_baseline
from jobs.checkpoint import Checkpoint
from jobs.context import Context
from jobs.decode import BatchShape, Step, batch_shape, groups
from jobs.figures import result_of
from jobs.llama import Model, environment, shard_paths
from jobs.passes import make_context, stamp
from jobs.scoring import RowPool, Table, check_verdicts
from jobs.walk import Walk

#: Chunks looked at before a broken model is given up: enough to say how broken it is.
_CHUNKS_OF_A_BROKEN_MODEL = 16


@dataclass(slots=True)
class _Variant:
    """One model of a run: its table, and why it has no figures if it has none."""

    path: Path
    table: Table
    model: Model | None = None
    context: Context | None = None
    error: QuantcardError | None = None


def measure(spec: QualitySpec, progress: Progress) -> QualityResult:
    """One model's figures against one baseline.

    Raises:
        GGUFError: the model can't be used.
        BaselineError: the baseline can't be used.
        VocabularyMismatchError: they do not belong together.
        NonFiniteLogitsError: the model is INVALID.
        SettingsError: the settings contradict each other.
    """
    tokens_out = [Path(spec.tokens_out)] if spec.tokens_out else None
    (outcome,) = _measure(spec, [Path(spec.model)], tokens_out, progress, sha256=spec.model_sha256)
    if isinstance(outcome, QuantcardError):
        raise outcome
    return outcome


def measure_many(spec: QualityManySpec, progress: Progress) -> QualityManyResult:
    """The figures of several variants of one model, or why one of them has none.

    Raises:
        BaselineError: the baseline can't be used.
        SettingsError: the settings contradict each other.
    """
    models = [Path(model) for model in spec.models]
    if spec.tokens_out is not None and len(spec.tokens_out) != len(models):
        raise SettingsError("Give a sidecar's path for each model, or none.")
    tokens_out = [Path(path) for path in spec.tokens_out] if spec.tokens_out else None
    return QualityManyResult(
        outcomes=[
            QualityFailure(model=str(model), type=type(outcome).__name__, message=str(outcome))
            if isinstance(outcome, QuantcardError)
            else outcome
            for model, outcome in zip(models, _measure(spec, models, tokens_out, progress), strict=True)
        ]
    )


def _measure(
    spec: QualitySpec | QualityManySpec,
    models: list[Path],
    tokens_out: list[Path] | None,
    progress: Progress,
    *,
    sha256: str | None = None,
) -> list[QualityResult | QuantcardError]:
    found = environment(spec.machine)
    on_device = found.backend != "CPU" and found.n_gpu_layers != 0
    overlap = on_device and len(models) == 1 if spec.overlap is None else spec.overlap
    if overlap and len(models) > 1:
        raise SettingsError("Several variants at once are decoded in turn; leave overlap out.")
    with ExitStack() as stack:
        baseline = stack.enter_context(
            closing(
                open_baseline(
                    Path(spec.baseline),
                    machine=spec.machine,
                    n_threads=found.n_threads,
                    as_llama_cpp=spec.as_llama_cpp,
                    overlap=overlap,
                )
            )
        )
        check_protocol(spec.protocol, baseline)
        n_chunks = _chunks(spec, baseline)
        both = baseline.format == "states" and spec.as_llama_cpp
        variants = [_Variant(path, Table.empty(n_chunks, baseline.shape.rows_per_chunk, both=both)) for path in models]
        checkpoint = stack.enter_context(closing(_checkpoint(spec, models, baseline, n_chunks, found)))
        timings = _fill(spec, baseline, variants, checkpoint, found, progress, overlap=overlap)
        outcomes: list[QualityResult | QuantcardError] = []
        for index, variant in enumerate(variants):
            try:
                if variant.error:
                    raise variant.error
                check_verdicts(variant.path.name, variant.table.verdicts, first=baseline.shape.first)
                out = tokens_out[index] if tokens_out else None
                outcomes.append(
                    result_of(
                        spec, baseline, variant.path, variant.table, found, timings, tokens_out=out, sha256=sha256
                    )
                )
            except (BaselineError, StorageError):
                # Not this variant's fault: nothing that was measured is given up.
                raise
            except QuantcardError as error:
                outcomes.append(error)
        checkpoint.remove()
    return outcomes


def _chunks(spec: QualitySpec | QualityManySpec, baseline: Baseline) -> int:
    if spec.chunks == 0:
        raise BaselineError("0 chunks were asked for; give at least one, or leave --chunks out for all.")
    return baseline.shape.n_chunks if spec.chunks < 0 else min(spec.chunks, baseline.shape.n_chunks)


def _checkpoint(
    spec: QualitySpec | QualityManySpec, models: list[Path], baseline: Baseline, n_chunks: int, found: Environment
) -> Checkpoint:
    """The checkpoint of a run, bound to everything that decides its figures."""
    if spec.checkpoint is None:
        return Checkpoint(None, None)
    not_deciding = {"kind", "model", "models", "baseline", "checkpoint", "tokens_out", "chunks", "overlap"}
    asked = spec.model_dump(mode="json", exclude=not_deciding | {"model_sha256"})
    stats = [(shard.name, shard.stat()) for model in models for shard in shard_paths(model) if shard.exists()]
    files = [[name, found.st_size, found.st_mtime_ns] for name, found in stats]
    return Checkpoint(
        Path(spec.checkpoint),
        [asked, files, baseline.identity, n_chunks, found.model_dump(mode="json"), SCORING_VERSION],
    )


def _fill(
    spec: QualitySpec | QualityManySpec,
    baseline: Baseline,
    variants: list[_Variant],
    checkpoint: Checkpoint,
    found: Environment,
    progress: Progress,
    *,
    overlap: bool,
) -> Timings:
    """Score every chunk that an earlier run has not, into the variants' tables; what the time went into."""
    n_chunks = len(variants[0].table.scores)
    shape = batch_shape(n_ctx=baseline.shape.n_ctx, n_batch=spec.n_batch, n_ubatch=spec.n_ubatch)
    start = _resume(checkpoint, variants, shape, n_chunks)
    timings = Timings()
    if start == n_chunks:
        return timings
    targets = baseline.tokens[:, baseline.shape.first + 1 :].astype(np.int64)
    with ExitStack() as stack:
        begin = time.perf_counter()
        for variant in variants:
            try:
                variant.model = stack.enter_context(Model(variant.path, spec.machine))
                check_vocabulary(variant.model, baseline)
                variant.context = stack.enter_context(
                    make_context(
                        variant.model, spec, shape, n_chunks=n_chunks, n_threads=found.n_threads, overlap=overlap
                    )
                )
            except QuantcardError as error:
                variant.error = error
        timings.load = time.perf_counter() - begin
        alive = [variant for variant in variants if variant.error is None]
        contexts = [variant.context for variant in alive if variant.context]
        pool = stack.enter_context(RowPool(found.n_threads))

        def on_outputs(group: range, step: Step, logits: list[NDArray[np.float32]]) -> list[Future[None]]:
            rows = [(mine, variant.table) for mine, variant in zip(logits, alive, strict=True)]
            return baseline.start(pool, group, step, rows, targets[group.start : group.stop])

        def on_group(group: range) -> None:
            baseline.finish(group)
            checkpoint.append(stamp(group) + b"".join(variant.table.pack(group) for variant in variants))
            if group.stop >= _CHUNKS_OF_A_BROKEN_MODEL:
                _give_up_broken(alive, contexts, done=group.stop, first=baseline.shape.first)
            progress("measuring", group.stop, n_chunks)

        if alive:
            progress("measuring", start, n_chunks)
            Walk(
                contexts=contexts,
                shape=shape,
                tokens=baseline.tokens[:n_chunks],
                on_outputs=on_outputs,
                on_group=on_group,
                before_group=lambda group: baseline.prefetch(range(group.stop, min(group.stop + len(group), n_chunks))),
                start=start,
                overlap=overlap,
                timings=timings,
            ).run()
    timings.head = baseline.head_seconds
    timings.score -= timings.head
    return timings


def _give_up_broken(alive: list[_Variant], contexts: list[Context], *, done: int, first: int) -> None:
    """Decode no more of models that are broken: enough was seen to say how broken.

    Raises:
        BaselineError: it is the baseline that is broken.
    """
    for index in reversed(range(len(alive))):
        variant = alive[index]
        try:
            check_verdicts(variant.path.name, variant.table.verdicts[:done], first=first)
        except NonFiniteLogitsError as error:
            variant.error = error
            del alive[index], contexts[index]


def check_protocol(protocol: Protocol | None, baseline: Baseline) -> None:
    """Raise :class:`BaselineError` where a baseline was recorded under another protocol than the one asked for."""
    if protocol is None:
        return
    recorded: dict[str, object] = {"n_ctx": baseline.shape.n_ctx}
    asked: dict[str, object] = {"n_ctx": protocol.n_ctx}
    facts = baseline.facts
    if facts is not None and facts.corpus_sha256 is not None:
        recorded["corpus"], asked["corpus"] = facts.corpus_sha256[:12], protocol.corpus.sha256[:12]
    for name in ("n_batch", "n_ubatch", "type_k", "type_v", "flash_attn"):
        if hasattr(facts, name):
            recorded[name], asked[name] = getattr(facts, name), getattr(protocol, name)
    if 0 <= protocol.chunks < baseline.shape.n_chunks:
        recorded["chunks"], asked["chunks"] = baseline.shape.n_chunks, protocol.chunks
    differing = [
        f"{name} {recorded[name]} where {asked[name]} is asked for" for name in asked if recorded[name] != asked[name]
    ]
    if differing:
        raise BaselineError(
            f"{baseline.path.name} was recorded under another protocol than {protocol.name}: {', '.join(differing)}. "
            "Record one under this protocol."
        )


def check_vocabulary(model: Model, baseline: Baseline) -> None:
    """Raise :class:`VocabularyMismatchError` unless the model's tokens are the baseline's."""
    name, n_vocab, facts = model.path.name, baseline.shape.n_vocab, baseline.facts
    if model.n_vocab != n_vocab:
        raise VocabularyMismatchError(
            f"{name} has a vocabulary of {model.n_vocab} tokens, the baseline of {n_vocab}: "
            "it was recorded from another model. Record a baseline from this model's own F16 or BF16."
        )
    if facts is None or facts.vocab_sha256 is None:
        return
    if vocab_sha256(model.vocab_texts()) != facts.vocab_sha256:
        raise VocabularyMismatchError(
            f"{name} has as many tokens as the baseline, but other ones: it was recorded from another model. "
            "Record a baseline from this model's own F16 or BF16."
        )
    if model.add_bos != facts.add_bos:
        raise VocabularyMismatchError(
            f"{name} {'adds' if model.add_bos else 'does not add'} a BOS token, its baseline was recorded "
            "the other way round; the figures would not be comparable. Fix tokenizer.ggml.add_bos_token."
        )


def _resume(checkpoint: Checkpoint, variants: list[_Variant], shape: BatchShape, n_chunks: int) -> int:
    """Put what an earlier run finished into the tables; the first chunk that is left to do."""
    done = 0
    for group, record in zip(groups(n_chunks, shape.n_seq), checkpoint.records, strict=False):
        if record[:8] != stamp(group):
            break
        size = (len(record) - 8) // len(variants)
        for index, variant in enumerate(variants):
            variant.table.unpack(group, record[8 + index * size : 8 + (index + 1) * size])
        done = group.stop
    return done
