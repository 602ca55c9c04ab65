"""Proves over ranged reads that a GGUF on the Hub has its base model's weights, and stores the verdict.

Nothing is downloaded: of both repos headers are read and pieces of tensors, over as many turns as it takes to sample
every tensor. What is compared, and what it proves, is decided in :mod:`core.tensor_proof`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from bot.hub.budget import Urgency, urgency
from bot.hub.door import HubDoor
from bot.intake.base_models import same_repo
from bot.intake.proof_reads import Limits, Reader, UnprovableError
from bot.intake.proof_turn import take_turn
from bot.intake.references import same_model
from bot.intake.view import View, view
from bot.store import Store
from bot.store.db import immediate
from bot.store.proofs import DISTRUST_S, Proof, Waiting
from bot.store.repos import Variant
from core.errors import (
    GGUFError,
    HubAuthError,
    HubError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
)
from core.patience import NO_ANSWER_S, REFUSED_S, Patience
from core.safetensors import SafetensorsError
from core.tensor_proof import Judgement, Seen

logger = logging.getLogger(__name__)

#: What a turn takes at most: requests, and bytes in all.
LIMITS: Final = Limits()
#: Seconds after which a file is sampled anew, and a base model is asked for its commit again.
RECHECK_S: Final = 7 * 86400.0
#: Repos in need that are looked at before a proof is called useless.
_LOOKED_AT: Final = 20
#: Files that are asked whether they would help, for each that is proven in one go.
_ASKED: Final = 16


def prove_references(
    store: Store, hub: HubDoor, *, now: float, limit: int, trusted: Collection[str] = (), limits: Limits = LIMITS
) -> list[Proof]:
    """Take up to ``limit`` turns at proving files that would give somebody's variants a reference; store what they say.

    Those that wait the longest come first. A turn is as much of a proof as ``limits`` allow; a verdict stands until
    the base model's commit is another one, and what is proven is sampled anew every week. What the Hub refuses is put
    off, and the others go on.

    Returns:
        What is new: verdicts, and how far proofs that take several turns came.

    Raises:
        HubUnreachableError: the Hub is away: it gave no answer to several in a row; what was reached is stored.
        HubRateLimitError: its budget is spent; likewise.
    """
    done: list[Proof] = []
    turns, patience = 0, Patience()
    seen = view(store, trusted=trusted)
    with urgency(Urgency.LOOK):
        for waiting in _queue(store, now=now, limit=_ASKED * limit):
            if turns >= limit:
                break
            old = waiting.proof
            open_still = old is None or old.verdict in ("partly", "unasked")
            if open_still and not _helps(seen, store, waiting.base_model, waiting.variant):
                store.proofs.no_use(waiting, now=now)
                continue
            turns += 1
            try:
                proof = _turn(store, hub, waiting, now=now, limits=limits)
            except HubRateLimitError:
                raise
            except HubError as error:
                logger.info("%s beside %s: put off: %s", waiting.variant.name, waiting.base_model, error)
                away = isinstance(error, HubUnreachableError)
                store.proofs.put_off(waiting, why=str(error), now=now, first=NO_ANSWER_S if away else REFUSED_S)
                if away and patience.failed():
                    raise
                continue
            patience.well()
            if _save(store, proof, old, now=now):
                seen = view(store, trusted=trusted)
            if old is None or proof.verdict == "partly" or proof.verdict != old.verdict:
                done.append(proof)
    return done


def _queue(store: Store, *, now: float, limit: int) -> list[Waiting]:
    """What is to be looked at, again or for the first time, who waits longer first."""
    due, new = store.proofs.due(now=now, limit=limit), store.proofs.unproven(limit=limit)
    found: list[Waiting] = []
    while due or new:
        first = due if due and (not new or due[0].since <= new[0].since) else new
        found.append(first.pop(0))
    return found


def _helps(seen: View, store: Store, base: str, reference: Variant) -> bool:
    """Whether some repo's variants would get a reference, or a better one, by this file."""
    if not same_repo(seen.base(reference.repo_id).id, base):
        return False
    return any(
        choice.kind in ("none", "q8_0") and same_model(variant, reference)
        for repo_id in store.proofs.in_need(base, limit=_LOOKED_AT)
        if same_repo(seen.base(repo_id).id, base)
        for variant, choice in seen.of(repo_id)
    )


