"""Chat templates by their checksum, and which of them a base model has."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from bot.store.db import immediate
from core.chat_template import MAX_TEMPLATE, sha256_of


@dataclass(frozen=True, slots=True)
class BaseTemplates:
    """A base model's templates as last seen: the sha256 of the first and of others, as of one commit.

    ``complete``: every place where it may keep them was read. ``note`` says why nothing is known of it; ``at`` is when
    it was last looked at (seconds since the epoch).
    """

    id: str
    sha: str | None
    template_sha256: str | None
    others: tuple[str, ...]
    complete: bool
    note: str | None
    at: float

    def has(self, sha256: str) -> bool:
        """Whether a template is one of its own."""
        return sha256 == self.template_sha256 or sha256 in self.others


class Templates:
    """Tables templates and bases."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def keep(self, texts: Iterable[str]) -> list[str]:
        """Keep these texts, but for those that are too long; their sha256s, each once, in their order."""
        found = {sha256_of(text): text for text in texts}
        with immediate(self._db):
            for sha256, text in found.items():
                if len(text) <= MAX_TEMPLATE:
                    self._db.conn.execute(
                        "INSERT OR IGNORE INTO templates (sha256, text) VALUES (?, ?)",
                        (sha256, text.encode("utf-8", "replace").decode()),
                    )
        return list(found)

    def text(self, sha256: str) -> str | None:
        """A template's text, or None if it was not kept."""
        for row in self._db.query("SELECT text FROM templates WHERE sha256 = ?", (sha256,)):
            return str(row["text"])
        return None

    def base(self, base_model: str) -> BaseTemplates | None:
        """What is known of a base model's templates, or None if it was not looked at yet."""
        for row in self._db.query("SELECT * FROM bases WHERE id = ?", (base_model,)):
            others = tuple(json.loads(row["others"]))
            return BaseTemplates(
                row["id"], row["sha"], row["template_sha256"], others, bool(row["complete"]), row["note"], row["at"]
            )
        return None

    def save_base(self, base: BaseTemplates) -> None:
        """Write down what a base model has; it replaces what was known of it."""
        with immediate(self._db):
            self._db.conn.execute(
                "INSERT OR REPLACE INTO bases (id, sha, template_sha256, others, complete, note, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    base.id,
                    base.sha,
                    base.template_sha256,
                    json.dumps(base.others),
                    int(base.complete),
                    base.note,
                    base.at,
                ),
            )
