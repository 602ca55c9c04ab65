"""Has figures that stand out measured once more by another runner, before anybody is told of them."""

from __future__ import annotations

from bot.settings import Settings
from bot.store import Store
from bot.store.jobs import Job
from bot.store.repos import Variant
from core.contract import QualityResult
from core.outliers import agree, stands_out


def other_runners(settings: Settings, runner: str) -> bool:
    """Whether there is another runner to ask."""
    return any(name != runner for name in settings.runners)


def recheck(store: Store, job: Job, variant: Variant, result: QualityResult, *, runner: str, now: float) -> bool:
    """Queue a job that was just done once more, for any runner but this one, where its figure stands out."""
    seen = variant.inspection
    if job.avoid is not None or seen is None or seen.bpw is None or job.reference_id is None:
        return False
    reference = store.repos.variant(job.reference_id).key
    if variant.key == reference:
        return False
    others = store.results.klds(reference, job.protocol.fingerprint, but=variant.key)
    found = stands_out(seen.bpw, result.kld.mean, others)
    if found is None:
        return False
    reason = f"its mean KLD is far {found}er than its bits per weight lead one to expect: measured again elsewhere"
    store.jobs.recheck(job.id, avoid=runner, reason=reason, now=now)
    return True


def compare_with_first(store: Store, job: Job, variant: Variant, result: QualityResult, *, now: float) -> None:
    """Note in a rechecked job's history whether the second runner found the same; its figure is the one that counts."""
    if job.avoid is None or job.reference_id is None:
        return
    reference = store.repos.variant(job.reference_id).key
    before = store.results.measurements(variant.key, job.protocol.fingerprint, reference_key=reference).get("quality")
    if before is None or not isinstance(before.result, QualityResult):
        return
    first, second = before.result.kld, result.kld
    same = agree(first.mean, first.stderr, second.mean, second.stderr)
    told = f"{first.mean:.6f} by {job.avoid}, {second.mean:.6f} now"
    store.jobs.note(job.id, f"mean KLD {'is the same' if same else 'DIFFERS'}: {told}", now=now)
