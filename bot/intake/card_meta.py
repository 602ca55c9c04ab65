"""What a repo says about itself: the base model in its card's front matter, and its ``.quantcard.yml``. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from core.repo_names import is_repo_id

CONFIG_FILE = ".quantcard.yml"
#: A card larger than this is not read.
CARD_LIMIT = 4 << 20
CONFIG_LIMIT = 64 << 10
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
#: YAML is slow to read: a longer front matter is not.
_FRONT_MATTER_LIMIT = 256 << 10
POSITIONS = ("end", "top")


@dataclass(frozen=True, slots=True)
class RepoConfig:
    """A repo's ``.quantcard.yml``. ``problem`` is a sentence when it can't be read; then nothing is written."""

    enabled: bool = True
    position: str = "end"
    problem: str | None = None


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


def parse_config(data: bytes | None) -> RepoConfig:
    """The repo's wishes. A file that can't be understood counts as 'leave this repo alone'."""
    if data is None:
        return RepoConfig()
    try:
        value = yaml.safe_load(data.decode("utf-8"))
    except Exception as error:  # see front_matter
        return RepoConfig(enabled=False, problem=f"{CONFIG_FILE} is not valid YAML ({type(error).__name__})")
    if value is None:
        return RepoConfig()
    if not isinstance(value, dict):
        return RepoConfig(enabled=False, problem=f"{CONFIG_FILE} is not a mapping")
    enabled, position = value.get("enabled", True), value.get("position", "end")
    if not isinstance(enabled, bool):
        return RepoConfig(enabled=False, problem=f"{CONFIG_FILE}: 'enabled' must be true or false")
    if not isinstance(position, str) or position not in POSITIONS:
        return RepoConfig(enabled=False, problem=f"{CONFIG_FILE}: 'position' must be one of {', '.join(POSITIONS)}")
    return RepoConfig(enabled=enabled, position=position)
