"""Which jobs a set of variants calls for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bot.intake.references import Choice
from bot.store.jobs import NewJob
from bot.store.repos import Variant
from core.canonical import fingerprint
from core.protocol import Protocol

#: A baseline before what waits for it, quality before speed.
PRIORITY = {"baseline": 2, "quality": 1, "speed": 0}


def job_key(kind: str, *, variant_key: str, protocol: Protocol, reference_key: str | None) -> str:
    """The idempotency key: the same work always has the same one, whoever asks for it and wherever the file lies."""
    return fingerprint([kind, variant_key, protocol.fingerprint, reference_key])


def measurable(variant: Variant) -> bool:
    """Whether a variant's header could be read and all its shards are there."""
    return variant.inspection is not None and variant.note is None


def jobs_for(variant: Variant, choice: Choice, protocol: Protocol) -> list[NewJob]:
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
                priority=PRIORITY["baseline"],
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
                priority=PRIORITY["quality"],
            )
        )
    jobs.append(
        NewJob(
            key=job_key("speed", variant_key=variant.key, protocol=protocol, reference_key=None),
            kind="speed",
            variant_id=variant.id,
            reference_id=None,
            protocol=protocol,
            priority=PRIORITY["speed"],
        )
    )
    return jobs


def plan(pairs: Iterable[tuple[Variant, Choice]], protocol: Protocol) -> list[NewJob]:
    """All jobs of these variants, each key once, in an order in which dependencies come first."""
    seen: dict[str, NewJob] = {}
    for variant, choice in pairs:
        for job in jobs_for(variant, choice, protocol):
            seen.setdefault(job.key, job)
    return list(seen.values())
