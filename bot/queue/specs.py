"""What the measuring process is asked: a job as a spec with paths. Pure, but for looking at settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.queue.places import baseline_path, tokens_path, work_folder
from bot.settings import Settings
from bot.store.jobs import Job
from bot.store.repos import Variant
from core.contract import BaselineFormat, BaselineSpec, Machine, QualitySpec, SpeedSpec

Spec = BaselineSpec | QualitySpec | SpeedSpec


@dataclass(frozen=True, slots=True)
class Asked:
    """A spec, and where what it makes is to lie in the end (None: it makes no file)."""

    spec: Spec
    to: Path | None


def baseline_kind(job: Job, settings: Settings) -> BaselineFormat:
    """How a job's baseline is kept."""
    return "states" if job.protocol.scoring == "unclipped" else settings.baseline_format


def ask(
    job: Job,
    variant: Variant,
    settings: Settings,
    *,
    model: Path,
    machine: Machine,
    corpus: Path | None = None,
    baseline: Path | None = None,
) -> Asked:
    """The spec of a job; what it writes lies in a folder of the job's own until it was looked at.

    Args:
        model: the variant's first file.
        corpus: of a baseline job.
        baseline: of a quality job.
    """
    data, protocol = settings.data, job.protocol
    work = work_folder(data, job.key)
    shared: dict[str, Any] = {
        "n_batch": protocol.n_batch,
        "n_ubatch": protocol.n_ubatch,
        "type_k": protocol.type_k,
        "type_v": protocol.type_v,
        "flash_attn": protocol.flash_attn,
        "machine": machine,
    }
    if job.kind == "baseline":
        kind = baseline_kind(job, settings)
        to = baseline_path(data, variant.key, protocol, kind)
        spec = BaselineSpec(
            reference=str(model),
            corpus=str(corpus),
            out=str(work / to.name),
            format=kind,
            fallback=protocol.scoring == "llama-cpp",
            n_ctx=protocol.n_ctx,
            chunks=protocol.chunks,
            # The reference with f16 always: what another KV cache does is what is measured.
            **{**shared, "type_k": "f16", "type_v": "f16"},
        )
        return Asked(spec, to)
    if job.kind == "quality":
        to = tokens_path(data, variant.key, protocol)
        return Asked(
            QualitySpec(
                model=str(model),
                baseline=str(baseline),
                as_llama_cpp=protocol.scoring == "llama-cpp",
                tokens_out=str(work / to.name),
                checkpoint=str(work / "measured.checkpoint"),
                model_sha256=variant.key,
                protocol=protocol,
                **shared,
            ),
            to,
        )
    return Asked(
        SpeedSpec(
            model=str(model),
            n_prompt=[protocol.n_prompt],
            n_gen=[protocol.n_gen],
            n_depth=[protocol.n_depth],
            repetitions=protocol.repetitions,
            **shared,
        ),
        None,
    )