def _save(store: Store, proof: Proof, old: Proof | None, *, now: float) -> bool:
    """Store a proof and, where others get or lose a reference by it, have their jobs and cards decided anew: all in one
    transaction, so that no kill loses half of it. Whether they do."""
    changed = (proof.verdict == "proven") != (old is not None and old.verdict == "proven")
    with immediate(store.db):
        store.proofs.save(proof)
        if changed:
            store.watching.want_plan_of_base(proof.base_model)
            for repo_id in store.repos.ids_of_base(proof.base_model):
                store.publishing.touch(repo_id, now=now)
    return changed


def _turn(store: Store, hub: HubDoor, waiting: Waiting, *, now: float, limits: Limits) -> Proof:
    """One turn at a file: more of its sample, or whether its base model is still at the same commit."""
    old, variant, base = waiting.proof, waiting.variant, waiting.base_model
    if old is not None and old.base_sha is not None and old.verdict != "partly":
        kept = replace(old, at=now, next_at=now + RECHECK_S, tries=0)
        try:
            if hub.repo(base).sha == old.base_sha and old.verdict != "proven":
                return kept
        except (HubNotFoundError, HubAuthError):
            # Its weights can't be seen any more; what was found of them stays true.
            return kept
    owner = variant.repo_id.split("/")[0]

    def distrusted(weights: str) -> str | None:
        at = store.proofs.differed(owner, base, weights=weights, now=now)
        if at is None or (old is not None and old.verdict == "proven"):
            return None
        # Else whoever uploads often enough would have a file sampled where it is right.
        day, until = (datetime.fromtimestamp(t, UTC).date() for t in (at, at + DISTRUST_S))
        return f"A file of {owner} differed from {base} on {day}: until {until} no further one of theirs is proven."

    proof = prove(hub, variant, base, now=now, before=old, distrusted=distrusted, limits=limits)
    if old is not None and old.verdict == "proven" and proof.base_sha is None:
        return replace(old, at=now, next_at=now + RECHECK_S, tries=0)
    return proof


class _DistrustedError(UnprovableError):
    """Nothing was compared, because of another file of its owner."""


def prove(
    hub: HubDoor,
    reference: Variant,
    base: str,
    *,
    now: float,
    salt: str | None = None,
    before: Proof | None = None,
    distrusted: Callable[[str], str | None] = lambda _: None,
    limits: Limits = LIMITS,
) -> Proof:
    """Compare some of a file's tensors with its base model's: those that no turn before this one has compared.

    Args:
        salt: what the sample is drawn with; by default it is drawn now, when the file can't be changed any more without
            becoming another one. Nobody can know beforehand which pieces will be compared, and the stored salt lets
            everybody repeat it.
        before: what earlier turns found; it counts where the base model's weights are still the same.
        distrusted: why no file of this owner is compared with these weights of the base model, or None.

    Raises:
        HubError: the Hub gave no answer, or a bad one; nothing can be said.
    """
    sha: str | None = None
    past = Seen.of(before.seen) if before else Seen()
    seen = past if before and before.verdict in ("partly", "proven") else Seen()
    salt = salt or (before.salt if before else "") or secrets.token_hex(16)
    try:
        reader = Reader(hub, limits)
        reader.count()
        detail = hub.detail(base)
        if detail.summary.sha is None:
            raise UnprovableError(f"The Hub tells no commit of {base}.")
        sha = detail.summary.sha

        def known(weights: str) -> Judgement | None:
            if before is not None and before.differed_at is not None and weights == past.weights:
                return Judgement("differs", before.detail, by_values=True)
            if said := distrusted(weights):
                raise _DistrustedError(said)
            return None

        seen, found = take_turn(reader, detail, reference, salt=salt, seen=seen, known=known)
    except (HubNotFoundError, HubAuthError, _DistrustedError) as error:
        # Not for our token, or gone: perhaps another week.
        sha, found = None, Judgement("unprovable", str(error))
    except (UnprovableError, SafetensorsError, GGUFError) as error:
        found = Judgement("unprovable", str(error))
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        logger.warning("%s can't be compared with %s", reference.name, base, exc_info=True)
        found = Judgement("unprovable", f"The weights of {base} can't be understood ({type(error).__name__}).")
    logger.info("%s of %s and %s: %s. %s", reference.name, reference.repo_id, base, found.verdict, found.detail)
    since = before.differed_at if before and seen.weights == past.weights else None
    return Proof(
        reference.key,
        base,
        sha,
        found.verdict,
        found.detail,
        salt,
        now,
        seen=seen.text(),
        owner=reference.repo_id.split("/")[0],
        differed_at=(since or now) if found.by_values else None,
        next_at=now if found.verdict == "partly" else now + RECHECK_S,
    )
