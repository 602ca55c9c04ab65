"""Looks into repos that changed, in one request each, and reads the headers of their new files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from bot.hub.door import FileTooLargeError, HubDoor, RepoDetail, RepoSummary
from bot.intake.headers import NotAModelError, audit_variant, identified
from bot.intake.repo_config import CONFIG_FILE, CONFIG_LIMIT, RepoConfig, parse_config
from bot.store import Store
from bot.store.db import immediate
from bot.store.repos import COLLECTION, Variant
from bot.store.watching import Due
from core.audit import AUDIT_VERSION, Inspection
from core.errors import HubError, HubGatedError, HubNotFoundError, HubRateLimitError, HubUnreachableError, StorageError
from core.gguf_files import RepoFile, VariantFiles, group_variants, label_of, shard_of
from core.patience import NO_ANSWER_S, REFUSED_S, Patience
from core.repo_names import is_repo_id

logger = logging.getLogger(__name__)

#: Seconds until the headers of a gated repo are tried again.
GATED_RETRY_S = 86400.0
#: Repos and headers read in one go, before the store is asked again what is the newest.
_BATCH = 50
#: A set of more shards than these waits for the others where the budget is short.
_FEW_SHARDS = 8

Errors = list[tuple[str, HubError]]
T = TypeVar("T", Due, Variant)


def look_into_due(
    store: Store,
    hub: HubDoor,
    *,
    now: float,
    stop: threading.Event,
    changed: list[str],
    errors: Errors,
    patience: Patience,
) -> HubError | None:
    """Look into every repo that waits for it, the last changed first; returns what stopped it, if the Hub did.

    What was not reached stays due, so that a kill or a spent budget loses nothing.
    """

    def one(due: Due) -> None:
        try:
            if take(store, hub, due, now=now):
                changed.append(due.id)
        except HubNotFoundError as error:
            known = store.watching.known(due.id)
            had_files = bool(known and known.sha)
            store.watching.set_state(due.id, "gone", note="It is gone from the Hub, or private now.", now=now)
            if not had_files:
                errors.append((due.id, error))

    def later(due: Due, error: HubError, first: float) -> None:
        errors.append((due.id, error))
        store.watching.put_off(due.id, error=str(error), now=now, first=first)

    return _through(lambda: store.watching.due(now=now, limit=_BATCH), one, later, patience, stop)


def audit_waiting(
    store: Store,
    hub: HubDoor,
    *,
    now: float,
    stop: threading.Event,
    changed: list[str],
    errors: Errors,
    patience: Patience,
) -> HubError | None:
    """Read every header that waits for it, those of the last changed repos first; returns what stopped it."""

    def one(variant: Variant) -> None:
        try:
            audit(store, hub, variant, now=now)
            if variant.repo_id not in changed[-1:]:
                changed.append(variant.repo_id)
        except HubGatedError as error:
            # A gated repo shows its list of files to everybody, and the files to whom it let in.
            store.watching.set_gated(variant.repo_id, note=str(error), until=now + GATED_RETRY_S)
        except HubNotFoundError:
            # It changed since; the next look finds what there is now.
            store.watching.put_off_audit(variant.id, now=now, first=REFUSED_S)

    def later(variant: Variant, error: HubError, first: float) -> None:
        errors.append((f"{variant.repo_id}/{variant.name}", error))
        store.watching.put_off_audit(variant.id, now=now, first=first)

    return _through(lambda: store.watching.to_audit(now=now, limit=_BATCH), one, later, patience, stop)


def told_error(failure: Exception, what: str) -> HubError:
    """The error to tell; one repo's surprise must not keep the others from being looked into."""
    if isinstance(failure, HubError):
        return failure
    logger.error("Looking into %s failed", what, exc_info=failure)
    return HubError(f"{what} could not be understood ({type(failure).__name__}); see the log.")


def _through(
    more: Callable[[], list[T]],
    one: Callable[[T], None],
    later: Callable[[T, HubError, float], None],
    patience: Patience,
    stop: threading.Event,
) -> HubError | None:
    """Take one after the other; what fails is put off, and only a Hub that fails at several in a row is away."""
    seen: set[str | int] = set()
    while batch := [item for item in more() if item.id not in seen]:
        for item in batch:
            if stop.is_set():
                return None
            # Whatever happens to it, an item is not taken twice in one go.
            seen.add(item.id)
            try:
                one(item)
                patience.well()
            except StorageError:
                raise
            except HubRateLimitError as error:
                if isinstance(item, Variant) and len(item.files) > _FEW_SHARDS:
                    # So many ranges that it may be what spends each window: the others first.
                    later(item, error, NO_ANSWER_S)
                return error
            except HubUnreachableError as error:
                later(item, error, NO_ANSWER_S)
                if patience.failed():
                    return error
            except Exception as failure:
                later(item, told_error(failure, str(item.id)), REFUSED_S)
    return None


def take(store: Store, hub: HubDoor, due: Due, *, now: float) -> bool:
    """Look into one repo; False if there is nothing for us to see (moved, private, disabled)."""
    if due.source == "follow" and store.repos.follow_of(due.id) is None:
        store.watching.forget_due(due.id)
        return False
    detail = hub.detail(due.id)
    new = detail.summary.id
    if new == due.id:
        return look(store, hub, detail, source=due.source, now=now)
    if not is_repo_id(new):
        raise HubNotFoundError(f"The Hub calls {due.id} by no name of a repo now; it is left alone.")
    known, there = store.watching.known(due.id), store.watching.known(new)
    follow = _follow_after(known.follow if known else None, due.id, new)
    watched = follow is not None or store.repos.follow_of(new) is not None or due.source == "request"
    if watched and (there is None or detail.summary.sha not in (there.sha, there.due_sha)):
        store.watching.mark_due(
            new, sha=detail.summary.sha, now=now, follow=follow, last_modified=detail.summary.last_modified
        )
    store.watching.rename(due.id, new, now=now)
    return False


