"""What a repo and its owner may be called on the Hub. Pure."""

from __future__ import annotations

import re

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_OWNER = re.compile(_NAME, re.ASCII)
_REPO_ID = re.compile(f"{_NAME}/{_NAME}", re.ASCII)


def is_owner(text: str) -> bool:
    """Whether ``text`` can be a user or an organisation."""
    return _OWNER.fullmatch(text) is not None


def is_repo_id(text: str) -> bool:
    """Whether ``text`` can be a repo: ``owner/name``."""
    return _REPO_ID.fullmatch(text) is not None
