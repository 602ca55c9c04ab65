"""Owners and collections."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import owners
from .web import Body, HubDep, Who, json_object, number

router = APIRouter()
_COLLECTION = "/api/collections/{owner}/{slug}"


@router.get("/api/users/{name}/overview")
def user_overview(name: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """A user; 404 for an organisation."""
    return owners.user_overview(hub.users, hub.repos, who, name)


@router.get("/api/organizations/{name}/overview")
def organization_overview(name: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """An organisation; 404 for a user."""
    return owners.organization_overview(hub.users, hub.repos, who, name)


@router.get("/api/organizations/{name}/members")
def organization_members(name: str, hub: HubDep, _who: Who) -> list[dict[str, Any]]:
    """The members of an organisation; 404 for a user."""
    return owners.organization_members(hub.users, hub.repos, name)


@router.get("/api/collections")
def list_collections(request: Request, hub: HubDep, who: Who) -> list[dict[str, Any]]:
    """Collections by owner and by item, the newest first."""
    params = request.query_params
    return hub.collections.find(
        who,
        owners=params.getlist("owner"),
        items=params.getlist("item"),
        limit=number(params.get("limit"), default=100, low=1, high=100),
    )


@router.post("/api/collections")
def create_collection(hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """A new one; 409 where the owner has one of this title."""
    who.require_write("collection.write")
    return hub.collections.create(who, json_object(body))


@router.get(_COLLECTION)
def get_collection(owner: str, slug: str, hub: HubDep, who: Who) -> dict[str, Any]:
    """One with its items."""
    return hub.collections.get(who, f"{owner}/{slug}")


@router.patch(_COLLECTION)
def update_collection(owner: str, slug: str, hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """Change title, description, visibility, theme or position."""
    return {"success": True, "data": hub.collections.update(who, f"{owner}/{slug}", json_object(body))}


@router.delete(_COLLECTION)
def delete_collection(owner: str, slug: str, hub: HubDep, who: Who) -> dict[str, bool]:
    """Remove one."""
    hub.collections.delete(who, f"{owner}/{slug}")
    return {"success": True}


@router.post(_COLLECTION + "/items")
def add_item(owner: str, slug: str, hub: HubDep, who: Who, body: Body) -> dict[str, Any]:
    """Add a repo."""
    return hub.collections.add_item(who, f"{owner}/{slug}", json_object(body))


@router.patch(_COLLECTION + "/items/{item_id}")
def update_item(owner: str, slug: str, item_id: str, hub: HubDep, who: Who, body: Body) -> dict[str, bool]:
    """Change an item's note or place."""
    hub.collections.update_item(who, f"{owner}/{slug}", item_id, json_object(body))
    return {"success": True}


@router.delete(_COLLECTION + "/items/{item_id}")
def delete_item(owner: str, slug: str, item_id: str, hub: HubDep, who: Who) -> dict[str, bool]:
    """Take an item out."""
    hub.collections.delete_item(who, f"{owner}/{slug}", item_id)
    return {"success": True}
