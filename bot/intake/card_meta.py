"""What a card says of its model: the base model in its front matter. Pure."""

from __future__ import annotations

import re
from typing import Any

import yaml

from bot.intake.repo_config import CONFIG_FILE, CONFIG_LIMIT, RepoConfig, parse_config
from core.repo_names import is_repo_id

__all__ = ["CARD_LIMIT", "CONFIG_FILE", "CONFIG_LIMIT", "RepoConfig", "base_model_of", "front_matter", "parse_config"]

#: A card larger than this is not read.
CARD_LIMIT = 4 << 20
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
#: YAML is slow to read: a longer front matter is not.
_FRONT_MATTER_LIMIT = 256 << 10


def front_matter(card: str) -> dict[str, Any]:
    """The card's YAML front matter; empty when there is none or it can't be read."""
    found = _FRONT_MATTER.match(card)
    if not found or len(found[1]) > _FRONT_MATTER_LIMIT:
        return {}
    try:
        data = yaml.safe_load(found[1])
    except Exception:  # PyYAML lets KeyError, IndexError and others through on odd tags
        return {}
    return data if isinstance(data, dict) else {}


def base_model_of(card: str) -> str | None:
    """The first base model that the card names (``owner/name``), or None."""
    value = front_matter(card).get("base_model")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) and is_repo_id(first) else None
