"""The hub itself: the folder's parts put together. Routes get it from `app.state.hub`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from .auth import Users
from .buckets import Buckets
from .delivery import Dispatcher
from .disk import Locks
from .errors import Forbidden, Unauthorized
from .job_faults import JobFaults
from .jobs import Jobs
from .payloads import event_payload
from .pulls import RefChange
from .repo_collections import Collections
from .repos import Repo, Repos
from .webhooks import Webhooks

_UPLOAD_VALID_S = 6 * 3600
_LEFTOVER_S = 24 * 3600
DEFAULT_MAX_LFS = 512 * 1024**3


def _sweep(folder: Path) -> None:
    """Remove what killed uploads left behind, once it is certain that nobody is at it any more."""
    for path in folder.glob("*"):
        try:
            if path.stat().st_mtime > time.time() - _LEFTOVER_S:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # another process was faster
            continue


class Hub:
    """Users, repos, collections and webhooks of one folder, and the thread that delivers webhooks."""

    def __init__(
        self,
        root: Path,
        *,
        base_url: str | None = None,
        remote_webhooks: bool = False,
        max_lfs_bytes: int = DEFAULT_MAX_LFS,
        job_faults: JobFaults | None = None,
    ) -> None:
        self.root = root
        self.base_url = base_url.rstrip("/") if base_url else None
        self.max_lfs_bytes = max_lfs_bytes
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root / "tmp")
        self.locks = Locks(root)
        self.users = Users(root, self.locks)
        self.repos = Repos(root, self.locks)
        self.webhooks = Webhooks(root, self.locks)
        self.collections = Collections(root, self.locks)
        self.buckets = Buckets(root, self.locks)
        self.job_faults = job_faults or JobFaults()
        self.jobs = Jobs(root, self.job_faults)
        self.dispatcher = Dispatcher(allow_remote=remote_webhooks)
        # A new one each start: an upload that a restart interrupts is asked for again by the client.
        self._upload_key = secrets.token_bytes(32)

    # upload addresses are signed, as the client sends no token to them

    def sign_upload(self, repo: Repo, sha256: str, size: int) -> tuple[int, str]:
        """When an upload address expires, and its signature."""
        expires = int(time.time()) + _UPLOAD_VALID_S
        return expires, self._signature(repo.lock, sha256, size, expires)

    def check_upload(self, repo: Repo, sha256: str, size: int, expires: int, signature: str) -> None:
        """403 unless this hub gave this address out, a while ago at most."""
        good = self._signature(repo.lock, sha256, size, expires)
        if not hmac.compare_digest(good.encode(), signature.encode()) or expires < time.time():
            raise Forbidden("This upload address is not valid, or has expired")

    # keys to a bucket's bytes: Xet's API knows no users

    def xet_expiry(self) -> int:
        """When a key that is given out now expires."""
        return int(time.time()) + _UPLOAD_VALID_S

    def xet_token(self, bucket_id: str, mode: str, expires: int) -> str:
        """A key to the bytes of a bucket: `read`, `write`, or `read ID` for one file."""
        text = json.dumps([bucket_id, mode, expires, self._signature("xet", bucket_id, mode, expires)])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def read_xet_token(self, token: str) -> tuple[str, str]:
        """The bucket and the mode that a key is for; 401 unless this hub gave it out, a while ago at most."""
        try:
            bucket_id, mode, expires, signature = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            good = self._signature("xet", bucket_id, mode, expires)
            if hmac.compare_digest(good, signature) and expires > time.time():
                return bucket_id, mode
        except (ValueError, TypeError):
            pass
        raise Unauthorized("This key is not valid, or has expired")

    def _signature(self, *parts: object) -> str:
        return hmac.new(self._upload_key, repr(parts).encode(), hashlib.sha256).hexdigest()

    # events

    def emit(
        self,
        scope: str,
        action: str,
        repo: Repo,
        url: str,
        *,
        discussion: dict[str, Any] | None = None,
        comment: dict[str, Any] | None = None,
        changes: tuple[RefChange, ...] = (),
        meta: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Tell every webhook that watches this repo. `url` is what links in the payload start with."""
        hooks = self.webhooks.watching(repo, scope.split(".")[0])
        if not hooks:
            return
        known = repo.meta() if meta is None else meta
        payload = event_payload(
            scope, action, repo, url, meta=known, discussion=discussion, comment=comment, changes=changes
        )
        for hook in hooks:
            reader = self.users.identity_of(hook["user"])
            if known.get("private") and not reader.is_member(repo.owner):
                continue
            about = {"webhook": {"id": hook["id"], "version": 3}, **(extra or {})}
            self.dispatcher.enqueue(hook, {**payload, **about})
