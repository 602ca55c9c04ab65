"""Makes a quality run's result, and its per-token sidecar, from its table of per-token values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contract import Environment, QualityManySpec, QualityResult, QualitySpec, Scoring, Timings
from core.errors import NonFiniteLogitsError
from core.intervals import buckets, chunk_intervals
from core.statistics import TokenScores, exact_base, kld_statistics, quality_statistics
from jobs.baseline.source import Baseline
from jobs.passes import model_sha256
from jobs.scoring import KLD, NLL, NLL_BASE, P_TOP_BASE, Table

#: Mean NLL (nats) from which a perplexity is no number that means anything.
_MAX_NLL = 300.0


def result_of(
    spec: QualitySpec | QualityManySpec,
    baseline: Baseline,
    model: Path,
    table: Table,
    found: Environment,
    timings: Timings,
    *,
    tokens_out: Path | None = None,
    sha256: str | None = None,
) -> QualityResult:
    """Every figure of one variant of a finished run, and its sidecar where one is wanted.

    Args:
        sha256: the model's identity, where it is known; computed for a sidecar else.

    Raises:
        NonFiniteLogitsError: the perplexity lies beyond any meaning.
        StorageError: no room for the sidecar.
    """
    unclipped = baseline.format == "states" and not spec.as_llama_cpp
    scoring: Scoring = "unclipped" if unclipped else "llama-cpp"
    n_chunks, rows = table.same_top.shape
    true_nll = baseline.exact_nll
    exact_nll = None if true_nll is None else true_nll[: n_chunks * rows]
    # The recording's own NLL is the truth; what is read back from 16 bits or rebuilt is not.
    nll_base = table.scores[..., NLL_BASE]
    if unclipped and exact_nll is not None:
        nll_base = exact_nll.reshape(n_chunks, rows)
    scores = TokenScores(
        nll=table.scores[..., NLL].astype(np.float32).ravel(),
        nll_base=nll_base.astype(np.float32).ravel(),
        kld=table.scores[..., KLD].ravel(),
        same_top=table.same_top.ravel(),
    )
    # exp overflows beyond 709 nats a token; a model that surprised is as broken as one that says NaN.
    if not float(scores.nll.mean(dtype=np.float64)) < _MAX_NLL:
        raise NonFiniteLogitsError(
            f"INVALID: {model.name} has a perplexity beyond any meaning. "
            "Quantize it again or report it to its uploader."
        )
    statistics = quality_statistics(scores)
    true_base = nll_base if exact_nll is None else exact_nll.reshape(n_chunks, rows)
    p_top = table.scores[..., P_TOP_BASE].astype(np.float32)
    result = QualityResult(
        baseline_format=baseline.format,
        scoring=scoring,
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
        exact=None if exact_nll is None else exact_base(scores.nll, exact_nll),
        unclipped=kld_statistics(table.unclipped.ravel()) if table.unclipped.size else None,
        intervals=chunk_intervals(
            scores.nll.reshape(n_chunks, rows),
            true_base.astype(np.float32),
            table.scores[..., KLD],
            table.same_top,
        ),
        buckets=buckets(p_top, table.scores[..., KLD], table.same_top),
        protocol=_protocol(spec, baseline, n_chunks, scoring),
        environment=found,
        timings=timings,
    )
    if tokens_out is None:
        return result
    known = sha256 or model_sha256(model)
    written = write_sidecar(tokens_out, (model.name, known), baseline, table, result, nll_base.astype(np.float32))
    return result.model_copy(update={"tokens_path": str(tokens_out), "tokens_sha256": written})


def _protocol(
    spec: QualitySpec | QualityManySpec, baseline: Baseline, n_chunks: int, scoring: Scoring
) -> dict[str, Any]:
    """What was asked for: the named protocol when there is one, else the settings of this run."""
    if spec.protocol is not None:
        return {**spec.protocol.model_dump(mode="json"), "fingerprint": spec.protocol.fingerprint}
    facts = baseline.facts
    return {
        "name": None,
        "corpus_sha256": facts.corpus_sha256 if facts else None,
        "baseline": baseline.path.name,
        "reference_sha256": facts.reference_sha256 if facts else None,
        "n_ctx": baseline.shape.n_ctx,
        "chunks": n_chunks,
        "n_batch": spec.n_batch,
        "n_ubatch": spec.n_ubatch,
        "type_k": spec.type_k,
        "type_v": spec.type_v,
        "flash_attn": spec.flash_attn,
        "scoring": scoring,
    }


def write_sidecar(
    path: Path,
    model: tuple[str, str],
    baseline: Baseline,
    table: Table,
    result: QualityResult,
    nll_base: NDArray[np.float32],
) -> str:
    """Write the per-token figures behind ``result``; the file's sha256.

    Args:
        model: its file's name and its sha256.

    Raises:
        StorageError: no room for it.
    """
    from core.token_file import TokenFile, TokenMeta, write_tokens

    facts = baseline.facts
    name, sha256 = model
    meta = TokenMeta(
        model=name,
        model_sha256=sha256,
        baseline_sha256=baseline.content,
        reference_sha256=facts.reference_sha256 if facts else None,
        protocol=result.protocol,
        scoring=result.scoring,
        environment=result.environment.fingerprint,
    )
    return write_tokens(
        path,
        TokenFile.of_chunks(
            meta,
            baseline.tokens[: result.n_chunks],
            nll=table.scores[..., NLL],
            nll_base=nll_base,
            kld=table.scores[..., KLD],
            p_top_base=table.scores[..., P_TOP_BASE],
            same_top=table.same_top,
        ),
    )
