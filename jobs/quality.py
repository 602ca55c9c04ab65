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
    GGUFError,
    NonFiniteLogitsError,
    QuantcardError,
    SettingsError,
    StorageError,
    VocabularyMismatchError,
)
from core.protocol import SCORING_VERSION
from jobs import Progress
from jobs.baseline.meta import vocab_sha256
from jobs.baseline.source import Baseline, open_baseline
from jobs.checkpoint import Checkpoint
from jobs.context import Context
from jobs.decode import BatchShape, Step, batch_shape, groups
from jobs.figures import result_of
from jobs.kernel import UNSCORED
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
        check_protocol(spec, baseline)
        n_chunks = _chunks(spec, baseline)
        both = baseline.format == "states" and spec.as_llama_cpp
        variants = [_Variant(path, Table.empty(n_chunks, baseline.shape.rows_per_chunk, both=both)) for path in models]
        checkpoint = stack.enter_context(closing(_checkpoint(spec, models, baseline, n_chunks, found)))
        timings = _fill(spec, baseline, variants, checkpoint, found, progress, overlap=overlap)
        outcomes: list[QualityResult | QuantcardError] = []
        for index, variant in enumerate(variants):
            if variant.error:
                outcomes.append(variant.error)
                continue
            try:
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
        raise SettingsError("0 chunks were asked for; give at least one, or leave --chunks out for all.")
    return baseline.shape.n_chunks if spec.chunks < 0 else min(spec.chunks, baseline.shape.n_chunks)


def _checkpoint(
    spec: QualitySpec | QualityManySpec, models: list[Path], baseline: Baseline, n_chunks: int, found: Environment
) -> Checkpoint:
    """The checkpoint of a run, bound to everything that decides its figures."""
    if spec.checkpoint is None:
        return Checkpoint(None, None)
    not_deciding = {"kind", "model", "models", "baseline", "checkpoint", "tokens_out", "chunks", "overlap"}
    asked = spec.model_dump(mode="json", exclude=not_deciding)
    files = [_file_identity(shard) for model in models for shard in _shards(model)]
    return Checkpoint(
        Path(spec.checkpoint),
        [asked, files, baseline.identity, n_chunks, found.model_dump(mode="json"), SCORING_VERSION],
    )


def _shards(model: Path) -> list[Path]:
    """A model's files; one that lacks a shard is told when it is loaded."""
    try:
        return shard_paths(model)
    except GGUFError:
        return [model]


def _file_identity(path: Path) -> list[object]:
    """What the file system says of a file: its content is not read."""
    try:
        found = path.stat()
    except OSError:
        return [path.name]
    return [path.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


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
    first = baseline.shape.first
    shape = batch_shape(n_ctx=baseline.shape.n_ctx, n_batch=spec.n_batch, n_ubatch=spec.n_ubatch)
    timings = Timings()
    targets = baseline.tokens[:, first + 1 :].astype(np.int64)
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
        start = _resume(checkpoint, variants, shape, first=first)
        pool = stack.enter_context(RowPool(found.n_threads))

        def on_outputs(group: range, step: Step, logits: list[NDArray[np.float32] | None]) -> list[Future[None]]:
            rows = [(mine, v.table) for mine, v in zip(logits, alive, strict=True) if mine is not None]
            return baseline.start(pool, group, step, rows, targets[group.start : group.stop])

        def on_group(group: range) -> None:
            baseline.finish(group)
            checkpoint.append(stamp(group) + b"".join(variant.table.pack(group) for variant in variants))
            for index, variant in enumerate(alive):
                if variant.error is None and _given_up(variant, done=group.stop, first=first):
                    walk.skip.add(index)
            progress("measuring", group.stop, n_chunks)

        walk = Walk(
            contexts=[variant.context for variant in alive if variant.context],
            shape=shape,
            tokens=baseline.tokens[:n_chunks],
            on_outputs=on_outputs,
            on_group=on_group,
            before_group=lambda group: baseline.prefetch(range(group.stop, min(group.stop + len(group), n_chunks))),
            start=start,
            overlap=overlap,
            timings=timings,
            skip={index for index, variant in enumerate(alive) if variant.error},
        )
        if alive:
            progress("measuring", start, n_chunks)
            walk.run()
    timings.head = baseline.head_seconds
    timings.score -= timings.head
    return timings


def _given_up(variant: _Variant, *, done: int, first: int) -> bool:
    """Whether a model turned out broken: enough was seen to say how broken, and it is decoded no more.

    Raises:
        BaselineError: it is the baseline that is broken.
    """
    if done < _CHUNKS_OF_A_BROKEN_MODEL:
        return False
    try:
        check_verdicts(variant.path.name, variant.table.verdicts[:done], first=first)
    except NonFiniteLogitsError as error:
        variant.error = error
        return True
    return False


def _resume(checkpoint: Checkpoint, variants: list[_Variant], shape: BatchShape, *, first: int) -> int:
    """Put what an earlier run finished into the tables; the first chunk that is left to do.

    A record counts only if every variant that can be measured was scored in it: one that could not be loaded then may
    be loadable now. A model that was given up as broken before stays so.
    """
    done = 0
    n_chunks = len(variants[0].table.verdicts)
    for index, (group, record) in enumerate(zip(groups(n_chunks, shape.n_seq), checkpoint.records, strict=False)):
        size = (len(record) - 8) // len(variants)
        whole = record[:8] == stamp(group)
        if whole:
            for place, variant in enumerate(variants):
                variant.table.unpack(group, record[8 + place * size : 8 + (place + 1) * size])
                scored = (variant.table.verdicts[group.start : group.stop] != UNSCORED).all()
                if not scored and variant.error is None and not _given_up(variant, done=done, first=first):
                    whole = False
        if not whole:
            for variant in variants:
                variant.table.verdicts[group.start : group.stop] = UNSCORED
            checkpoint.keep_only(index)
            break
        done = group.stop
    return done


def check_protocol(spec: QualitySpec | QualityManySpec, baseline: Baseline) -> None:
    """Raise unless run and baseline are what the protocol asks for, under whose fingerprint the figures will stand.

    Raises:
        SettingsError: this run's settings are not the protocol's.
        BaselineError: the baseline was recorded under another one.
    """
    protocol = spec.protocol
    if protocol is None:
        return
    for name in ("n_batch", "n_ubatch", "type_k", "type_v", "flash_attn"):
        if getattr(spec, name) != getattr(protocol, name):
            raise SettingsError(
                f"{name} is {getattr(spec, name)} here and {getattr(protocol, name)} in the protocol {protocol.name}; "
                "the figures would stand under the wrong name."
            )
    if protocol.scoring == "unclipped" and baseline.format == "logits":
        raise SettingsError(
            f"The protocol {protocol.name} asks for unclipped figures, which a .kld does not hold. Record states, or "
            "measure with scoring llama-cpp."
        )
    if baseline.format == "states" and spec.as_llama_cpp != (protocol.scoring == "llama-cpp"):
        raise SettingsError(f"The protocol {protocol.name} has scoring {protocol.scoring}; ask for that one.")
    recorded: dict[str, object] = {"n_ctx": baseline.shape.n_ctx}
    asked: dict[str, object] = {"n_ctx": protocol.n_ctx}
    facts = baseline.facts
    if facts is not None and facts.corpus_sha256 is not None:
        recorded["corpus"], asked["corpus"] = facts.corpus_sha256[:12], protocol.corpus.sha256[:12]
    # Not the KV cache's types: the reference is recorded with f16, so that damage by another cache is measured.
    for name in ("n_batch", "n_ubatch", "flash_attn"):
        if getattr(facts, name, None) is not None:
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
