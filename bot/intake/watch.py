"""Polls the Hub for new and changed GGUFs in followed repos, and looks into those that changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from bot.hub.door import HubDoor, RepoSummary
from bot.intake.card_meta import CARD_LIMIT, CONFIG_FILE, CONFIG_LIMIT, base_model_of, parse_config
from bot.store import Store
from bot.store.repos import Follow
from core.audit import Inspection, inspect
from core.errors import GGUFError, HubError, HubNotFoundError, HubRateLimitError, HubUnreachableError
from core.gguf_files import RepoFile, VariantFiles, group_variants
from core.gguf_header import GGUFHeader, read_header

logger = logging.getLogger(__name__)


@dataclass
class PollReport:
    """What a poll did: repos seen, repos looked into, and errors as (what, error)."""

    seen: int = 0
    changed: list[str] = field(default_factory=list)
    errors: list[tuple[str, HubError]] = field(default_factory=list)


def poll(store: Store, hub: HubDoor, *, now: float) -> PollReport:
    """Look into every followed or requested repo whose commit changed since the last look.

    One repo's or owner's error does not stop the others; a Hub that does not answer or is out of budget does.
    """
    report = PollReport()
    for follow in store.repos.follows():

        def visit(follow: Follow = follow) -> None:
            _poll_follow(store, hub, follow, report, now)

        if not _guard(report, follow.name, visit):
            return report
    for request in store.results.requests(state="open"):
        repo_id, request_id = request["repo_id"], request["id"]

        def take(repo_id: str = repo_id, request_id: int = request_id) -> None:
            try:
                look(store, hub, hub.repo(repo_id), source="request", now=now)
            except HubNotFoundError as error:
                store.results.end_request(request_id, state="refused", note=str(error))
                return
            report.changed.append(repo_id)
            found = store.repos.variants(repo_id)
            note = None if found else "There is no GGUF model in this repo."
            store.results.end_request(request_id, state="taken" if found else "refused", note=note)

        if not _guard(report, repo_id, take):
            return report
    return report


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


def _poll_follow(store: Store, hub: HubDoor, follow: Follow, report: PollReport, now: float) -> None:
    summaries: Iterator[RepoSummary] = iter([hub.repo(follow.name)]) if follow.is_repo else hub.gguf_repos(follow.owner)
    for summary in summaries:
        report.seen += 1
        known = store.repos.repo(summary.id)
        if summary.disabled or (known and known.sha == summary.sha and known.source == "follow"):
            continue
        try:
            look(store, hub, summary, source="follow", now=now)
            report.changed.append(summary.id)
        except (HubUnreachableError, HubRateLimitError):
            raise
        except HubError as error:
            report.errors.append((summary.id, error))


def look(store: Store, hub: HubDoor, summary: RepoSummary, *, source: str, now: float) -> None:
    """Read a repo's files, headers, card and wishes into the store, as of one commit."""
    revision = summary.sha or hub.repo(summary.id).sha or "main"
    files = hub.files(summary.id, revision=revision)
    paths = {file.path for file in files}
    known = {
        (variant.name, variant.key): variant
        for variant in store.repos.variants(summary.id, states=("current", "stale", "removed"))
    }
    found: list[tuple[VariantFiles, Inspection | None, str | None]] = []
    for variant in group_variants(files):
        before = known.get((variant.name, variant.key))
        if before and before.inspection:
            found.append((variant, before.inspection, before.note))
        else:
            found.append((variant, *_inspect(hub, summary.id, revision, variant)))
    card = b""
    if "README.md" in paths:
        with suppress(HubNotFoundError):
            card = hub.read(summary.id, "README.md", revision=revision, limit=CARD_LIMIT) or b""
    config = None
    if CONFIG_FILE in paths:
        config = hub.read(summary.id, CONFIG_FILE, revision=revision, limit=CONFIG_LIMIT)
    wishes = parse_config(config)
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
    save(summary.sha)


def _inspect(hub: HubDoor, repo_id: str, revision: str, variant: VariantFiles) -> tuple[Inspection | None, str | None]:
    """The audit of a variant from ranged reads of its headers, or None with the reason."""
    if any(file.sha256 is None for file in variant.files):
        return None, "It is not stored in LFS, so it has no sha256 to be known by."
    try:
        headers = [remote_header(hub, repo_id, file, revision=revision) for file in variant.files]
    except GGUFError as error:
        return None, str(error)
    found = inspect(headers, size_bytes=variant.size_bytes, name=variant.name, shards_expected=variant.n_shards)
    note = None if variant.complete else f"{len(variant.files)} of {variant.n_shards} shards are there."
    return found, note


def remote_header(hub: HubDoor, repo_id: str, file: RepoFile, *, revision: str) -> GGUFHeader:
    """A GGUF header read over ranges, without downloading the file.

    Raises:
        GGUFError: it is not GGUF, is damaged, or truncated.
    """

    def read(offset: int, length: int) -> bytes:
        return hub.read_range(repo_id, file.path, revision=revision, offset=offset, length=length)

    return read_header(read, size=file.size, name=file.path)


def _base_of_headers(found: list[tuple[VariantFiles, Inspection | None, str | None]]) -> str | None:
    for _, inspection, _ in found:
        for base in inspection.base_models if inspection else []:
            if base.repo_id:
                return base.repo_id
    return None
