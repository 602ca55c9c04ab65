"""Measures a variant's quality against a baseline: perplexity, KL divergence, Δp, same top p."""

from __future__ import annotations

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import QualityResult, QualitySpec
from core.errors import BaselineError, NonFiniteLogitsError, VocabularyMismatchError
from core.statistics import TokenScores, exact_base, quality_statistics
from jobs import Progress
from jobs.baseline.kld_file import KldReader
from jobs.baseline.meta import BaselineMeta, read_meta, vocab_sha256
from jobs.decode import ScoredLogits, batch_shape, decode_group, groups
from jobs.divergence import compare_rows, run_blocks
from jobs.llama import Context, Model, environment

#: Mean NLL (nats) from which a perplexity is no number that means anything.
_MAX_NLL = 300.0


@dataclass(frozen=True, slots=True)
class _Arrays:
    """Per-token values in the making, each of shape (n_chunks, rows_per_chunk)."""

    nll: NDArray[np.float32]
    nll_base: NDArray[np.float32]
    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    @classmethod
    def empty(cls, n_chunks: int, rows: int) -> _Arrays:
        shape = (n_chunks, rows)
        return cls(
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float64),
            np.zeros(shape, np.bool_),
        )

    def scores(self) -> TokenScores:
        return TokenScores(self.nll.ravel(), self.nll_base.ravel(), self.kld.ravel(), self.same_top.ravel())


def _score(
    pool: ThreadPoolExecutor,
    scored: ScoredLogits,
    tokens: NDArray[np.int32],
    base: NDArray[np.uint16],
    start: int,
    into: _Arrays,
    *,
    check_mass: bool,
) -> None:
    """Compare one decode's rows with the base's on all threads; ``start`` is the group's first chunk."""
    first = tokens.shape[1] // 2
    targets = tokens[scored.chunk, scored.row + first + 1].astype(np.int64)

    def work(part: slice) -> None:
        chunk, row = scored.chunk[part], scored.row[part]
        local = _Arrays.empty(1, len(chunk))
        compare_rows(
            scored.logits[part],
            targets[part],
            base[chunk, row],
            nll=local.nll[0],
            nll_base=local.nll_base[0],
            kld=local.kld[0],
            same_top=local.same_top[0],
            check_mass=check_mass,
        )
        where = (start + chunk, row)
        into.nll[where], into.nll_base[where] = local.nll[0], local.nll_base[0]
        into.kld[where], into.same_top[where] = local.kld[0], local.same_top[0]

    run_blocks(pool, len(targets), scored.logits.shape[1], work)


def check_meta(reader: KldReader, meta: BaselineMeta | None) -> None:
    """Raise :class:`BaselineError` when a base file and its companion do not belong together."""
    if meta is None:
        return
    shape = reader.shape
    same = (meta.n_ctx, meta.n_vocab, meta.n_chunks) == (shape.n_ctx, shape.n_vocab, shape.n_chunks)
    tokens = np.ascontiguousarray(reader.tokens, dtype="<i4").tobytes()
    if not same or hashlib.sha256(tokens).hexdigest() != meta.tokens_sha256:
        raise BaselineError(
            f"{reader.path} and its .json do not belong together: one of them is corrupt. Record it again."
        )


def check_vocabulary(model: Model, reader: KldReader, meta: BaselineMeta | None) -> None:
    """Raise :class:`VocabularyMismatchError` unless the model's tokens are the baseline's."""
    name, shape = model.path.name, reader.shape
    if model.n_vocab != shape.n_vocab:
        raise VocabularyMismatchError(
            f"{name} has a vocabulary of {model.n_vocab} tokens, the baseline of {shape.n_vocab}: "
            "it was recorded from another model. Record a baseline from this model's own F16 or BF16."
        )
    if meta is None or meta.vocab_sha256 is None:
        return
    if vocab_sha256(model.vocab_texts()) != meta.vocab_sha256:
        raise VocabularyMismatchError(
            f"{name} has as many tokens as the baseline, but other ones: it was recorded from another model. "
            "Record a baseline from this model's own F16 or BF16."
        )
    if model.add_bos != meta.add_bos:
        raise VocabularyMismatchError(
            f"{name} {'adds' if model.add_bos else 'does not add'} a BOS token, its baseline was recorded "
            "the other way round; the figures would not be comparable. Fix tokenizer.ggml.add_bos_token."
        )


