"""Webhook settings of the caller."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter

from .delivery import UnsafeTarget, resolve_target
from .errors import BadRequest
from .hub import Hub
from .web import Body, HubDep, Who, json_object

router = APIRouter()
_BASE = "/api/settings/webhooks"


def _json(hook: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in hook.items() if key != "user"}


def _check_target(hub: Hub, url: object) -> None:
    """Refuse at once what would never be delivered."""
    if not isinstance(url, str):
        return
    try:
        parts = urlsplit(url)
        resolve_target(parts.hostname or "", parts.port or 80, allow_remote=hub.dispatcher.allow_remote)
    except (UnsafeTarget, OSError, ValueError):
        raise BadRequest("This hub delivers webhooks to loopback addresses only") from None


@router.get(_BASE)
def list_webhooks(hub: HubDep, who: Who) -> list[dict[str, Any]]:
    """All of them."""
    return [_json(hook) for hook in hub.webhooks.of(who)]


@router.post(_BASE)
def create_webhook(hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """A new one."""
    who.require_write("user.webhooks.write")
    data = json_object(body)
    _check_target(hub, data.get("url"))
    return {"webhook": _json(hub.webhooks.create(who, data))}


@router.get(_BASE + "/{hook_id}")
def get_webhook(hook_id: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """One."""
    return {"webhook": _json(hub.webhooks.get(who, hook_id))}


@router.post(_BASE + "/{hook_id}")
def update_webhook(hook_id: str, hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """Change one."""
    data = json_object(body)
    _check_target(hub, data.get("url"))
    return {"webhook": _json(hub.webhooks.update(who, hook_id, data))}


@router.post(_BASE + "/{hook_id}/enable")
def enable_webhook(hook_id: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """Switch one on."""
    return {"webhook": _json(hub.webhooks.set_disabled(who, hook_id, False))}


@router.post(_BASE + "/{hook_id}/disable")
def disable_webhook(hook_id: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """Switch one off."""
    return {"webhook": _json(hub.webhooks.set_disabled(who, hook_id, True))}


@router.delete(_BASE + "/{hook_id}")
def delete_webhook(hook_id: str, hub: HubDep, who: Who) -> dict[str, bool]:
    """Remove one."""
    hub.webhooks.delete(who, hook_id)
    return {"success": True}
