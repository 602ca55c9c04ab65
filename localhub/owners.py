"""Users and organisations as the API shows them."""

from __future__ import annotations

from typing import Any

from . import auth
from .auth import Identity, Users
from .errors import InvalidName, NotFound
from .names import REPO_TYPES, check_owner
from .repos import Repos


def _check_kind(users: Users, repos: Repos, name: str, kind: str) -> None:
    """404 for the other kind and for nobody. Whoever owns repos without being in `users.json` is a user."""
    try:
        check_owner(name)
    except InvalidName:
        found = None
    else:
        found = users.kind(name) or ("user" if next(repos.all(owner=name), None) else None)
    if found != kind:
        raise NotFound(f"This {'organization' if kind == 'org' else 'user'} does not exist")


def _counts(repos: Repos, who: Identity, name: str) -> dict[str, int]:
    """How many repos of each type the caller may see."""
    found = dict.fromkeys(REPO_TYPES, 0)
    for repo in repos.all(owner=name):
        found[repo.repo_type] += who.is_member(name) or not repo.meta().get("private")
    return {f"num{kind.capitalize()}s": count for kind, count in found.items()}


def _brief(name: str) -> dict[str, Any]:
    return {"_id": auth.user_id(name), "avatarUrl": "", "fullname": name}


def user_overview(users: Users, repos: Repos, who: Identity, name: str) -> dict[str, Any]:
    """What `get_user_overview` gets."""
    _check_kind(users, repos, name, "user")
    orgs = [{**_brief(org), "name": org} for org in users.orgs_of(name)]
    return {
        **_brief(name),
        "user": name,
        "type": "user",
        "isPro": False,
        "isFollowing": False,
        "orgs": orgs,
        **_counts(repos, who, name),
    }


def organization_overview(users: Users, repos: Repos, who: Identity, name: str) -> dict[str, Any]:
    """What `get_organization_overview` gets."""
    _check_kind(users, repos, name, "org")
    return {
        **_brief(name),
        "name": name,
        "type": "org",
        "isVerified": False,
        "isFollowing": False,
        "numUsers": len(users.members(name)),
        **_counts(repos, who, name),
    }


def organization_members(users: Users, repos: Repos, name: str) -> list[dict[str, Any]]:
    """What `list_organization_members` gets, all on one page."""
    _check_kind(users, repos, name, "org")
    return [{**_brief(member), "user": member, "type": "user", "isPro": False} for member in users.members(name)]
