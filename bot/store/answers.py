"""What owners told us on our pulls, and what we answered: disputes stay until the operator closes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from bot.store.db import immediate

_COLUMNS = "id, comment_id, repo_id, num, author, word, text, answer, state, note, said_at, told_at, asked_at, at"


@dataclass(frozen=True, slots=True)
class Answer:
    """One command of an owner's comment on pull ``num``, and our answer to that comment.

    ``state``: ``done``, or of a dispute ``open`` and then ``closed`` with the operator's ``note``, or ``overruled``
    where its author closed the pull after it. ``asked_at``: when it was said, by the Hub's clock. ``said_at``: when the
    answer was on the Hub for sure; ``told_at``: when a dispute's end was.
    """

    id: int
    comment_id: str
    repo_id: str
    num: int
    author: str
    word: str
    text: str
    answer: str
    state: str
    note: str | None
    said_at: float | None
    told_at: float | None
    asked_at: float
    at: float


class Answers:
    """Table answers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self,
        comment_id: str,
        commands: Sequence[tuple[str, str]],
        *,
        repo_id: str,
        num: int,
        author: str,
        answer: str,
        said: bool,
        settled: bool = False,
        first: int = 0,
        asked_at: float,
        now: float,
    ) -> None:
        """Remember a comment's commands (word, text) and the one answer to them; once, however often it is called.

        Args:
            said: the answer is on the Hub.
            settled: a dispute in it was closed, and its owner told so.
            first: how many commands of the comment are known already; these came into it later.
            asked_at: when it was said, by the Hub's clock.
        """
        with immediate(self._db):
            for place, (word, text) in enumerate(commands, first):
                state = ("closed" if settled else "open") if word == "dispute" else "done"
                self._db.conn.execute(
                    "INSERT OR IGNORE INTO answers (comment_id, place, repo_id, num, author, word, text, answer, "
                    "state, said_at, told_at, asked_at, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        comment_id, place, repo_id, num, author, word, text, answer, state,
                        now if said else None, now if settled else None, asked_at, now,
                    ),
                )  # fmt: skip

    def of_pull(self, repo_id: str, num: int) -> dict[str, list[Answer]]:
        """What was said on a pull, by comment, the commands in their order."""
        found: dict[str, list[Answer]] = {}
        for one in self._where("repo_id = ? AND num = ? ORDER BY comment_id, place", repo_id, num):
            found.setdefault(one.comment_id, []).append(one)
        return found

    def standing_words(self, repo_id: str) -> list[Answer]:
        """What was said on all pulls of a repo about whether we are wanted: stop and remeasure."""
        return self._where("repo_id = ? AND word IN ('stop', 'remeasure') ORDER BY asked_at, id", repo_id)

    def overrule(self, comment_id: str, *, overruled: bool) -> None:
        """Note that a pull was closed by somebody after a remeasurement was asked for there, or that it is no more."""
        with immediate(self._db):
            self._db.conn.execute(
                "UPDATE answers SET state = ? WHERE comment_id = ? AND word = 'remeasure'",
                ("overruled" if overruled else "done", comment_id),
            )

    def untold(self, repo_id: str) -> list[Answer]:
        """The closed disputes of a repo whose owner was not told so yet, the oldest first."""
        return self._where(
            "repo_id = ? AND word = 'dispute' AND state = 'closed' AND told_at IS NULL ORDER BY id", repo_id
        )

    def said(self, comment_id: str, *, now: float) -> None:
        """The answer to a comment is on the Hub."""
        with immediate(self._db):
            self._db.conn.execute(
                "UPDATE answers SET said_at = ? WHERE comment_id = ? AND said_at IS NULL", (now, comment_id)
            )

    def asked(self, repo_id: str) -> bool:
        """Whether an owner asked for measurements there, and did not close the pull afterwards."""
        return any(self._where("repo_id = ? AND word = 'remeasure' AND state <> 'overruled' LIMIT 1", repo_id))

    def disputed(self, repo_id: str) -> str | None:
        """What an owner says against a repo's figures, of several open disputes the newest; None: nobody does."""
        return next(
            (one.text for one in self._where(
                "repo_id = ? AND word = 'dispute' AND state = 'open' ORDER BY id DESC LIMIT 1", repo_id
            )),
            None,
        )  # fmt: skip

    def disputes(self, *, limit: int = 100) -> list[Answer]:
        """All disputes, open ones first, then the newest."""
        return self._where("word = 'dispute' ORDER BY state = 'closed', id DESC LIMIT ?", limit)

    def close_dispute(self, dispute_id: int, *, note: str) -> Answer | None:
        """End an open dispute with a note to its owner; None if there is no open one with this number."""
        with immediate(self._db):
            cursor = self._db.conn.execute(
                "UPDATE answers SET state = 'closed', note = ? WHERE id = ? AND word = 'dispute' AND state = 'open'",
                (note, dispute_id),
            )
            return next(iter(self._where("id = ?", dispute_id))) if cursor.rowcount else None

    def told(self, dispute_id: int, *, now: float) -> None:
        """Its owner was told that a dispute was closed."""
        with immediate(self._db):
            self._db.conn.execute("UPDATE answers SET told_at = ? WHERE id = ?", (now, dispute_id))

    def _where(self, where: str, *values: Any) -> list[Answer]:
        return [Answer(**row) for row in self._db.query(f"SELECT {_COLUMNS} FROM answers WHERE {where}", values)]
