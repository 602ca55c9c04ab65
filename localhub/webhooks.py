"""The webhooks that users have set up: `webhooks.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from .auth import Identity
from .disk import Locks, random_id, read_json, write_json
from .errors import BadRequest, NotFound
from .names import check_owner, check_repo_id
from .repos import Repo

Webhook = dict[str, Any]

_DOMAINS: Final = ("repo", "discussion")
_WATCHED: Final = ("user", "org", "model", "dataset", "space")
_MAX_PER_USER: Final = 100


def _url(value: object) -> str:
    if not isinstance(value, str) or len(value) > 2000:
        raise BadRequest("A webhook needs a url")
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.username is not None:
        raise BadRequest("The url of a webhook must be a plain http(s) address")
    return value


def _watched(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("A webhook must watch at least one user, org or repo")
    items: list[dict[str, str]] = []
    for item in value:
        kind, name = (item.get("type"), item.get("name")) if isinstance(item, dict) else (None, None)
        if kind not in _WATCHED:
            raise BadRequest(f"A webhook cannot watch a {str(kind)[:40]!r}")
        checked = check_owner(name) if kind in ("user", "org") else check_repo_id(name)
        items.append({"type": str(kind), "name": checked})
    return items


def _domains(value: object) -> list[str]:
    if not isinstance(value, list) or not value or any(item not in _DOMAINS for item in value):
        raise BadRequest("The domains of a webhook are 'repo' and 'discussion'")
    return [domain for domain in _DOMAINS if domain in value]


def _secret(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= 500 and value.isascii() and value.isprintable():
        return value
    raise BadRequest("The secret of a webhook must be printable ASCII text")


class Webhooks:
    """Make, read, change and delete webhooks; everybody sees only their own."""

    def __init__(self, root: Path, locks: Locks) -> None:
        self._path = root / "webhooks.json"
        self._locks = locks

    def _load(self) -> dict[str, Webhook]:
        return dict(read_json(self._path) or {})

    def _save(self, hooks: dict[str, Webhook]) -> None:
        write_json(self._path, hooks, mode=0o600)  # the secrets are in it

    def of(self, who: Identity) -> list[Webhook]:
        """The caller's webhooks."""
        name = who.require_user()
        return [hook for hook in self._load().values() if hook["user"] == name]

    def get(self, who: Identity, hook_id: str) -> Webhook:
        """One of the caller's webhooks."""
        for hook in self.of(who):
            if hook["id"] == hook_id:
                return hook
        raise NotFound("Webhook not found")

    def create(self, who: Identity, data: dict[str, Any]) -> Webhook:
        """A new webhook."""
        name = who.require_write("user.webhooks.write")
        hook: Webhook = {
            "id": random_id(),
            "user": name,
            "url": _url(data.get("url")),
            "watched": _watched(data.get("watched")),
            "domains": _domains(data.get("domains", list(_DOMAINS))),
            "secret": _secret(data.get("secret")),
            "disabled": False,
        }
        with self._locks.hold("webhooks"):
            hooks = self._load()
            if sum(item["user"] == name for item in hooks.values()) >= _MAX_PER_USER:
                raise BadRequest(f"You have {_MAX_PER_USER} webhooks already")
            hooks[hook["id"]] = hook
            self._save(hooks)
        return hook

    def update(self, who: Identity, hook_id: str, data: dict[str, Any]) -> Webhook:
        """Change what is given; an empty `watched` is what the client sends for `no change`."""
        changes: dict[str, Any] = {}
        if data.get("url") is not None:
            changes["url"] = _url(data["url"])
        if data.get("watched"):
            changes["watched"] = _watched(data["watched"])
        if data.get("domains") is not None:
            changes["domains"] = _domains(data["domains"])
        if data.get("secret") is not None:
            changes["secret"] = _secret(data["secret"])
        return self._change(who, hook_id, changes)

    def set_disabled(self, who: Identity, hook_id: str, disabled: bool) -> Webhook:
        """Switch it off or on."""
        return self._change(who, hook_id, {"disabled": disabled})

    def _change(self, who: Identity, hook_id: str, changes: dict[str, Any]) -> Webhook:
        who.require_write("user.webhooks.write")
        with self._locks.hold("webhooks"):
            hook = {**self.get(who, hook_id), **changes}
            self._save({**self._load(), hook_id: hook})
        return hook

    def delete(self, who: Identity, hook_id: str) -> None:
        """Remove it."""
        who.require_write("user.webhooks.write")
        with self._locks.hold("webhooks"):
            self.get(who, hook_id)
            hooks = self._load()
            del hooks[hook_id]
            self._save(hooks)

    def watching(self, repo: Repo, domain: str) -> list[Webhook]:
        """The webhooks to tell about something in this repo."""
        wanted = {(repo.repo_type, repo.repo_id), ("user", repo.owner), ("org", repo.owner)}
        return [
            hook
            for hook in self._load().values()
            if not hook["disabled"]
            and domain in hook["domains"]
            and any((item["type"], item["name"]) in wanted for item in hook["watched"])
        ]
