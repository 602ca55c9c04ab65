"""Which jobs a set of variants calls for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bot.intake.references import Choice
from bot.store.jobs import NewJob
from bot.store.repos import Variant
from core.canonical import fingerprint
from core.need import Need
from core.protocol import Protocol
from core.sizes import Kind, corrected, estimate
from core.turns import Urgency

#: By architecture, how much of their estimates runs really took.
Ratios = Callable[[str], Sequence[float]]


def job_key(kind: str, *, variant_key: str, protocol: Protocol, reference_key: str | None) -> str:
    """The idempotency key: the same work always has the same one, whoever asks for it and wherever the file lies."""
    return fingerprint([kind, variant_key, protocol.fingerprint, reference_key])


def measurable(variant: Variant) -> bool:
    """Whether a variant's header could be read and all its shards are there."""
    return variant.inspection is not None and variant.note is None


def need_of(variant: Variant, protocol: Protocol, kind: Kind, reference: Variant | None, ratios: Ratios) -> Need | None:
    """What a job takes, raised by what others of its architecture took; None where its header was not read."""
    seen = variant.inspection
    if seen is None:
        return None
    found = estimate(seen, protocol, kind, reference=reference.inspection if reference else None)
    return corrected(found, ratios(seen.architecture or ""))


def jobs_for(variant: Variant, choice: Choice, protocol: Protocol, *, urgency: Urgency = "back-fill") -> list[NewJob]:
    """Baseline (once per reference), quality and speed of one variant; a baseline stands before what waits for it.

    Whose reference it is does not matter to a key: one baseline serves all uploaders of a model.
    """
    if not measurable(variant):
        return []
    jobs = []
    reference = choice.reference
    if reference is not None and choice.refused is None and measurable(reference):
        baseline_key = job_key("baseline", variant_key=reference.key, protocol=protocol, reference_key=None)
        jobs.append(
            NewJob(
                key=baseline_key,
                kind="baseline",
                variant_id=reference.id,
                reference_id=None,
                protocol=protocol,
                urgency=urgency,
                owner=reference.repo_id.split("/")[0],
                size_bytes=reference.size_bytes,
            )
        )
        jobs.append(
            NewJob(
                key=job_key("quality", variant_key=variant.key, protocol=protocol, reference_key=reference.key),
                kind="quality",
                variant_id=variant.id,
                reference_id=reference.id,
                protocol=protocol,
                depends_on_key=baseline_key,
                urgency=urgency,
                owner=variant.repo_id.split("/")[0],
                size_bytes=variant.size_bytes,
            )
        )
    jobs.append(
        NewJob(
            key=job_key("speed", variant_key=variant.key, protocol=protocol, reference_key=None),
            kind="speed",
            variant_id=variant.id,
            reference_id=None,
            protocol=protocol,
            urgency=urgency,
            owner=variant.repo_id.split("/")[0],
            size_bytes=variant.size_bytes,
        )
    )
    return jobs


def plan(
    pairs: Iterable[tuple[Variant, Choice]],
    protocol: Protocol,
    *,
    urgency: Urgency = "back-fill",
    ratios: Ratios = lambda _: (),
) -> list[NewJob]:
    """All jobs of these variants, each key once, in an order in which dependencies come first.

    Args:
        ratios: by architecture, how much of their estimates runs really took.
    """
    seen: dict[str, NewJob] = {}
    for variant, choice in pairs:
        for job in jobs_for(variant, choice, protocol, urgency=urgency):
            if job.key in seen:
                continue
            of = choice.reference if job.kind == "baseline" and choice.reference else variant
            beside = choice.reference if job.kind == "quality" else None
            seen[job.key] = replace(job, need=need_of(of, protocol, job.kind, beside, ratios))
    return list(seen.values())
