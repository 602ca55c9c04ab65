"""Lists of repos: filter, search, sort and page."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from .auth import Identity
from .errors import BadRequest, HubError
from .info import FULL_FIELDS, KNOWN_FIELDS, LIST_FIELDS, RepoInfo
from .names import RepoType
from .repos import Repos

_SORTS = ("lastModified", "createdAt", "downloads", "likes", "trendingScore")


@dataclass(frozen=True)
class Query:
    """What was asked for."""

    author: str | None = None
    tags: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    gated: bool | None = None
    sort: str = "lastModified"
    ascending: bool = False
    limit: int = 1000
    cursor: str | None = None
    full: bool = False
    card_data: bool = False
    expand: tuple[str, ...] = ()

    def fields(self) -> tuple[str, ...]:
        """The properties to answer with."""
        if self.expand:
            return self.expand
        return (*(FULL_FIELDS if self.full else LIST_FIELDS), *(("cardData",) if self.card_data else ()))


def check_expand(names: list[str]) -> tuple[str, ...]:
    """Refuse what no property is called."""
    flat = tuple(name for item in names for name in item.split(",") if name)
    unknown = [name for name in flat if name not in KNOWN_FIELDS]
    if unknown:
        raise BadRequest(f"Invalid value for expand: {unknown[0][:40]!r}")
    return flat


def _encode(key: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _decode(cursor: str) -> list[Any]:
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise BadRequest("Invalid cursor") from None
    if not isinstance(key, list) or len(key) != 2:
        raise BadRequest("Invalid cursor")
    return key


def _matches(info: RepoInfo, query: Query) -> bool:
    if query.gated is not None and bool(info.meta.get("gated")) != query.gated:
        return False
    tags = set(info.tags())
    if info.facts.pipeline:
        tags.add(info.facts.pipeline)
    return all(tag in tags for tag in query.tags)


def _key(info: RepoInfo, sort: str) -> list[Any]:
    return [info.field(sort), info.repo.repo_id]


def find(repos: Repos, repo_type: RepoType, who: Identity, query: Query) -> tuple[list[dict[str, Any]], str | None]:
    """One page, and the cursor of the next: the last row's place, so that new repos shift nothing."""
    if query.sort not in _SORTS:
        raise BadRequest(f"Invalid sort: {query.sort[:40]!r}")
    found: list[RepoInfo] = []
    for repo in repos.all(repo_type, owner=query.author):
        if not all(text.lower() in repo.repo_id.lower() for text in query.search):
            continue
        try:
            info = RepoInfo(repo)
            if info.meta.get("private") and not who.is_member(repo.owner):
                continue
        except (HubError, OSError):  # deleted while we looked
            continue
        if _matches(info, query):
            found.append(info)
    found.sort(key=lambda info: _key(info, query.sort), reverse=not query.ascending)
    if query.cursor is not None:
        last = _decode(query.cursor)
        try:
            keyed = ((info, _key(info, query.sort)) for info in found)
            found = [info for info, key in keyed if key != last and (key < last) != query.ascending]
        except TypeError:
            raise BadRequest("Invalid cursor") from None
    page = found[: query.limit]
    more = _encode(_key(page[-1], query.sort)) if len(found) > len(page) else None
    return [info.json(query.fields()) for info in page], more
