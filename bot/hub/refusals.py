"""Whose fault a 403 is: the repo's, which lets nobody like us ask, or our token's."""

from __future__ import annotations

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from core.errors import HubAuthError

#: Characters of what the Hub says that are shown.
_SAID = 200


def repo_refuses(error: HubAuthError) -> str | None:
    """The Hub's words where it is the repo that refuses us (discussions switched off, gated); None: it is the token."""
    cause = error.__cause__
    if not isinstance(cause, HfHubHTTPError) or cause.response is None or cause.response.status_code != 403:
        return None
    if isinstance(cause, GatedRepoError):
        return "the repo is gated, and our account has no access."
    said = " ".join((cause.server_message or "").split())
    if not said or "token" in said.lower():
        return None
    return said[:_SAID] + ("" if said.endswith(".") else ".")
