"""Hears what a repo's owners say on our pull, does it, and answers each comment once.

The answer carries a hidden marker with the comment's id, and the Hub is asked for it before the database: neither a
lost response nor a lost database makes us answer twice. What others than the owners say is not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from bot.hub.door import Comment, HubDoor, HubPull
from bot.publish import pull_texts as texts
from bot.publish.hours import day_and_time
from bot.publish.manners import DAY, OPEN
from bot.publish.words import Command, Word, parse_words
from bot.publish.writes import write
from bot.store import Store
from bot.store.answers import Answer
from bot.store.repos import Repo
from core.dataset import DatasetRow
from core.errors import HubAuthError

#: Comments answered in one go; the others are answered the next time.
MOST_ANSWERS = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """How things stand after listening: the pull, by whose word the repo is stopped, whether anything was answered."""

    pull: HubPull
    stopped: str | None
    answered: int = 0


def hear(store: Store, hub: HubDoor, repo: Repo, pull: HubPull, rows: Sequence[DatasetRow], *, now: float) -> Heard:
    """Act on and answer what owners said on one of our pulls, and tell them which disputes were closed.

    Raises:
        HubError: an answer could not be given; the next run finds out whether it was.
    """
    return _Listener(store, hub, repo, pull, rows, now).run()


class _Listener:
    """One pull's comments."""

    def __init__(
        self, store: Store, hub: HubDoor, repo: Repo, pull: HubPull, rows: Sequence[DatasetRow], now: float
    ) -> None:
        self._store, self._hub, self._repo, self._pull = store, hub, repo, pull
        self._rows, self._now = rows, now
        self._us = {hub.whoami(), pull.author}
        self._ours = [comment.text for comment in pull.comments if comment.author in self._us]
        self._known = store.answers.of_pull(repo.id, pull.num)
        self._stopped = self._noted = repo.stopped

    def run(self) -> Heard:
        said, settled = texts.answered(self._ours), texts.settled(self._ours)
        n_answers = 0
        for comment in self._pull.comments:
            if not comment.owner or comment.author in self._us or not texts.is_comment_id(comment.id):
                continue
            known = self._known.get(comment.id, [])
            commands = [Command(cast(Word, one.word), one.text) for one in known] or parse_words(comment.text)
            if not commands:
                continue
            if comment.id in said or any(one.said_at for one in known):
                if not all(one.said_at for one in known) or not known:
                    self._remember(comment, commands, settled=comment.id in settled)
                self._stand(comment, commands)
            elif n_answers < MOST_ANSWERS:
                n_answers += 1
                self._stand(comment, commands)
                self._note_stop()
                self._answer(comment, commands, known)
        self._note_stop()
        self._tell_settled(settled)
        return Heard(self._pull, self._stopped, n_answers)

    def _stand(self, comment: Comment, commands: Sequence[Command]) -> None:
        """The last word on whether we are wanted holds; a word answered before says so to a new database too."""
        for command in commands:
            if command.word == "stop":
                self._stopped = comment.author[:96]
            elif command.word == "remeasure":
                self._stopped = None

    def _note_stop(self) -> None:
        """Write the standing word down, before anything is said about it that may get lost."""
        if self._stopped != self._noted and not self._hub.dry_run:
            self._store.repos.set_stopped(self._repo.id, self._stopped)
            self._noted = self._stopped

    def _remember(self, comment: Comment, commands: Sequence[Command], *, settled: bool) -> None:
        """What was answered before, for a database that lacks it or does not know that the answer arrived."""
        if self._hub.dry_run:
            return
        self._save(comment, commands, answer="", said=True, settled=settled)
        self._store.answers.said(comment.id, now=self._now)

    def _save(
        self, comment: Comment, commands: Sequence[Command], *, answer: str, said: bool, settled: bool = False
    ) -> None:
        self._store.answers.add(
            comment.id,
            [(command.word, command.text) for command in commands],
            repo_id=self._repo.id,
            num=self._pull.num,
            author=comment.author[:96],
            answer=answer,
            said=said,
            settled=settled,
            now=self._now,
        )

    def _answer(self, comment: Comment, commands: Sequence[Command], known: Sequence[Answer]) -> None:
        text = known[0].answer if known and known[0].answer else self._act(comment, commands)
        self._say(text, {command.word for command in commands})
        if not self._hub.dry_run:
            self._store.answers.said(comment.id, now=self._now)

    def _act(self, comment: Comment, commands: Sequence[Command]) -> str:
        """Do what was asked and write down the answer; if it gets lost, only the answer is given again."""
        words = [command.word for command in commands]
        lines = []
        if "stop" in words and self._stopped:
            closed = self._pull.status in OPEN
            lines.append(
                f"{'I close this pull and leave' if closed else 'I leave'} this repo alone from now on. "
                "`/quantcard remeasure` would call me back."
            )
        elif "remeasure" in words and self._pull.status == "closed":
            lines.append("I reopen this pull and keep it up to date again.")
        if "remeasure" in words and not self._stopped:
            lines.append(self._remeasure())
        if "dispute" in words:
            measured = "" if "remeasure" in words or self._stopped else f" {self._remeasure()}"
            lines.append(
                "Noted: your words are shown beside these figures, here and in the results, until the dispute is "
                f"looked into.{measured} Whoever runs me sees it and answers here."
            )
        text = texts.answer_comment(lines, help_="unknown" in words, comment=comment.id)
        if not self._hub.dry_run:
            self._save(comment, commands, answer=text, said=False)
        return text

    def _remeasure(self) -> str:
        """Queue the repo's files again, once a day at most; returns the sentence about it."""
        name = f"remeasured:{self._repo.id}"
        before = float(self._store.results.get(name) or 0.0)
        if before > self._now - DAY:
            return (
                f"The last measurement that was asked for here began less than a day ago; ask again after "
                f"{day_and_time(before + DAY)} UTC."
            )
        if self._hub.dry_run:
            return "Every file here is measured again."
        protocols = {row.protocol_fingerprint for row in self._rows}
        n_jobs = self._store.jobs.remeasure(self._repo.id, protocols=protocols, now=self._now)
        if not n_jobs:
            return "The files here are waiting to be measured already."
        self._store.watching.want_plan([self._repo.id])
        self._store.results.put(name, repr(self._now))
        return "Every file here is measured again; the figures follow when that is done."

    def _say(self, text: str, words: set[str]) -> None:
        """Answer, closing or reopening the pull with it where that was asked for."""
        repo_id, num = self._repo.id, self._pull.num
        # Not every pull is ours to close or reopen (another account of ours opened it); then only words are left.
        with suppress(HubAuthError):
            if "stop" in words and self._stopped and self._pull.status in OPEN:
                self._write(lambda: self._hub.close_pull(repo_id, num, text))
                self._pull = replace(self._pull, status="closed")
                return
            if "remeasure" in words and not self._stopped and self._pull.status == "closed":
                self._write(lambda: self._hub.reopen_pull(repo_id, num, text))
                self._pull = replace(self._pull, status="open")
                return
        self._write(lambda: self._hub.comment(repo_id, num, text))

    def _write(self, call: Callable[[], None]) -> None:
        write(self._store, self._hub, call, now=self._now)

    def _tell_settled(self, settled: set[str]) -> None:
        """Tell owners which of their disputes the operator closed since."""
        for answers in self._known.values():
            for one in answers:
                if one.word != "dispute" or one.state != "closed" or one.told_at:
                    continue
                if one.comment_id not in settled:
                    text = texts.settled_comment(one.note, comment=one.comment_id)
                    self._write(partial(self._hub.comment, self._repo.id, self._pull.num, text))
                if not self._hub.dry_run:
                    self._store.answers.told(one.id, now=self._now)
