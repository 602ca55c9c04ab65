"""Hears what a repo's owners say on our pulls, does it, and answers each comment once.

The answer carries a hidden marker with the comment's id, and the Hub is asked for it before the database: neither a
lost response nor a lost database makes us answer twice. What others than the owners say is not answered. Whether we
are wanted is the last word on any pull of the repo; who closes a pull takes back the wishes that were said before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from bot.hub.door import Comment, HubDoor, HubPull
from bot.publish import pull_texts as texts
from bot.publish.found import Found, our_accounts
from bot.publish.hours import day_and_time
from bot.publish.manners import DAY, OPEN, REPLACED
from bot.publish.remarks import last_hidden
from bot.publish.words import Command, Word, parse_words
from bot.publish.writes import write
from bot.store import Store
from bot.store.answers import Answer
from bot.store.repos import Repo
from core.dataset import DatasetRow
from core.errors import HubAuthError

#: Comments answered in one go; the others are answered the next time.
MOST_ANSWERS = 5
_STOP = Command("stop")


@dataclass(frozen=True, slots=True)
class Heard:
    """How things stand after listening: the pull, by whose word the repo is stopped, whether anything was answered."""

    pull: HubPull
    stopped: str | None
    answered: int = 0


@dataclass(frozen=True, slots=True)
class _Said:
    """An owner's comment on pull ``num``.

    ``commands``: each with the time when it was said; ``pending``: those that are to be done and answered; ``known``:
    what is stored of it; ``overruled``: somebody closed the pull after it, and it was not opened again.
    """

    num: int
    comment: Comment
    commands: Sequence[tuple[Command, float]]
    pending: Sequence[Command]
    known: Sequence[Answer]
    overruled: bool

    @property
    def words(self) -> set[Word]:
        """What is to be answered."""
        return {command.word for command in self.pending}


def hear(
    store: Store,
    hub: HubDoor,
    repo: Repo,
    found: Found,
    rows: Sequence[DatasetRow],
    *,
    others: Iterable[HubPull] = (),
    now: float,
) -> Heard:
    """Act on and answer what owners said on our pulls, and tell them which disputes were closed.

    Args:
        found: the pull that is open, or the newest, read whole; what is asked for is done to it.
        others: older pulls of ours in the repo, where something may be said too.

    Raises:
        HubError: an answer could not be given; the next run finds out whether it was.
    """
    assert found.whole is not None
    replaced = found.view.status == REPLACED
    return _Listener(store, hub, repo, found.whole, list(others), rows, replaced=replaced, now=now).run()


class _Listener:
    """The comments on one repo's pulls."""

    def __init__(
        self,
        store: Store,
        hub: HubDoor,
        repo: Repo,
        pull: HubPull,
        others: Sequence[HubPull],
        rows: Sequence[DatasetRow],
        *,
        replaced: bool,
        now: float,
    ) -> None:
        self._store, self._hub, self._repo, self._pull = store, hub, repo, pull
        self._heard, self._replaced = [*others, pull], replaced
        self._rows, self._now = rows, now
        self._us = our_accounts(store, hub)
        ours = [one for pull in self._heard for one in pull.comments if one.author in self._us]
        self._answered_at: dict[str, float] = {}
        for one in sorted(ours, key=lambda one: one.at):
            self._answered_at |= dict.fromkeys(texts.answered([one.text]), one.at)
        self._settled = texts.settled(one.text for one in ours)
        self._stopped = self._noted = repo.stopped

    def run(self) -> Heard:
        said = [one for pull in self._heard for one in self._read(pull)]
        self._stand(said)
        # Written down before anything is said about it that may get lost.
        self._note_stop()
        pending = [one for one in said if one.pending]
        pending = sorted(pending, key=lambda one: (_STOP not in one.pending, one.comment.at))[:MOST_ANSWERS]
        for one in pending:
            self._answer(one)
        self._tell_settled()
        return Heard(self._pull, self._stopped, len(pending))

    def _read(self, pull: HubPull) -> list[_Said]:
        """What owners said on a pull, the oldest first; what was answered is remembered."""
        rows = self._store.answers.of_pull(self._repo.id, pull.num)
        closed = pull.last("closed") if pull.status == "closed" else None
        no_at = closed.place if closed and closed.author not in self._us else -1
        hidden_at = last_hidden(pull, self._us)
        found = []
        for comment in pull.comments:
            if not comment.owner or comment.author in self._us or not texts.is_comment_id(comment.id):
                continue
            known = rows.get(comment.id, [])
            quiet, overruled = comment.place < hidden_at, comment.place < no_at
            one = self._understand(pull, comment, known, overruled=overruled, quiet=quiet)
            if one is None:
                continue
            found.append(one)
            if not one.pending and not (known and all(row.said_at for row in known)):
                self._remember(one)
            if any(row.word == "remeasure" and (row.state == "overruled") != one.overruled for row in known):
                self._overrule(one)
        return found

    def _understand(
        self, pull: HubPull, comment: Comment, known: Sequence[Answer], *, overruled: bool, quiet: bool
    ) -> _Said | None:
        """A comment's commands and which of them are not answered; None where there are none.

        Args:
            quiet: something that we said after it was hidden since, perhaps its answer.
        """
        now_there = parse_words(comment.text)
        answered, edited = self._answered_at.get(comment.id), comment.edited_at
        said = edited if edited is not None else comment.at
        # Our answer was to what stood there before.
        late = edited is not None and answered is not None and answered < edited
        commands = [(Command(cast(Word, row.word), row.text), row.asked_at) for row in known]
        pending: list[Command] = []
        if not known:
            commands = [(command, said if _STOP in now_there else comment.at) for command in now_there]
            if (answered is None and not quiet) or (late and _STOP in now_there):
                pending = now_there
        elif edited is not None and _STOP in now_there and _STOP not in (command for command, _ in commands):
            # Whoever makes a 'stop' of what they said is heard too.
            commands, pending = [*commands, (_STOP, said)], [_STOP]
        else:
            unsaid = [command for (command, _), row in zip(commands, known, strict=True) if not row.said_at]
            if answered is None or (late and _STOP in unsaid):
                pending = unsaid
        return _Said(pull.num, comment, commands, pending, known, overruled) if commands else None

    def _stand(self, said: Sequence[_Said]) -> None:
        """The last word on whether we are wanted holds, wherever it was said; also for a new database."""
        words: list[tuple[float, int, int, Word, str]] = [
            (at, one.num, one.comment.place, command.word, one.comment.author)
            for one in said
            for command, at in one.commands
            if command.word == "stop" or (command.word == "remeasure" and not one.overruled)
        ]
        heard = {pull.num for pull in self._heard}
        for row in self._store.answers.standing_words(self._repo.id):
            if row.num not in heard and row.state != "overruled":
                words.append((row.asked_at, row.num, 0, cast(Word, row.word), row.author))
        if words:
            # Of one comment's words the last one holds: they stand here in its order, and sorting keeps that.
            *_, word, author = sorted(words, key=lambda word: word[:3])[-1]
            self._stopped = author[:96] if word == "stop" else None

    def _note_stop(self) -> None:
        if self._stopped != self._noted and not self._hub.dry_run:
            self._store.repos.set_stopped(self._repo.id, self._stopped)
            self._noted = self._stopped

    def _remember(self, one: _Said) -> None:
        """What was answered before, for a database that lacks it or does not know that the answer arrived."""
        if self._hub.dry_run:
            return
        if not one.known:
            self._save(one, [command for command, _ in one.commands], answer="", said=True)
        self._store.answers.said(one.comment.id, now=self._now)

    def _overrule(self, one: _Said) -> None:
        if not self._hub.dry_run:
            self._store.answers.overrule(one.comment.id, overruled=one.overruled)

    def _save(self, one: _Said, commands: Sequence[Command], *, answer: str, said: bool) -> None:
        at = next(at for command, at in reversed(one.commands) if command in commands)
        self._store.answers.add(
            one.comment.id,
            [(command.word, command.text) for command in commands],
            repo_id=self._repo.id,
            num=one.num,
            author=one.comment.author[:96],
            answer=answer,
            said=said,
            settled=one.comment.id in self._settled,
            first=len(one.known),
            asked_at=at,
            now=self._now,
        )
        if one.overruled and any(command.word == "remeasure" for command in commands):
            self._overrule(one)

    def _answer(self, one: _Said) -> None:
        before = next((row.answer for row in one.known if row.answer and not row.said_at), None)
        # A 'stop' that came into a comment later is not answered by what was to be said about the rest.
        new = len(one.commands) > len(one.known)
        self._say(one, before if before and not new else self._act(one))
        if not self._hub.dry_run:
            self._store.answers.said(one.comment.id, now=self._now)

    def _act(self, one: _Said) -> str:
        """Do what was asked and write down the answer; if it gets lost, only the answer is given again."""
        words, lines = one.words, []
        if "stop" in words:
            lines.append(self._on_stop(one))
        elif "remeasure" in words and self._stopped:
            lines.append(
                "This pull was closed after you wrote that, so I leave this repo alone."
                if one.overruled
                else "You told me to stop after that, so I leave this repo alone."
            )
        elif self._reopens(one):
            lines.append("I reopen this pull and keep it up to date again.")
        elif "remeasure" in words and one.overruled:
            lines.append("This pull was closed after you wrote that, so it stays closed; asking again reopens it.")
        if "remeasure" in words and not self._stopped:
            lines.append(self._remeasure())
        if "dispute" in words:
            here = ", here and" if not self._stopped and (self._replaced or self._pull.status != "closed") else ""
            measured = "" if "remeasure" in words or self._stopped else f" {self._remeasure()}"
            lines.append(
                f"Noted. With the next update your words are shown beside these figures{here} in the results, until "
                f"the dispute is looked into.{measured} Whoever runs me sees it and answers."
            )
        text = texts.answer_comment(lines, help_="unknown" in words, comment=one.comment.id)
        if not self._hub.dry_run:
            self._save(one, one.pending, answer=text, said=False)
            if "dispute" in words:
                self._store.publishing.touch(self._repo.id, now=self._now)
        return text

    def _on_stop(self, one: _Said) -> str:
        if not self._stopped:
            return "You called me back after that, so I stay."
        closes = "I close this pull and leave" if self._pull.status in OPEN else "I leave"
        if self._pull.status in OPEN and one.num != self._pull.num:
            closes = f"I was told on pull {one.num} to stop, so I close this one too and leave"
        return f"{closes} this repo alone from now on. `/quantcard remeasure` would call me back."

    def _reopens(self, one: _Said) -> bool:
        """Whether a comment asks for the pull to be opened again: said on it, and after whoever closed it."""
        asked = "remeasure" in one.words and not self._stopped and not one.overruled
        return asked and one.num == self._pull.num and self._pull.status == "closed" and not self._replaced

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

    def _say(self, one: _Said, text: str) -> None:
        """Answer, closing or reopening the pull with it where that was asked for."""
        repo_id, num = self._repo.id, self._pull.num
        # Not every pull is ours to close or reopen (another account of ours opened it); then only words are left.
        with suppress(HubAuthError):
            if "stop" in one.words and self._stopped and self._pull.status in OPEN:
                self._write(lambda: self._hub.close_pull(repo_id, num, text))
                self._pull = replace(self._pull, status="closed")
                return
            if self._reopens(one):
                self._write(lambda: self._hub.reopen_pull(repo_id, num, text))
                self._pull = replace(self._pull, status="open")
                return
        self._write(lambda: self._hub.comment(repo_id, one.num, text))

    def _write(self, call: Callable[[], None]) -> None:
        write(self._store, self._hub, call, now=self._now)

    def _tell_settled(self) -> None:
        """Tell owners which of their disputes the operator closed since: on the pull that is listened to."""
        places = {comment.id: comment.place for comment in self._pull.comments}
        hidden_at = last_hidden(self._pull, self._us)
        for one in self._store.answers.untold(self._repo.id)[:MOST_ANSWERS]:
            # Where our words were hidden after it was raised, nobody wants to hear more of it.
            if one.comment_id not in self._settled and places.get(one.comment_id, -1) >= hidden_at:
                text = texts.settled_comment(one.note, comment=one.comment_id)
                self._write(partial(self._hub.comment, self._repo.id, self._pull.num, text))
            if not self._hub.dry_run:
                self._store.answers.told(one.id, now=self._now)
