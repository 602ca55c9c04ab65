"""``quantcard.json``: every figure of a repo in a documented, versioned shape (docs/pull-mode.md). Pure.

Readers take the names they know: within a version names are only added. What is under ``details`` is the measurement
as it was stored and follows :mod:`core.contract`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bot.publish.badge import Closeness, closeness
from bot.publish.entries import entries
from bot.publish.ranking import in_order, rank
from bot.publish.spread import Spread, around
from bot.publish.verdict import Figure, verdict
from core.dataset import DatasetRow

SCHEMA: Literal["quantcard.repo"] = "quantcard.repo"
VERSION = 1
#: Parts of a stored result that are no figures, or stand elsewhere in the file.
_NOT_TOLD = frozenset(
    {"kind", "timings", "tokens_path", "tokens_sha256", "protocol", "environment", "imported", "model_filename"}
)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Value(_Model):
    """A figure with its standard error and 95 % interval, as the card shows them; null where not known."""

    value: float | None
    stderr: float | None = None
    ci95: tuple[float, float] | None = None


class Divergence(Value):
    """KL divergence (nats): ``value`` is the mean."""

    median: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None


class Quality(_Model):
    """Quality figures; shares are fractions. ``imported``: the tool they were read from; null: measured here."""

    kld: Divergence
    same_top: Value
    ppl: Value
    ppl_ratio: Value
    ppl_cor: float | None
    delta_p_rms: float | None
    n_ctx: int | None
    n_chunks: int | None
    n_tokens: int | None
    imported: str | None
    command: str | None = Field(description="what repeats the measurement")
    details: dict[str, Any] | None = Field(description="the whole quality result: percentiles, intervals by chunk, …")


class Rate(_Model):
    """Tokens per second of one speed test, with the repetitions' standard deviation."""

    n_tokens: int | None
    tokens_per_s: float | None
    stddev: float | None


class Speed(_Model):
    """Speeds and the measuring process's peak memory; compare them only within one environment."""

    prompt: Rate
    generation: Rate
    peak_memory_bytes: int | None
    peak_vram_bytes: int | None
    imported: str | None
    details: dict[str, Any] | None


class VariantFigures(_Model):
    """One variant. ``protocol``, ``reference``, ``environment`` name entries of the tables at the top.

    ``key`` is what it is known by: its sha256, of a split one the fingerprint of its shards' sha256s.
    """

    label: str
    file: str
    first_file: str
    n_files: int
    key: str
    sha256: str | None
    revision: str
    state: str
    reason: str | None
    disputed: str | None
    is_reference: bool
    ranked: bool = Field(description="whether it may be compared with the others that are")
    closeness: Closeness | None
    size_bytes: int
    n_params: int | None
    bpw: float | None
    architecture: str | None
    file_type: str | None
    imatrix_file: str | None
    n_ctx_train: int | None
    kv_bytes_per_token: int | None
    memory_8k_bytes: int | None
    flags: list[dict[str, Any]]
    protocol: str
    reference: str | None
    environment: str | None
    measured_at: str | None
    quality: Quality | None
    speed: Speed | None


class ReferenceFigures(_Model):
    """What was measured against; ``noise_floor``: its mean KLD (nats) against its own baseline.

    ``kind`` is by what right it is the reference (:data:`core.dataset.ReferenceKind`), ``reason`` the same in words.
    """

    repo: str | None
    file: str | None
    kind: str | None
    reason: str | None
    ppl: float | None
    noise_floor: float | None


class Pick(_Model):
    """A recommendation of the section's first table: ``labels`` of the files, which can't be told apart.

    ``label`` is the smallest of them, empty where there is none; ``kind`` near, close, closest, memory or fastest.
    """

    purpose: str
    kind: str = ""
    label: str
    labels: list[str] = []
    because: str


class Verdict(_Model):
    """The verdict in words and picks."""

    sentence: str
    picks: list[Pick]


class RepoFigures(_Model):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    schema_name: Literal["quantcard.repo"] = Field(default=SCHEMA, alias="schema")
    version: int = VERSION
    repo: str
    base_model: str | None
    key: str = Field(description="of the files and figures: the same as in the section's begin marker")
    measured_at: str | None = Field(description="when the newest of these figures was measured, UTC")
    verdict: Verdict
    protocols: dict[str, dict[str, Any]]
    references: dict[str, ReferenceFigures]
    environments: dict[str, dict[str, Any]]
    variants: list[VariantFigures]


