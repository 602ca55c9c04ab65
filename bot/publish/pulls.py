"""Pull requests with manners: what is done about one repo's card. The decisions are in :mod:`bot.publish.manners`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bot.hub.door import Committed, FileTooLargeError, HubDoor, HubPull
from bot.hub.refusals import repo_refuses
from bot.intake.card_meta import CARD_LIMIT
from bot.publish import card as cards
from bot.publish import pull_texts as texts
from bot.publish.beside import left_behind, whole_section
from bot.publish.card_text import card_text, text_of
from bot.publish.changes import changes, only_speeds_differ
from bot.publish.data_beside import figures_beside
from bot.publish.data_block import DataBlock, decode, encode
from bot.publish.found import Found, known_pulls, note_opening, our_accounts, sweep_owner
from bot.publish.lease import LeaseLostError
from bot.publish.listening import listen, may_open
from bot.publish.manners import DAY, OPEN, REPLACED, Decision, Standing, decide, held_back, not_replaced_yet
from bot.publish.outcome import BARRED_S, Outcome
from bot.publish.remarks import Remarks
from bot.publish.render import render_pull_body
from bot.publish.rows import figures_key
from bot.publish.section import CARD, Section, rows_for, section_key
from bot.publish.wishes import refusal, wishes_of
from bot.publish.withdrawn import says_no, withdraw
from bot.publish.writes import WritesLimitedError, held, write
from bot.settings import Settings
from bot.store import Store
from bot.store.repos import Repo
from core.dataset import DatasetRow
from core.errors import HubAuthError, HubConflictError

#: Seconds for which a wish to measure anew is a reason to tell of other speeds.
ASKED_S = 7 * DAY
#: A pull that ended is looked at this many times more seldom than an open one: its owner may call us back there.
ENDED_LOOKS = 24


def publish_repo(
    store: Store,
    hub: HubDoor,
    settings: Settings,
    repo: Repo,
    rows: list[DatasetRow],
    *,
    now: float,
    settled: bool = True,
) -> Outcome:
    """Bring a repo's card up to date by pull request, if manners allow, and answer what its owners said there.

    What can be decided without the Hub is, unless a pull of ours is known there: its owners may have said something.

    Args:
        rows: of the repo's current variants.
        settled: whether all of its measurements have ended; until then nothing is told, but owners are heard.

    Raises:
        HubError: the Hub refused or did not answer; nothing is lost, the next run tries again.
    """
    visit = _Visit(store, hub, settings, repo, rows, now=now, settled=settled)
    try:
        return visit.run()
    except WritesLimitedError as error:
        return visit.outcome(Decision("wait", str(error), until=error.until))
    except LeaseLostError:
        raise
    except HubConflictError:
        # Somebody commits there just now; if it was to our pull, the next look leaves it to them.
        said = "Somebody else committed there just now; it is looked at again."
        return visit.outcome(Decision("wait", said, until=now + settings.pulls_check_s))
    except HubAuthError as error:
        if (because := repo_refuses(error)) is None:
            raise
        return visit.outcome(Decision("barred", f"The Hub lets us ask nothing there: {because}", until=now + BARRED_S))


class _Visit:
    """One repo at one time."""

    def __init__(
        self,
        store: Store,
        hub: HubDoor,
        settings: Settings,
        repo: Repo,
        rows: Sequence[DatasetRow],
        *,
        now: float,
        settled: bool,
    ) -> None:
        self._store, self._hub, self._settings, self._repo = store, hub, settings, repo
        self._config = wishes_of(repo, settings, rows)
        self._all, self._rows = rows, rows_for(rows, self._config)
        self._now, self._settled = now, settled
        self._key = section_key(self._rows, self._config) if self._rows else ""
        self._newest: HubPull | None = None
        self._has_pull = False
        self._section: Section | None = None

    def run(self) -> Outcome:
        if not_now := held(self._store, self._hub, self._settings, now=self._now):
            return self.outcome(not_now)
        known = self._store.results.pulls(self._repo.id)
        self._has_pull = bool(known)
        no = self._refusal() or (None if any(p.status in OPEN for p in known) else held_back(self._standing()))
        if no and not known:
            return self.outcome(no)
        found = known_pulls(self._store, self._hub, self._repo.id, now=self._now)
        self._has_pull = bool(found)
        found = self._listen(found)
        if no := self._refusal():
            self._tell_problem()
            return self.outcome(self._withdraw(found, no) or no)
        return self._publish(found)

    def outcome(self, decision: Decision, url: str | None = None) -> Outcome:
        """The outcome of a decision; where a pull of ours is, its comments are read again by and by."""
        check = self._settings.pulls_check_s
        again: float | None = None
        if self._newest and self._newest.status in OPEN:
            # Its owner may say something meanwhile.
            again = min(self._now + check, decision.until or float("inf"))
        elif decision.until is not None:
            again = decision.until
        elif self._has_pull:
            again = self._now + ENDED_LOOKS * check
        shown = url or (f"{self._hub.endpoint}/{self._repo.id}/discussions/{decision.num}" if decision.num else None)
        return Outcome(self._repo.id, decision, shown, again, self._key)

    def _refusal(self) -> Decision | None:
        """Why nothing is to be told here at all, whatever the Hub has."""
        return refusal(self._repo, self._config, self._all, settled=self._settled)

    def _standing(self) -> Standing:
        pulls = self._store.results.pulls()
        follow = self._store.repos.follow_of(self._repo.id)
        return Standing(
            pulls=[pull for pull in pulls if pull.repo_id.split("/")[0] == self._repo.owner],
            consented=bool(follow and follow.consented) or self._store.answers.asked(self._repo.id),
            open_per_owner=self._settings.pulls_open_per_owner,
            per_hour=self._settings.pulls_per_hour,
            opened=[pull.created_at for pull in pulls],
            now=self._now,
        )

    def _listen(self, found: list[Found]) -> list[Found]:
        """Hear what owners said on our pulls; the pulls as they stand after that."""
        new = not self._refusal() and may_open(found, self._standing(), repo_id=self._repo.id)
        listened = listen(self._store, self._hub, self._repo, found, self._all, may_open=new, now=self._now)
        self._has_pull = bool(listened.found)
        if listened.heard:
            self._newest = listened.heard.pull
            self._repo = replace(self._repo, stopped=listened.heard.stopped)
        disputed = self._store.answers.disputed(self._repo.id)
        if any(row.disputed != disputed for row in self._all):
            # Said or read again just now; what is told here has to know.
            self._all = [row.model_copy(update={"disputed": disputed}) for row in self._all]
            self._rows = rows_for(self._all, self._config)
            self._key = section_key(self._rows, self._config) if self._rows else ""
        return listened.found

    def _tell_problem(self) -> None:
        """Say once what is wrong with a ``.quantcard.yml``, where it is heard by who is still listening."""
        pull, problem = self._newest, self._config.problem
        if not problem or pull is None or pull.status == "closed" or self._repo.stopped is not None:
            return
        digest, remarks = self._config.digest or texts.digest_of(problem), self._remarks(pull)
        if remarks.may_tell_problem(digest):
            self._write_comment(pull, texts.config_comment(problem, digest=digest))
            if not self._hub.dry_run:
                remarks.told_problem(digest, now=self._now)

    def _withdraw(self, found: Sequence[Found], no: Decision) -> Decision | None:
        """Close our open pull where the ``.quantcard.yml`` says no; None where there is none to be closed so."""
        if self._repo.stopped is not None or self._repo.state not in ("live", "gated") or not says_no(self._config):
            return None
        newest, us = self._newest.num if self._newest else None, our_accounts(self._store, self._hub)
        whole, view = next(((one.whole, one.view) for one in found if one.view.num == newest), (None, None))
        if not whole or not view:
            return None
        if not withdraw(self._store, self._hub, self._repo.id, whole, view, us=us, now=self._now):
            return None
        self._save(whole.num, key=view.key, status="closed", url=whole.url)
        self._newest = replace(whole, status="closed")
        return Decision("nothing", f"{no.reason} Pull {whole.num} was closed for that.", whole.num)

    def _publish(self, found: list[Found]) -> Outcome:
        views = [one.view for one in found]
        if (quick := self._unchanged(found)) is not None:
            return self.outcome(quick)
        # Read and committed at one commit: what its owner pushes meanwhile is merged by the Hub, not undone by us.
        parent = self._hub.repo(self._repo.id).sha
        try:
            main = card_text(self._hub, self._repo.id, revision=parent or "main")
            standing = cards.find(main)
        except (cards.CardError, FileTooLargeError) as error:
            return self.outcome(Decision("nothing", str(error)))
        card_key = standing.key if standing else None
        decision = decide(key=self._key, card_key=card_key, pulls=views, standing=self._standing())
        if decision.action == "open":
            sweep_owner(self._store, self._hub, self._repo.id, now=self._now)
            decision = decide(key=self._key, card_key=card_key, pulls=views, standing=self._standing())
        if decision.action == "open" and self._only_speeds(main):
            decision = Decision("nothing", "Only speeds moved since: no reason for a new pull.")
        if decision.action not in ("open", "update"):
            return self.outcome(decision)
        section = self.section()
        try:
            placed = section.on(main)
        except cards.CardError as error:
            return self.outcome(Decision("nothing", str(error)))
        if placed.note:
            decision = replace(decision, reason=f"{decision.reason} {placed.note}")
        files = {CARD: placed.card.encode("utf-8", "surrogateescape"), **section.files}
        if decision.action == "update":
            assert decision.num is not None
            whole = next((one.whole for one in found if one.view.num == decision.num), None)
            whole = whole or self._hub.pull(self._repo.id, decision.num)
            besides = [view.num for view in views if view.status in OPEN and view.num != decision.num]
            not_now = self._close_to_replace(whole, besides) if whole.conflicts else None
            if not_now or not whole.conflicts:
                done = self._update(decision, whole, section, files, main=main)
                return self._also(done, not_now) if not_now else done
            decision = Decision("open", f"Pull {whole.num} could not be merged any more and was closed for this one.")
        return self._open(decision, files, main=main, parent=parent)

    def _also(self, outcome: Outcome, waits: Decision) -> Outcome:
        """An outcome that waits for something besides."""
        reason = f"{outcome.decision.reason} {waits.reason}"
        return self.outcome(replace(outcome.decision, reason=reason, until=waits.until), outcome.url)

    def _only_speeds(self, main: str) -> bool:
        """Whether main's section tells these figures but for speeds, which are never twice the same.

        Files are measured once for all that hold them, so that somebody else's wish may have been the reason. What
        this repo's owners asked for lately, or set in their ``.quantcard.yml``, is told.
        """
        asked = float(self._store.results.get(f"remeasured:{self._repo.id}") or 0.0)
        if asked > self._now - ASKED_S or self._key != figures_key(self._rows):
            return False
        standing, new = decode(main), decode(encode(self._rows))
        return standing is not None and new is not None and only_speeds_differ(standing, new)

    def _close_to_replace(self, pull: HubPull, besides: Sequence[int]) -> Decision | None:
        """Close a pull of ours that the card's own changes stand in the way of; or why its place can't be taken now.

        Its base stays the card that it was opened on, so no commit to it takes the conflict away. ``besides``: others
        of ours that a human opened again.
        """
        if besides:
            said = f"It can't be merged since the card was changed at its lines; pull {besides[0]} is open beside it."
            return Decision("nothing", said)
        if no := not_replaced_yet(self._standing(), repo_id=self._repo.id, num=pull.num):
            return replace(no, reason=f"It can't be merged since the card was changed at its lines; {no.reason}")
        text = texts.replaced_comment()
        write(self._store, self._hub, lambda: self._hub.close_pull(self._repo.id, pull.num, text), now=self._now)
        self._save(pull.num, key=self._key, status=REPLACED, url=pull.url)
        return None

    def _open(self, decision: Decision, files: dict[str, bytes], *, main: str, parent: str | None) -> Outcome:
        deleted, _ = self._left_behind(main, revision=parent or "main")
        if not self._hub.dry_run:
            # Its answer may be lost; then the owner's other repos must not get a first one too.
            note_opening(self._store, self._repo.id, ended=False)
        done = self._commit(
            lambda: self._hub.open_pull(
                self._repo.id,
                files=files,
                deleted=deleted,
                title=texts.pull_title(),
                body=self.body(),
                parent=parent,
            )
        )
        if done.num is not None:
            self._has_pull = True
            self._newest = HubPull(done.num, texts.pull_title(), "open", done.url or "")
            self._save(done.num, key=self._key, status="open", url=done.url)
        if not self._hub.dry_run:
            note_opening(self._store, self._repo.id, ended=True)
        return self.outcome(replace(decision, num=done.num), done.url)

    def _unchanged(self, found: Sequence[Found]) -> Decision | None:
        """That an open pull tells these figures of main as last seen, where that can be said without reading cards."""
        last = self._store.publishing.get(self._repo.id)
        if last is None or last.sha is None or last.sha != self._repo.sha:
            return None
        for view, whole in ((one.view, one.whole) for one in found):
            ours = view.status in OPEN and view.mine and not view.foreign and not (whole and whole.conflicts)
            if ours and (view.num, view.key) == (last.num, self._key):
                return _has_these(view.num)
        return None

    def _update(
        self, decision: Decision, pull: HubPull, section: Section, files: dict[str, bytes], *, main: str
    ) -> Outcome:
        """Put the new card on the pull's own ref, unless it is there already."""
        revision = pull.head or f"refs/pr/{pull.num}"
        theirs = text_of(self._hub.read(self._repo.id, CARD, revision=revision, limit=CARD_LIMIT))
        if section.says(theirs, main=main):
            if (known := texts.PULL.search(pull.body)) and known[1] != self._key:
                # The commit arrived, and its answer did not.
                self._hub.edit_body(self._repo.id, pull.num, self.body())
            self._save(pull.num, key=self._key, status="open", url=pull.url)
            return self.outcome(_has_these(pull.num))
        deleted, left = self._left_behind(theirs, revision=revision)
        self._commit(
            lambda: self._hub.update_pull(
                self._repo.id,
                pull.num,
                files=files,
                deleted=deleted,
                title=texts.pull_title(),
                body=self.body(),
                parent=pull.head,
            )
        )
        self._save(pull.num, key=self._key, status="open", url=pull.url)
        self._tell_changes(pull, decode(theirs) or left)
        return self.outcome(decision, pull.url)

    def _left_behind(self, card: str, *, revision: str) -> tuple[tuple[str, ...], DataBlock | None]:
        """(Our files that go with the next commit, what the figures' file beside a card tells)."""
        left = figures_beside(self._hub, self._repo.id, card, revision=revision)
        section = self.section()
        return left_behind(self._hub, self._repo.id, card, section, figures=left, revision=revision), left

    def _tell_changes(self, pull: HubPull, before: DataBlock | None) -> None:
        """A comment, once a day at most, where another file may be the right one to pick now."""
        changed = changes(before, self.section().data) if before else None
        remarks = self._remarks(pull)
        if changed and remarks.may_tell_changes(now=self._now):
            self._write_comment(pull, texts.changed_comment(changed, now=self._now))
            if not self._hub.dry_run:
                remarks.told_changes(now=self._now)

    def _remarks(self, pull: HubPull) -> Remarks:
        return Remarks(self._store, self._repo.id, pull, us=our_accounts(self._store, self._hub))

    def section(self) -> Section:
        """The section of the repo's rows; the figures stand in it where a file of its owner's has their file's name."""
        if self._section is None:
            made = whole_section(self._store, self._hub, self._settings, self._repo, self._rows, self._config)
            self._section = replace(made, key=self._key)
        return self._section

    def body(self) -> str:
        """The pull's first comment."""
        return render_pull_body(
            self._rows,
            key=self._key,
            endpoint=self._hub.endpoint,
            leaderboard_url=self._settings.leaderboard_url,
            project_url=self._settings.project_url,
            operator=self._settings.operator,
            beside=self.section().beside,
        )

    def _commit(self, call: Callable[[], Committed]) -> Committed:
        return write(self._store, self._hub, call, now=self._now)

    def _write_comment(self, pull: HubPull, text: str) -> None:
        write(self._store, self._hub, lambda: self._hub.comment(self._repo.id, pull.num, text), now=self._now)

    def _save(self, num: int, *, key: str, status: str, url: str | None) -> None:
        if not self._hub.dry_run:
            self._store.results.save_pull(self._repo.id, num, key=key, status=status, url=url, now=self._now)


def _has_these(num: int) -> Decision:
    return Decision("nothing", f"Pull {num} has these figures.", num)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a pull would be if manners were no matter: main's card, the new one, title, first comment, other files."""

    before: str
    after: str
    title: str
    body: str
    files: dict[str, bytes]


def preview(store: Store, hub: HubDoor, settings: Settings, repo: Repo, rows: list[DatasetRow]) -> Preview:
    """A repo's pull for ``quantcard card --dry-run``, whether or not it would be opened now.

    Raises:
        HubError: the card can't be read.
        CardError: its markers are damaged.
    """
    visit = _Visit(store, hub, settings, repo, rows, now=0.0, settled=True)
    before = card_text(hub, repo.id, revision="main")
    section = visit.section()
    return Preview(before, section.on(before).card, texts.pull_title(), visit.body(), section.files)
