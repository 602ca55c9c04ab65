"""Our webhook at the Hub: what it is to watch, how that differs from what it watches, and the calls that change it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from huggingface_hub.hf_api import WebhookInfo

from bot.hub.reads import HubReads
from core.errors import HubNotFoundError, SettingsError

#: Where the service takes webhooks.
PATH = "/webhooks/hub"
DOMAINS: tuple[Literal["repo", "discussion"], ...] = ("repo", "discussion")
#: Owners and repos that one webhook of ours watches; the Hub tells no limit, and polling sees the rest.
MAX_WATCHED = 500

Kind = Literal["user", "org", "model"]


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """Something watched: a user or an organisation with all its repos, or one model repo."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def key(self) -> tuple[str, str]:
        """By which two are the same."""
        return self.kind, self.name.lower()


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook of our account. ``url`` is None for one that starts a job."""

    id: str
    url: str | None
    watched: frozenset[Item]
    domains: frozenset[str] = frozenset(DOMAINS)
    disabled: bool = False
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to make our webhook what it should be.

    ``hook`` is the one to update (None: create it), ``doubles`` others of ours to remove; ``reasons`` what is changed
    besides ``added`` and ``removed``, in words.
    """

    action: Literal["create", "update", "keep", "remove", "nothing"]
    hook: Hook | None
    added: tuple[Item, ...] = ()
    removed: tuple[Item, ...] = ()
    reasons: tuple[str, ...] = ()
    enable: bool = False
    doubles: tuple[Hook, ...] = ()


def hook_url(address: str) -> str:
    """Where the Hub is to send webhooks, of the service's address. Pure.

    Raises:
        SettingsError: it is not an address that a Hub could reach.
    """
    plain = address.strip().rstrip("/").removesuffix(PATH)
    try:
        parts = urlsplit(plain)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None or not plain.isprintable():
        raise SettingsError(
            f"{address!r} is not the service's address. Set QUANTCARD_PUBLIC_URL, or give --url, as https://HOST[/PATH]."
        )
    return plain + PATH


def plan_sync(
    hooks: Sequence[Hook], *, url: str, wanted: Collection[Item], secret: str, remembered: str | None
) -> Plan:
    """What to change at the Hub. Pure.

    Args:
        hooks: our account's webhooks.
        url: where the Hub is to send them.
        wanted: what is to be watched.
        remembered: the id of the one that was ours before, in case the address is another one now.
    """
    same_url = [hook for hook in hooks if _same(hook.url, url)]
    ours = same_url or [hook for hook in hooks if hook.id == remembered]
    hook, doubles = (ours[0], tuple(ours[1:])) if ours else (None, ())
    # Of two addresses the old one's is of no more use.
    doubles += tuple(one for one in hooks if one.id == remembered and one not in ours)
    if not wanted:
        return Plan(
            "remove" if hook else "nothing", hook, removed=tuple(sorted(hook.watched)) if hook else (), doubles=doubles
        )
    if hook is None:
        return Plan("create", None, added=tuple(sorted(wanted)), doubles=doubles)
    reasons = []
    if not _same(hook.url, url):
        reasons.append(f"address: {hook.url} → {url}")
    if hook.domains != frozenset(DOMAINS):
        reasons.append(f"events: {', '.join(sorted(hook.domains)) or 'none'} → {', '.join(DOMAINS)}")
    if hook.secret is not None and hook.secret != secret:
        reasons.append("secret: another one")
    # The Hub takes a name in either case, and tells it in its own.
    has, wants = {item.key for item in hook.watched}, {item.key for item in wanted}
    added = tuple(sorted(item for item in wanted if item.key not in has))
    removed = tuple(sorted(item for item in hook.watched if item.key not in wants))
    changed = bool(added or removed or reasons or hook.disabled)
    return Plan("update" if changed else "keep", hook, added, removed, tuple(reasons), hook.disabled, doubles)


def watch_items(
    owners: Iterable[tuple[str, Kind]], repos: Iterable[str], *, limit: int = MAX_WATCHED
) -> tuple[frozenset[Item], tuple[Item, ...]]:
    """What to watch, and what has no room: owners first, then single repos that none of them covers. Pure."""
    found: dict[Item, None] = {Item(kind, name): None for name, kind in owners}
    covered = {item.name.lower() for item in found}
    found |= {Item("model", name): None for name in repos if name.split("/")[0].lower() not in covered}
    items = list(found)
    return frozenset(items[:limit]), tuple(items[limit:])


def _same(one: str | None, other: str) -> bool:
    return one is not None and one.rstrip("/") == other.rstrip("/")


class WebhookAdmin(HubReads):
    """Reads and changes our account's webhooks."""

    def hooks(self) -> list[Hook]:
        """All of them."""
        return [_hook(found) for found in self._ask("our webhooks", lambda: self._api.list_webhooks())]

    def kind_of(self, owner: str) -> Kind:
        """Whether an owner is a user or an organisation.

        Raises:
            HubNotFoundError: neither.
        """

        def asked(call: Callable[[str], object]) -> bool:
            try:
                self._ask(f"the owner {owner}", lambda: call(owner))
            except HubNotFoundError:
                return False
            return True

        if asked(self._api.get_user_overview):
            return "user"
        if asked(self._api.get_organization_overview):
            return "org"
        raise HubNotFoundError(f"The Hub knows no user or organisation {owner}; it is left out of the webhook.")

    def create(self, *, url: str, watched: Collection[Item], secret: str) -> Hook:
        """Make a webhook; never retried, or a lost answer would make two."""
        return _hook(
            self._ask(
                "the new webhook",
                lambda: self._api.create_webhook(
                    url=url, watched=_dicts(watched), domains=list(DOMAINS), secret=secret
                ),
                again=False,
            )
        )

    def update(self, hook_id: str, *, url: str, watched: Collection[Item], secret: str) -> Hook:
        """Bring a webhook up to date."""
        return _hook(
            self._ask(
                "the webhook",
                lambda: self._api.update_webhook(
                    hook_id, url=url, watched=_dicts(watched), domains=list(DOMAINS), secret=secret
                ),
            )
        )

    def enable(self, hook_id: str) -> None:
        """Switch a webhook on that the Hub switched off."""
        self._ask("the webhook", lambda: self._api.enable_webhook(hook_id))

    def remove(self, hook_id: str) -> None:
        """Take a webhook away; that it is gone already is as good."""
        try:
            self._ask("the webhook", lambda: self._api.delete_webhook(hook_id))
        except HubNotFoundError:
            return


def _dicts(watched: Collection[Item]) -> list[Any]:
    return [{"type": item.kind, "name": item.name} for item in sorted(watched)]


def _hook(found: WebhookInfo) -> Hook:
    return Hook(
        id=str(found.id),
        url=found.url,
        watched=frozenset(Item(cast(str, item.type), item.name) for item in found.watched),
        domains=frozenset(found.domains),
        disabled=bool(found.disabled),
        secret=found.secret,
    )