def measure(spec: QualitySpec, progress: Progress) -> QualityResult:
    """Every figure that ``llama-perplexity --kl-divergence`` prints, for one model and one base file.

    Raises:
        GGUFError: the model can't be used.
        BaselineError: the baseline can't be used.
        VocabularyMismatchError: they do not belong together.
        NonFiniteLogitsError: the model is INVALID.
    """
    reader = KldReader(Path(spec.baseline))
    meta = read_meta(Path(spec.baseline))
    check_meta(reader, meta)
    found = environment(spec.machine)
    kld_shape = reader.shape
    n_chunks = kld_shape.n_chunks if spec.chunks < 0 else min(spec.chunks, kld_shape.n_chunks)
    if n_chunks == 0:
        raise BaselineError("0 chunks were asked for; give at least one, or leave --chunks out for all.")
    shape = batch_shape(n_ctx=kld_shape.n_ctx, n_batch=spec.n_batch, n_ubatch=spec.n_ubatch)
    arrays = _Arrays.empty(n_chunks, kld_shape.rows_per_chunk)
    with Model(Path(spec.model), spec.machine) as model:
        check_vocabulary(model, reader, meta)
        context = Context(
            model,
            n_ctx=kld_shape.n_ctx,
            n_seq=min(shape.n_seq, n_chunks),
            n_batch=min(shape.n_batch, shape.n_ctx * n_chunks),
            n_ubatch=spec.n_ubatch,
            type_k=spec.type_k,
            type_v=spec.type_v,
            flash_attn=spec.flash_attn,
            n_threads=found.n_threads,
        )
        with context, ThreadPoolExecutor(found.n_threads) as pool:
            for group in groups(n_chunks, shape.n_seq):
                progress("measuring", group.start, n_chunks)
                base = np.stack([reader.chunk(index) for index in group])
                _check_sums(base, group, meta)
                group_tokens = reader.tokens[group.start : group.stop]
                for scored in decode_group(context, model, group_tokens, shape):
                    _score(pool, scored, group_tokens, base, group.start, arrays, check_mass=meta is None)
        progress("measuring", n_chunks, n_chunks)
    scores = arrays.scores()
    _check_finite(Path(spec.model).name, scores)
    statistics = quality_statistics(scores)
    true_nll = meta.exact_nll if meta else None
    exact = exact_base(scores.nll, true_nll[: len(scores)]) if true_nll is not None else None
    return QualityResult(
        ppl=statistics.ppl,
        ppl_base=statistics.ppl_base,
        ppl_ratio=statistics.ppl_ratio,
        ln_ppl_ratio=statistics.ln_ppl_ratio,
        ppl_cor=statistics.ppl_cor,
        kld=statistics.kld,
        delta_p=statistics.delta_p,
        same_top=statistics.same_top,
        n_tokens=len(scores),
        n_chunks=n_chunks,
        exact=exact,
        protocol=_protocol(spec, reader, meta, n_chunks),
        environment=found,
    )


def _check_finite(name: str, scores: TokenScores) -> None:
    # exp overflows beyond 709 nats a token; a model that surprised is as broken as one that says NaN.
    if not float(scores.nll.mean(dtype=np.float64)) < _MAX_NLL:
        raise NonFiniteLogitsError(
            f"INVALID: {name} has a perplexity beyond any meaning. Quantize it again or report it to its uploader."
        )


def _check_sums(base: NDArray[np.uint16], group: range, meta: BaselineMeta | None) -> None:
    for data, index in zip(base, group, strict=True):
        if meta is not None and zlib.crc32(data.tobytes()) != meta.chunk_crc32[index]:
            raise BaselineError(f"The baseline is corrupt: chunk {index} fails its checksum. Record it again.")


def _protocol(spec: QualitySpec, reader: KldReader, meta: BaselineMeta | None, n_chunks: int) -> dict[str, Any]:
    """What was asked for: the named protocol when there is one, else the settings of this run."""
    if spec.protocol is not None:
        return {**spec.protocol.model_dump(mode="json"), "fingerprint": spec.protocol.fingerprint}
    return {
        "name": None,
        "corpus_sha256": meta.corpus_sha256 if meta else None,
        "baseline": reader.path.name,
        "reference_sha256": meta.reference_sha256 if meta else None,
        "n_ctx": reader.shape.n_ctx,
        "chunks": n_chunks,
        "n_batch": spec.n_batch,
        "n_ubatch": spec.n_ubatch,
        "type_k": spec.type_k,
        "type_v": spec.type_v,
        "flash_attn": spec.flash_attn,
    }
