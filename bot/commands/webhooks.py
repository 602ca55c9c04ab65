"""``quantcard webhooks``: our one webhook at the Hub, made to watch what is followed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bot.commands.common import DbOption, JsonOption, print_json
from bot.hub.webhooks import Hook, Item, Kind, Plan, WebhookAdmin, hook_url, plan_sync, watch_items
from bot.progress import say
from bot.settings import Settings, load_settings
from bot.store import Store
from bot.store.repos import COLLECTION
from bot.tables import out
from core.errors import HubNotFoundError, SettingsError
from core.repo_names import is_repo_id

app = typer.Typer(help="Our webhook at the Hub: register it, list it, remove it.", no_args_is_help=True)

UrlOption = Annotated[
    str | None, typer.Option("--url", help="The service's address as the Hub reaches it (QUANTCARD_PUBLIC_URL).")
]
#: Names under which the store remembers the webhook's id, and which owners are users and which organisations.
_REMEMBERED, _KINDS = "webhook", "owner_kinds"


@app.command("sync")
def sync(
    url: UrlOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; write nothing.")] = False,
    db: DbOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have one webhook at the Hub watch what is followed: make it, bring it up to date, switch it on again."""
    settings = load_settings(db=db, public_url=url, dry_run=True if dry_run else None)
    target = hook_url(settings.public_url)
    if not settings.webhook_secret:
        raise SettingsError("The webhook would be taken by nobody: set QUANTCARD_WEBHOOK_SECRET to a long random text.")
    if not (settings.webhook_secret.isascii() and settings.webhook_secret.isprintable()):
        raise SettingsError("The Hub sends ASCII only: set QUANTCARD_WEBHOOK_SECRET to printable ASCII characters.")
    admin = WebhookAdmin(endpoint=settings.hf_endpoint, token=settings.hf_token)
    admin.whoami()
    with Store(settings.db) as store:
        wanted, left_out = _wanted(store, admin)
        plan = plan_sync(
            admin.hooks(), url=target, wanted=wanted, secret=settings.webhook_secret,
            remembered=store.results.get(_REMEMBERED),
        )  # fmt: skip
        _tell(plan, target, left_out=left_out)
        made = None if settings.dry_run else _apply(admin, plan, url=target, wanted=wanted, settings=settings)
        if made is not None:
            store.results.put(_REMEMBERED, made)
    if settings.dry_run:
        say("Dry run: nothing was changed.")
    if as_json:
        print_json(_as_json(plan, target, made, left_out=left_out, dry_run=settings.dry_run))


@app.command("list")
def list_hooks(url: UrlOption = None, db: DbOption = None, as_json: JsonOption = False) -> None:
    """List the webhooks of our account; the one that is ours here is marked."""
    settings = load_settings(db=db, public_url=url)
    hooks = WebhookAdmin(endpoint=settings.hf_endpoint, token=settings.hf_token).hooks()
    with Store(settings.db) as store:
        ours = {hook.id for hook in _ours(store, settings, hooks)}
    rows = [
        {
            "id": hook.id,
            "url": hook.url,
            "ours": hook.id in ours,
            "disabled": hook.disabled,
            "domains": sorted(hook.domains),
            "watched": [{"type": item.kind, "name": item.name} for item in sorted(hook.watched)],
        }
        for hook in hooks
    ]
    if as_json:
        print_json(rows)
        return
    for hook in hooks:
        out.print(
            f"{'*' if hook.id in ours else ' '} {hook.id}  {hook.url or '(starts a job)'}"
            f"{'  DISABLED' if hook.disabled else ''}",
            markup=False,
        )
        for item in sorted(hook.watched):
            out.print(f"    {item}", markup=False)
    if not hooks:
        say("The account has no webhook. 'quantcard webhooks sync' registers one.")


@app.command("remove")
def remove(url: UrlOption = None, db: DbOption = None) -> None:
    """Remove our webhook from the Hub; polling goes on."""
    settings = load_settings(db=db, public_url=url)
    admin = WebhookAdmin(endpoint=settings.hf_endpoint, token=settings.hf_token)
    with Store(settings.db) as store:
        ours = _ours(store, settings, admin.hooks())
        for hook in ours:
            if settings.dry_run:
                say(f"Would remove the webhook {hook.id} ({hook.url}).")
                continue
            admin.remove(hook.id)
            say(f"Removed the webhook {hook.id} ({hook.url}).")
        if not settings.dry_run:
            store.results.put(_REMEMBERED, "")
    if not ours:
        say("There is no webhook of ours at the Hub.")