def repo_figures(rows: Sequence[DatasetRow], *, key: str) -> RepoFigures:
    """The figures of one repo's rows (one at least), largest file first, labels as the section shows them."""
    ordered = in_order(rows)
    ranking = rank(ordered)
    said, by_id = verdict(entries(ranking)), {row.id: row.label for row in ordered}
    ranked = {row.id for row, _ in ranking.ranked}
    references: dict[str, ReferenceFigures] = {}
    for row in sorted(ordered, key=lambda row: row.reference_variant is None):
        if row.reference_key:
            references.setdefault(
                row.reference_key,
                ReferenceFigures(
                    repo=row.reference_repo,
                    file=row.reference_variant,
                    kind=row.reference_kind,
                    reason=row.reference_reason,
                    ppl=_finite(row.ppl_base),
                    noise_floor=_finite(row.noise_floor),
                ),
            )
    return RepoFigures(
        repo=ordered[0].repo_id,
        base_model=ordered[0].base_model,
        key=key,
        measured_at=max((at for row in ordered if (at := _time(row))), default=None),
        verdict=Verdict(
            sentence=said.sentence.replace("**", ""),
            picks=[_pick([by_id[key] for key in one.files], one.purpose, one.kind, one.because) for one in said.picks],
        ),
        protocols={row.protocol_fingerprint: _loaded(row.protocol_json) or {} for row in ordered},
        references=references,
        environments={
            row.environment_fingerprint: _loaded(row.environment_json) or {}
            for row in ordered
            if row.environment_fingerprint
        },
        variants=[_variant(row, ranked=row.id in ranked) for row in ordered],
    )


def figures_json(rows: Sequence[DatasetRow], *, key: str) -> bytes:
    """The file: the same bytes for the same rows; ASCII, no NaN."""
    told = repo_figures(rows, key=key).model_dump(mode="json", by_alias=True)
    return (json.dumps(told, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _pick(labels: list[str], purpose: str, kind: str, because: str) -> Pick:
    return Pick(purpose=purpose, kind=kind, label=labels[0] if labels else "", labels=labels, because=because)


def _variant(row: DatasetRow, *, ranked: bool) -> VariantFigures:
    return VariantFigures(
        label=row.label,
        file=row.variant,
        first_file=row.first_file or row.variant,
        n_files=row.n_files,
        key=row.variant_key,
        sha256=row.variant_key if row.n_files == 1 else None,
        revision=row.revision,
        state=row.state,
        reason=row.reason,
        disputed=row.disputed,
        is_reference=row.is_reference,
        ranked=ranked,
        closeness=closeness(row),
        size_bytes=row.size_bytes,
        n_params=row.n_params,
        bpw=_finite(row.bpw),
        architecture=row.architecture,
        file_type=row.file_type,
        imatrix_file=row.imatrix_file,
        n_ctx_train=row.n_ctx_train,
        kv_bytes_per_token=row.kv_bytes_per_token,
        memory_8k_bytes=row.memory_8k_bytes,
        flags=json.loads(row.flags),
        protocol=row.protocol_fingerprint,
        reference=row.reference_key,
        environment=row.environment_fingerprint,
        measured_at=_time(row),
        quality=_quality(row) if row.kld_mean is not None or row.ppl is not None else None,
        speed=_speed(row) if row.pp_ts is not None or row.tg_ts is not None else None,
    )


def _quality(row: DatasetRow) -> Quality:
    spread = Spread(row)
    return Quality(
        kld=Divergence(
            **_value(row.kld_mean, row.kld_stderr, spread.kld),
            median=_finite(row.kld_median),
            p99=_finite(row.kld_p99),
            p99_9=_finite(row.kld_p99_9),
            max=_finite(row.kld_max),
        ),
        same_top=Value(**_value(row.same_top, row.same_top_stderr, spread.top)),
        ppl=Value(**_value(row.ppl, row.ppl_stderr, around(row.ppl, row.ppl_stderr))),
        ppl_ratio=Value(**_value(row.ppl_ratio, row.ppl_ratio_stderr, spread.ppl_ratio)),
        ppl_cor=_finite(row.ppl_cor),
        delta_p_rms=_finite(row.delta_p_rms),
        n_ctx=row.n_ctx,
        n_chunks=row.n_chunks,
        n_tokens=row.n_tokens,
        imported=row.quality_imported,
        command=row.command,
        details=_loaded(row.quality_json),
    )


def _speed(row: DatasetRow) -> Speed:
    return Speed(
        prompt=Rate(n_tokens=row.n_prompt, tokens_per_s=_finite(row.pp_ts), stddev=_finite(row.pp_ts_stddev)),
        generation=Rate(n_tokens=row.n_gen, tokens_per_s=_finite(row.tg_ts), stddev=_finite(row.tg_ts_stddev)),
        peak_memory_bytes=row.peak_memory_bytes,
        peak_vram_bytes=row.peak_vram_bytes,
        imported=row.speed_imported,
        details=_loaded(row.speed_json),
    )


def _value(value: float | None, stderr: float | None, interval: Figure | None) -> dict[str, Any]:
    value, stderr = _finite(value), _finite(stderr)
    known = interval is not None and interval.low < interval.high and value is not None
    if not known or interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return {"value": value, "stderr": stderr}
    return {"value": value, "stderr": stderr, "ci95": (interval.low, interval.high)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _time(row: DatasetRow) -> str | None:
    return row.measured_at.astimezone(UTC).isoformat(timespec="seconds") if row.measured_at else None


def _loaded(text: str | None) -> dict[str, Any] | None:
    """A stored JSON object without what is no figure."""
    found = _told(json.loads(text)) if text else None
    return found if isinstance(found, dict) else None


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _told(item) for name, item in value.items() if name not in _NOT_TOLD}
    return [_told(item) for item in value] if isinstance(value, list) else value
