"""Who our token is and what it may do, and what the Hub's clock says: for ``quantcard doctor``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, httpx

from bot.hub.session import settle
from bot.hub.translate import translate
from core.errors import HubAuthError

_MAX_SCOPES = 1000
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Scope:
    """What a fine-grained token may do to one entity: a user, an organisation, or a single repo."""

    kind: str
    name: str
    permissions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Account:
    """Who a token belongs to, and its rights. Names are the Hub's word: bounded here, escaped by who shows them."""

    name: str
    #: "read", "write", "fineGrained", or whatever else the Hub says ("" where it says nothing).
    role: str
    token_name: str = ""
    expires: str | None = None
    #: What it may do everywhere, in the account's name.
    everywhere: frozenset[str] = frozenset()
    scopes: tuple[Scope, ...] = ()
    #: Organisations with the role that the account has in them.
    orgs: tuple[tuple[str, str], ...] = ()
    reads_gated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request told. ``error`` is why there was no good answer; ``refused``: it was the token.

    ``date`` is the Hub's clock (seconds since the epoch, whole ones), ``sent`` and ``received`` ours around it, and
    ``took`` the seconds between them by a clock that nobody sets.
    """

    endpoint: str
    account: Account | None = None
    error: str = ""
    refused: bool = False
    date: float | None = None
    sent: float = 0.0
    received: float = 0.0
    took: float = 0.0


def ask_hub(endpoint: str, token: str | None, *, timeout_s: float = 8.0) -> Answer:
    """Ask who the token belongs to; without a token, anything, for the Hub's clock. One request, asked once."""
    endpoint = endpoint.rstrip("/")
    path = "/api/whoami-v2" if token else "/api/models?limit=1"
    sent, started = time.time(), time.monotonic()
    date: float | None = None
    try:
        settle(endpoint)
        # False: a login that is stored on this machine is not ours.
        headers = build_hf_headers(token=token or False, library_name="quantcard")
        response = get_session().get(f"{endpoint}{path}", headers=headers, timeout=httpx.Timeout(timeout_s))
        took, received = time.monotonic() - started, time.time()
        date = _date(response.headers.get("date"))
        hf_raise_for_status(response)
        account = read_account(response.json()) if token else None
        return Answer(endpoint, account=account, date=date, sent=sent, received=received, took=took)
    except (HfHubHTTPError, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, TypeError, KeyError) as error:
        ours = translate(error, doing="the token check" if token else "a first look", endpoint=endpoint)
        return Answer(
            endpoint, error=str(ours), refused=isinstance(ours, HubAuthError), date=date, sent=sent,
            received=time.time(), took=time.monotonic() - started,
        )  # fmt: skip


def _date(header: str | None) -> float | None:
    try:
        return parsedate_to_datetime(header or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def read_account(told: Any) -> Account:
    """The Hub's ``whoami-v2`` as a value; what is not as expected is left out, which can only make rights look fewer.

    Raises:
        TypeError: it is no answer of the Hub.
    """
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise TypeError("no account")
    token = _dict(_dict(told.get("auth")).get("accessToken"))
    fine = _dict(token.get("fineGrained"))
    orgs = [one for one in _list(told.get("orgs")) if isinstance(one, dict) and isinstance(one.get("name"), str)]
    expires = token.get("expiration") or token.get("expiresAt")
    return Account(
        name=told["name"][:_MAX_NAME],
        role=_text(token.get("role")),
        token_name=_text(token.get("displayName")),
        expires=expires[:_MAX_NAME] if isinstance(expires, str) else None,
        everywhere=_names(fine.get("global")),
        scopes=tuple(
            Scope(_text(_dict(one.get("entity")).get("type")), _text(_dict(one.get("entity")).get("name")),
                  _names(one.get("permissions")))
            for one in _list(fine.get("scoped")) if isinstance(one, dict)
        ),
        orgs=tuple((org["name"][:_MAX_NAME], _text(org.get("roleInOrg"))) for org in orgs),
        reads_gated=fine.get("canReadGatedRepos") is True,
    )  # fmt: skip


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value[:_MAX_SCOPES] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value[:_MAX_NAME] if isinstance(value, str) else ""


def _names(value: Any) -> frozenset[str]:
    return frozenset(one[:_MAX_NAME] for one in _list(value) if isinstance(one, str))
