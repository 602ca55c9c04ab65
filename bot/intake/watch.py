"""Polls the Hub for new and changed GGUFs in followed repos, and looks into those that changed."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from bot.hub.door import FileTooLargeError, HubDoor, RepoSummary
from bot.intake.card_meta import CARD_LIMIT, CONFIG_FILE, CONFIG_LIMIT, RepoConfig, base_model_of, parse_config
from bot.store import Store
from bot.store.repos import Follow, Repo
from core.audit import Inspection, inspect
from core.errors import GGUFError, HubError, HubNotFoundError, HubRateLimitError, HubUnreachableError
from core.gguf_files import RepoFile, VariantFiles, group_variants
from core.gguf_header import GGUFHeader, read_header

logger = logging.getLogger(__name__)

#: A GGUF outside LFS is read whole to know it by its sha256, up to this size.
_INLINE_LIMIT = 64 << 20

#: Tensors of unknown types can claim any number of elements; no model has more than this.
_MAX_PARAMS = 10**15


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
    for variant in group_variants(_identified(hub, summary.id, revision, files)):
        before = known.get((variant.name, variant.key))
        if before and before.inspection:
            found.append((variant, before.inspection, before.note))
            continue
        with suppress(_NotAModelError):
            found.append((variant, *_inspect(hub, summary.id, revision, variant)))
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


def _identified(hub: HubDoor, repo_id: str, revision: str, files: list[RepoFile]) -> list[RepoFile]:
    """The files, with the sha256 of small GGUFs that are not in LFS taken from their bytes."""
    found = []
    for file in files:
        if file.sha256 is None and file.path.lower().endswith(".gguf") and file.size <= _INLINE_LIMIT:
            data = hub.read(repo_id, file.path, revision=revision, limit=_INLINE_LIMIT)
            if data is not None:
                file = RepoFile(file.path, file.size, hashlib.sha256(data).hexdigest())
        found.append(file)
    return found


class _NotAModelError(Exception):
    """The header says that the file is a projector, an importance matrix or an adapter, whatever its name says."""


def _inspect(hub: HubDoor, repo_id: str, revision: str, variant: VariantFiles) -> tuple[Inspection | None, str | None]:
    """The audit of a variant from ranged reads of its headers, or None with the reason."""
    if any(file.sha256 is None for file in variant.files):
        return None, "It is not stored in LFS, so it has no sha256 to be known by."
    try:
        headers = [remote_header(hub, repo_id, file, revision=revision) for file in variant.files]
        if headers[0].kv.get("general.type", "model") != "model":
            raise _NotAModelError
        found = inspect(headers, size_bytes=variant.size_bytes, name=variant.name, shards_expected=variant.n_shards)
    except GGUFError as error:
        return None, str(error)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        logger.warning("The header of %s in %s can't be understood", variant.name, repo_id, exc_info=True)
        return None, f"{variant.name}: its header can't be understood ({type(error).__name__})."
    if found.n_params > _MAX_PARAMS:
        return None, f"{variant.name}: {found.n_params} parameters can't be true; the file is damaged."
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