def _ours(store: Store, settings: Settings, hooks: list[Hook]) -> list[Hook]:
    """The webhooks that send to our address, or that we remember."""
    remembered = store.results.get(_REMEMBERED)
    target = hook_url(settings.public_url) if settings.public_url else None
    return [hook for hook in hooks if hook.id == remembered or (target and (hook.url or "").rstrip("/") == target)]


def _wanted(store: Store, admin: WebhookAdmin) -> tuple[frozenset[Item], tuple[Item, ...]]:
    """What is followed as the Hub watches it, and what has no room."""
    kinds: dict[str, Kind] = json.loads(store.results.get(_KINDS) or "{}")
    owners: list[tuple[str, Kind]] = []
    repos: list[str] = []
    collected: list[str] = []
    for follow in store.repos.follows():
        try:
            if follow.kind == "owner":
                if follow.name not in kinds:
                    kinds[follow.name] = admin.kind_of(follow.name)
                owners.append((follow.name, kinds[follow.name]))
            elif follow.kind == "repo":
                repos.append(follow.name)
            else:
                listed = admin.collection(follow.name.removeprefix(COLLECTION))
                collected += [one.id for one in listed if is_repo_id(one.id) and not one.private]
        except HubNotFoundError as error:
            # The others are watched all the same.
            say(str(error))
    store.results.put(_KINDS, json.dumps(kinds))
    return watch_items(owners, [*repos, *collected])


def _apply(admin: WebhookAdmin, plan: Plan, *, url: str, wanted: frozenset[Item], settings: Settings) -> str:
    """Make it so at the Hub; returns the webhook's id, empty where there is none now."""
    found = plan.hook.id if plan.hook else ""
    if plan.action == "create":
        found = admin.create(url=url, watched=wanted, secret=settings.webhook_secret).id
    elif plan.action == "remove":
        admin.remove(found)
        found = ""
    elif plan.action in ("update", "keep") and found:
        # A Hub that does not tell the secret may have another one.
        if plan.action == "update" or (plan.hook and plan.hook.secret is None):
            admin.update(found, url=url, watched=wanted, secret=settings.webhook_secret)
        if plan.enable:
            admin.enable(found)
    for double in plan.doubles:
        admin.remove(double.id)
    return found


def _tell(plan: Plan, url: str, *, left_out: tuple[Item, ...]) -> None:
    words = {
        "create": f"A new webhook to {url}:",
        "update": f"The webhook to {url} changes:",
        "keep": f"The webhook to {url} watches what is followed; nothing changes.",
        "remove": f"Nothing is followed; the webhook to {url} goes:",
        "nothing": "Nothing is followed, so there is nothing to watch.",
    }
    say(words[plan.action])
    for reason in plan.reasons:
        say(f"  {reason}")
    if plan.enable:
        say("  the Hub had disabled it; it is enabled again")
    for mark, items in (("+", plan.added), ("-", plan.removed)):
        for item in items:
            say(f"  {mark} {item}")
    for double in plan.doubles:
        say(f"  - a second webhook of ours, {double.id} ({double.url})")
    if left_out:
        say(f"{len(left_out)} repos more than a webhook of ours watches are left to polling.")


def _as_json(plan: Plan, url: str, made: str | None, *, left_out: tuple[Item, ...], dry_run: bool) -> dict[str, Any]:
    def items(found: tuple[Item, ...]) -> list[dict[str, str]]:
        return [{"type": item.kind, "name": item.name} for item in found]

    return {
        "action": plan.action,
        "url": url,
        "id": made or (plan.hook.id if plan.hook else None),
        "added": items(plan.added),
        "removed": items(plan.removed),
        "reasons": list(plan.reasons),
        "enabled_again": plan.enable,
        "doubles": [double.id for double in plan.doubles],
        "left_out": len(left_out),
        "dry_run": dry_run,
    }
