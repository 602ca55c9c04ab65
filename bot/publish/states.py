"""How a variant stands: measured, waiting, failed or without a reference, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bot.intake.references import Choice
from bot.queue.plan import measurable
from bot.store.changes import UNDONE
from bot.store.jobs import Job
from bot.store.repos import Variant
from core.dataset import RowState
from core.errors import NonFiniteLogitsError
from core.sizes import Kind


def unread(variant: Variant) -> bool:
    """Whether a variant's header waits to be read."""
    return variant.inspection is None and variant.note is None


def state_of(
    variant: Variant,
    choice: Choice,
    *,
    has_quality: bool,
    has_speed: bool,
    jobs: Mapping[Kind, Job],
    imported: bool = False,
) -> tuple[RowState, str | None]:
    """A variant's state under a protocol, and the reason as a sentence.

    Args:
        jobs: its jobs by kind.
        imported: whether its quality was measured elsewhere.
    """
    if unread(variant):
        return "waiting", "Its header was not read yet."
    if not measurable(variant):
        return "failed", variant.note
    if choice.refused:
        return "failed", choice.refused
    job, speed = jobs.get("quality"), jobs.get("speed")
    no_speed = f"No speed: {speed.error}" if speed and speed.state in UNDONE and not has_speed else None
    if choice.reference is None:
        return "no-reference", f"{choice.reason} {no_speed}" if no_speed else choice.reason
    if has_quality:
        if imported and job and job.state in UNDONE:
            return "measured", f"Not measured here: {job.error}"
        return "measured", no_speed
    if job and job.state in UNDONE:
        return "failed", job.error
    return "waiting", None


def found_invalid(job: Job | None) -> bool:
    """Whether a quality job ended with logits that are no numbers: a finding, which no imported figure hides."""
    return job is not None and job.state in UNDONE and job.error_type == NonFiniteLogitsError.__name__
