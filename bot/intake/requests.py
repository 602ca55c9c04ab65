"""Requests for benchmarks from people, taken into the store."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from bot.clock import Clock
from bot.store import Store
from core.dataset import QueueRow, RequestAck
from core.errors import QuantcardError
from core.repo_names import is_repo_id

_HOST = re.compile(r"^(https?://[^/]+|(www\.)?(huggingface\.co|hf\.co))/", re.IGNORECASE)
#: First parts of addresses that are no owners.
_NOT_OWNERS = {"api", "buckets", "collections", "datasets", "docs", "models", "papers", "settings", "spaces"}
_HOUR = 3600.0


def without_host(text: str) -> str:
    """A path at the Hub from what somebody typed or pasted: an address of it will do."""
    return re.split(r"[?#]", _HOST.sub("", text.strip(), count=1))[0].strip("/")


def parse_repo_id(text: str) -> str | None:
    """``owner/name`` from what somebody typed or pasted (an address of the repo will do), or None."""
    path = without_host(text)
    kept = "/".join(path.split("/")[:2])
    bad = ".." in kept or "--" in kept or kept.endswith((".", "-")) or kept.split("/")[0].lower() in _NOT_OWNERS
    return kept if is_repo_id(kept) and not bad else None


def submit(db: Path, text: str, person: str | None, *, clock: Clock, per_hour: int) -> RequestAck:
    """Take a request into the database; the next poll looks into the repo and queues its files."""
    repo_id = parse_repo_id(text)
    if repo_id is None:
        return RequestAck(accepted=False, message="That is not a repo: write it as owner/name.")
    try:
        with Store(db) as store:
            now = clock.now()
            recent = [r for r in store.results.requests() if r["created_at"] > now - _HOUR]
            if len(recent) >= per_hour:
                return RequestAck(
                    accepted=False, message=f"{per_hour} requests were made in the last hour. Please try again later."
                )
            known = store.repos.repo(repo_id)
            if known and store.repos.variants(repo_id) and known.source == "follow":
                if waiting := store.jobs.hurry(repo_id, now=now):
                    said = f"{repo_id} is watched already; its {waiting} waiting jobs come sooner now."
                    return RequestAck(accepted=True, message=said)
                return RequestAck(
                    accepted=True, message=f"{repo_id} is watched already: new files are measured as they come."
                )
            added = store.results.add_request(repo_id, person, now=now)
            ahead = sum(store.jobs.counts().get(state, 0) for state in ("todo", "leased", "running"))
    except QuantcardError as error:
        return RequestAck(accepted=False, message=str(error))
    word = "Noted" if added else "Somebody asked for it before you"
    return RequestAck(
        accepted=True, message=f"{word}: {repo_id} is looked into at the next poll, then queued.", position=ahead
    )


def queue_rows(db: Path, *, now: float, slots: int = 1) -> list[QueueRow]:
    """The queue as people see it: requests that wait for a look, then jobs; the last hundred of those that ended."""
    with Store(db) as store:
        rows = []
        jobs = store.jobs.all(limit=300)
        places = store.standing.places(jobs, now=now, slots=slots)
        for job in jobs:
            variant, place = store.repos.variant(job.variant_id), places.get(job.id)
            progress = job.progress
            rows.append(
                QueueRow(
                    id=job.id,
                    kind=job.kind,
                    repo_id=variant.repo_id,
                    variant=variant.name,
                    state=job.state,
                    reason=job.error if job.state != "done" else None,
                    progress=progress.done / progress.total if progress and progress.total else None,
                    position=place.position if place else None,
                    eta_s=place.eta_s if place else None,
                    updated_at=_moment(job.updated_at),
                )
            )
        asked = [
            QueueRow(
                id=request["id"],
                kind="request",
                repo_id=request["repo_id"],
                variant="",
                state="waiting" if request["state"] == "open" else request["state"],
                reason=request["note"],
                updated_at=_moment(request["created_at"]),
            )
            for request in store.results.requests()
            if request["state"] != "taken"
        ]
    return asked[-50:] + rows


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
