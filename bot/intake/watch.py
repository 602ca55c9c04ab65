"""Polls the Hub for new and changed GGUFs in followed repos, and looks into those that changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from bot.hub.door import FileTooLargeError, HubDoor, RepoSummary
from bot.intake.card_meta import CARD_LIMIT, CONFIG_FILE, CONFIG_LIMIT, RepoConfig, base_model_of, parse_config
from bot.intake.headers import NotAModelError, identified, inspect_variant
from bot.store import Store
from bot.store.repos import Follow, Repo
from core.audit import Inspection
from core.errors import HubError, HubNotFoundError, HubRateLimitError, HubUnreachableError
from core.gguf_files import VariantFiles, group_variants

logger = logging.getLogger(__name__)


@dataclass
class PollReport:
    """What a poll did: repos seen, repos looked into, and errors as (what, error)."""

    seen: int = 0
    changed: list[str] = field(default_factory=list)
    errors: list[tuple[str, HubError]] = field(default_factory=list)


def poll(store: Store, hub: HubDoor, *, now: float, stop: threading.Event | None = None) -> PollReport:
    """Look into every followed or requested repo whose commit changed since the last look.

    One repo's or owner's error does not stop the others; a Hub that does not answer or is out of budget does,
    and so does ``stop``: what was not looked at is looked at next time.
    """
    report = PollReport()
    stop = stop or threading.Event()
    for follow in store.repos.follows():
        if stop.is_set() or not _guard(
            report, follow.name, partial(_poll_follow, store, hub, follow, report, now, stop)
        ):
            return report
    for request in store.results.requests(state="open"):
        take = partial(_take_request, store, hub, request["id"], request["repo_id"], report, now)
        if stop.is_set() or not _guard(report, request["repo_id"], take):
            return report
    return report


def _take_request(store: Store, hub: HubDoor, request_id: int, repo_id: str, report: PollReport, now: float) -> None:
    """Look into a repo that somebody asked for, and answer; only a Hub that is away leaves the request open."""
    try:
        summary = hub.repo(repo_id)
        if summary.private:
            # Our token may see it; whoever asked may not.
            raise HubNotFoundError(f"The Hub has nothing for the repo {repo_id}: it is missing, or private.")
        look(store, hub, summary, source="request", now=now)
    except (HubUnreachableError, HubRateLimitError):
        raise
    except HubError as error:
        store.results.end_request(request_id, state="refused", note=str(error))
        return
    report.changed.append(repo_id)
    found = store.repos.variants(repo_id)
    note = None if found else "There is no GGUF model in this repo."
    store.results.end_request(request_id, state="taken" if found else "refused", note=note)


def _guard(report: PollReport, what: str, step: Callable[[], None]) -> bool:
    """Run a step; note its error. False when there is no point in going on."""
    try:
        step()
    except (HubUnreachableError, HubRateLimitError) as error:
        report.errors.append((what, error))
        return False
    except HubError as error:
        report.errors.append((what, error))
    return True


def _poll_follow(
    store: Store, hub: HubDoor, follow: Follow, report: PollReport, now: float, stop: threading.Event
) -> None:
    listed = set()
    for summary in _summaries(store, hub, follow, now):
        if stop.is_set():
            return
        listed.add(summary.id)
        # What an owner keeps private is not for our dataset, even where our token may see it.
        if summary.disabled or (summary.private and not follow.is_repo):
            continue
        report.seen += 1
        known = store.repos.repo(summary.id)
        if known and known.sha is not None and known.sha == summary.sha and known.source == "follow":
            continue
        try:
            look(store, hub, summary, source="follow", now=now)
            report.changed.append(summary.id)
        except (HubUnreachableError, HubRateLimitError):
            raise
        except HubError as error:
            report.errors.append((summary.id, error))
    if not follow.is_repo:
        for repo in store.repos.repos():
            if repo.owner == follow.owner and repo.id not in listed and store.repos.variants(repo.id):
                _check_gone(store, hub, repo, now)


def _summaries(store: Store, hub: HubDoor, follow: Follow, now: float) -> Iterator[RepoSummary]:
    if not follow.is_repo:
        yield from hub.gguf_repos(follow.owner)
        return
    try:
        summary = hub.repo(follow.name)
    except HubNotFoundError:
        if known := store.repos.repo(follow.name):
            _forget(store, known, now)
        raise
    yield summary


def _check_gone(store: Store, hub: HubDoor, repo: Repo, now: float) -> None:
    """A repo that its owner's list lacks: a listing may err, so it is asked for by name."""
    try:
        hub.repo(repo.id)
    except HubNotFoundError:
        _forget(store, repo, now)


def _forget(store: Store, repo: Repo, now: float) -> None:
    """Its files are gone; what was measured stays, and when it comes back it is looked into again."""
    store.repos.save_variants(repo.id, [], revision=repo.sha or "", now=now)
    store.repos.save_repo(
        repo.id, sha=None, last_modified=None, source=repo.source, note="It is gone from the Hub, or private now.",
        base_model=repo.base_model, config=repo.config, now=now,
    )  # fmt: skip


def look(store: Store, hub: HubDoor, summary: RepoSummary, *, source: str, now: float) -> None:
    """Read a repo's files, headers, card and wishes into the store, as of one commit."""
    sha = summary.sha or hub.repo(summary.id).sha
    revision = sha or "main"
    files = hub.files(summary.id, revision=revision)
    paths = {file.path for file in files}
    known = {
        (variant.name, variant.key): variant
        for variant in store.repos.variants(summary.id, states=("current", "stale", "removed"))
    }
    found: list[tuple[VariantFiles, Inspection | None, str | None]] = []
    for variant in group_variants(identified(hub, summary.id, revision, files)):
        before = known.get((variant.name, variant.key))
        if before and before.inspection:
            found.append((variant, before.inspection, before.note))
            continue
        with suppress(NotAModelError):
            found.append((variant, *inspect_variant(hub, summary.id, revision, variant)))
    card = b""
    if "README.md" in paths:
        with suppress(HubNotFoundError, FileTooLargeError):
            card = hub.read(summary.id, "README.md", revision=revision, limit=CARD_LIMIT) or b""
    wishes = RepoConfig()
    if CONFIG_FILE in paths:
        try:
            wishes = parse_config(hub.read(summary.id, CONFIG_FILE, revision=revision, limit=CONFIG_LIMIT))
        except FileTooLargeError:
            wishes = RepoConfig(enabled=False, problem=f"{CONFIG_FILE} is larger than {CONFIG_LIMIT >> 10} KiB")
    base = base_model_of(card.decode("utf-8", errors="replace")) or _base_of_headers(found)

    def save(sha: str | None) -> None:
        store.repos.save_repo(
            summary.id,
            sha=sha,
            last_modified=summary.last_modified,
            source=source,
            note=None,
            base_model=base,
            config={"enabled": wishes.enabled, "position": wishes.position, "problem": wishes.problem},
            now=now,
        )

    # The commit is noted last: a look that was cut short is made again.
    save(None)
    store.repos.save_variants(summary.id, found, revision=revision, now=now)
    save(sha)


def _base_of_headers(found: list[tuple[VariantFiles, Inspection | None, str | None]]) -> str | None:
    for _, inspection, _ in found:
        for base in inspection.base_models if inspection else []:
            if base.repo_id:
                return base.repo_id
    return None