def _follow_after(follow: str | None, old: str, new: str) -> str | None:
    """The follow by which a renamed repo is watched: an owner's does not go with it to another owner."""
    if follow is None or follow.startswith(COLLECTION):
        return follow
    if follow.lower() == old.lower():
        return new
    return follow if new.split("/")[0].lower() == follow.lower() else None


def visible(store: Store, summary: RepoSummary, *, source: str, now: float) -> bool:
    """Whether a repo's files are for us to tell about; if not, its state is noted."""
    if summary.disabled:
        store.watching.set_state(summary.id, "disabled", note="The Hub has disabled it.", now=now)
        return False
    follow = store.repos.follow_of(summary.id)
    if summary.private and not (source == "follow" and follow and follow.is_repo):
        # What an owner keeps private is not for our dataset, even where our token may see it.
        store.watching.set_state(summary.id, "private", note="It is private.", now=now)
        return False
    return True


def look(store: Store, hub: HubDoor, detail: RepoDetail, *, source: str, now: float) -> bool:
    """Write a repo's files, base model and wishes into the store, as of one commit; headers are read later."""
    summary = detail.summary
    if not visible(store, summary, source=source, now=now):
        return False
    revision = summary.sha or "main"
    known = {
        (variant.name, variant.key): variant
        for variant in store.repos.variants(summary.id, states=("current", "stale", "removed"))
    }
    found: list[tuple[VariantFiles, Inspection | None, str | None]] = []
    for variant in group_variants(identified(hub, summary.id, revision, detail.files)):
        before = known.get((variant.name, variant.key))
        if any(file.sha256 is None for file in variant.files):
            found.append((variant, None, "It is not stored in LFS, so it has no sha256 to be known by."))
        elif before and _read_before(before) and before.files == variant.files:
            found.append((variant, before.inspection, before.note))
        else:
            # The same bytes say the same wherever they lie.
            like = store.watching.inspection_of(variant.key, label_of(variant.name), AUDIT_VERSION)
            found.append((variant, like if variant.complete else None, None))
    try:
        wishes, gated = _wishes(hub, summary.id, detail.files, revision=revision), None
    except HubGatedError as error:
        wishes, gated = RepoConfig(enabled=False, problem=f"{CONFIG_FILE} can't be read: the repo is gated."), error
    base = next((name for name in detail.base_models if is_repo_id(name)), None)

    def save(sha: str | None) -> None:
        store.repos.save_repo(
            summary.id,
            sha=sha,
            last_modified=summary.last_modified,
            source=source,
            note=None,
            base_model=base or _base_of_headers([inspection for _, inspection, _ in found]),
            config={**wishes.as_json(), "base_models": list(detail.base_models)},
            now=now,
        )

    # The commit is noted last: a look that was cut short is made again.
    save(None)
    store.repos.save_variants(summary.id, found, revision=revision, now=now)
    with immediate(store.db):
        save(revision)
        if base:
            # Files that were read elsewhere may be a reference at once, for others too.
            store.watching.want_plan_of_base(base)
        store.publishing.touch(summary.id, now=now)
        if gated:
            store.watching.set_gated(summary.id, note=str(gated), until=now + GATED_RETRY_S)
    return True


def _read_before(variant: Variant) -> bool:
    """Whether a header was read by this version, so that it need not be again."""
    return variant.note is not None if variant.inspection is None else not variant.inspection.outdated


def _wishes(hub: HubDoor, repo_id: str, files: list[RepoFile], *, revision: str) -> RepoConfig:
    if not any(file.path == CONFIG_FILE for file in files):
        return RepoConfig()
    try:
        return parse_config(hub.read(repo_id, CONFIG_FILE, revision=revision, limit=CONFIG_LIMIT))
    except FileTooLargeError:
        return RepoConfig(enabled=False, problem=f"{CONFIG_FILE} is larger than {CONFIG_LIMIT >> 10} KiB")


def audit(store: Store, hub: HubDoor, variant: Variant, *, now: float) -> None:
    """Read one variant's headers and write down what they say."""
    files = VariantFiles(variant.name, variant.files, shard_of(variant.files[0].path)[1])
    try:
        found = audit_variant(hub, variant.repo_id, variant.revision, files)
    except NotAModelError:
        store.watching.no_model(variant.id)
        return
    with immediate(store.db):
        if found.template is not None:
            store.templates.keep([found.template])
        store.watching.save_audit(variant.id, found.inspection, found.note, now=now)
        _after_audit(store, variant.repo_id, found.inspection, now=now)


def _after_audit(store: Store, repo_id: str, inspection: Inspection | None, *, now: float) -> None:
    repo = store.repos.repo(repo_id)
    if repo is None:
        return
    if repo.state == "gated":
        store.watching.set_live(repo.id)
    base = repo.base_model
    if base is None and (base := _base_of_headers([inspection])):
        store.repos.set_base_model(repo.id, base)
    store.watching.want_plan([repo.id])
    if base:
        # A new reference serves other uploaders of the same model.
        store.watching.want_plan_of_base(base)
    store.publishing.touch(repo.id, now=now)


def _base_of_headers(inspections: list[Inspection | None]) -> str | None:
    with suppress(StopIteration):
        return next(
            base.repo_id
            for inspection in inspections
            for base in (inspection.base_models if inspection else [])
            if base.repo_id
        )
    return None
