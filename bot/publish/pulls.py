"""Pull requests with manners: what is done about one repo's card. The decisions are in :mod:`bot.publish.manners`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bot.hub.door import Committed, FileTooLargeError, HubDoor, HubPull
from bot.hub.refusals import repo_refuses
from bot.intake.card_meta import CARD_LIMIT
from bot.intake.repo_config import RepoConfig
from bot.publish import card as cards
from bot.publish import pull_texts as texts
from bot.publish.answers import hear
from bot.publish.card_text import card_text, text_of
from bot.publish.changes import changes, only_speeds_differ
from bot.publish.data_block import FILE, DataBlock, data_of, decode, decode_file, encode
from bot.publish.found import Found, known_pulls, sweep_owner
from bot.publish.lease import LeaseLostError
from bot.publish.manners import DAY, OPEN, REPLACED, Decision, Standing, decide, held_back, not_replaced_yet
from bot.publish.outcome import BARRED_S, Outcome
from bot.publish.render import render_pull_body
from bot.publish.rows import figures_key
from bot.publish.section import CARD, Section, make_section, no_quality, rows_for, section_key
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
        self._config = RepoConfig.from_json(repo.config)
        self._all, self._rows = rows, rows_for(rows, self._config)
        self._now, self._settled = now, settled
        self._key = section_key(self._rows, self._config) if self._rows else ""
        self._newest: HubPull | None = None
        self._has_pull = False

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
            return self.outcome(no)
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
        if self._repo.stopped is not None:
            return Decision("nothing", f"{self._repo.stopped} told us to stop; '/quantcard remeasure' calls us back.")
        if self._repo.state not in ("live", "gated"):
            return Decision("nothing", self._repo.note or f"The repo is {self._repo.state}.")
        if not self._config.enabled:
            return Decision("nothing", self._config.problem or "The repo's .quantcard.yml says no.")
        if not self._settled:
            return Decision("wait", "Its measurements have not ended yet.")
        if self._all and not self._rows:
            wanted = ", ".join(self._config.protocols)
            return Decision("nothing", f"The repo's .quantcard.yml wants figures of {wanted} only.")
        if not any(row.measured_here and not row.is_reference for row in self._rows):
            imported = any(row.quality_imported or row.speed_imported for row in self._rows)
            said = "Its figures were all imported." if imported else "None of its quantized files could be measured."
            return Decision("nothing", said)
        if reason := no_quality(self._rows):
            return Decision("wait", f"No quality figure yet: {reason}")
        return None

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
        """Hear what owners said on the pull that is open, or on the newest; the pulls as they stand after that."""
        if not found:
            return found
        at = max(range(len(found)), key=lambda i: (found[i].view.status in OPEN, found[i].view.num))
        one = found[at]
        before = one.whole or self._hub.pull(self._repo.id, one.view.num)
        self._newest = before
        heard = hear(self._store, self._hub, self._repo, before, self._all, now=self._now)
        self._newest = heard.pull
        self._repo = replace(self._repo, stopped=heard.stopped)
        view = one.view
        if heard.pull.status != before.status:
            view = replace(view, status=heard.pull.status)
            self._save(heard.pull.num, key=view.key, status=heard.pull.status, url=heard.pull.url)
        found[at] = Found(view, heard.pull)
        return found

    def _tell_problem(self) -> None:
        """Say once what is wrong with a ``.quantcard.yml``, where it is heard by who is still listening."""
        pull, problem = self._newest, self._config.problem
        if not problem or pull is None or pull.status == "closed" or self._repo.stopped is not None:
            return
        digest = self._config.digest or texts.digest_of(problem)
        if digest not in texts.config_told(self._said_by_us(pull)):
            self._write_comment(pull, texts.config_comment(problem, digest=digest))

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
            whole = next(one.whole for one in found if one.view.num == decision.num)
            assert whole is not None
            not_now = self._close_to_replace(whole) if whole.conflicts else None
            if not_now or not whole.conflicts:
                done = self._update(decision, whole, section, files, main=main)
                return self._also(done, not_now) if not_now else done
            decision = Decision("open", f"Pull {whole.num} could not be merged any more and was closed for this one.")
        return self._open(decision, files, parent=parent)

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

    def _close_to_replace(self, pull: HubPull) -> Decision | None:
        """Close a pull of ours that the card's own changes stand in the way of; or why its place can't be taken now.

        Its base stays the card that it was opened on, so no commit to it takes the conflict away.
        """
        if no := not_replaced_yet(self._standing(), repo_id=self._repo.id, num=pull.num):
            return replace(no, reason=f"It can't be merged since the card was changed at its lines; {no.reason}")
        text = texts.replaced_comment()
        write(self._store, self._hub, lambda: self._hub.close_pull(self._repo.id, pull.num, text), now=self._now)
        self._save(pull.num, key=self._key, status=REPLACED, url=pull.url)
        return None

    def _open(self, decision: Decision, files: dict[str, bytes], *, parent: str | None) -> Outcome:
        done = self._commit(
            lambda: self._hub.open_pull(
                self._repo.id, files=files, title=texts.pull_title(), body=self.body(), parent=parent
            )
        )
        if done.num is not None:
            self._has_pull = True
            self._newest = HubPull(done.num, texts.pull_title(), "open", done.url or "")
            self._save(done.num, key=self._key, status="open", url=done.url)
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
            self._save(pull.num, key=self._key, status="open", url=pull.url)
            return self.outcome(_has_these(pull.num))
        told = decode(theirs) or self._told_in_file(revision)
        self._commit(
            lambda: self._hub.update_pull(
                self._repo.id, pull.num, files=files, title=texts.pull_title(), body=self.body(), parent=pull.head
            )
        )
        self._save(pull.num, key=self._key, status="open", url=pull.url)
        self._tell_changes(pull, told)
        return self.outcome(decision, pull.url)

    def _told_in_file(self, revision: str) -> DataBlock | None:
        if self._config.data != "file":
            return None
        data = self._hub.read(self._repo.id, FILE, revision=revision, limit=CARD_LIMIT)
        return decode_file(data) if data else None

    def _tell_changes(self, pull: HubPull, before: DataBlock | None) -> None:
        """A comment, once a day at most, where another file may be the right one to pick now."""
        changed = changes(before, data_of(self._rows)) if before else None
        last = texts.changed_at(self._said_by_us(pull))
        if changed and (last is None or last <= self._now - DAY):
            self._write_comment(pull, texts.changed_comment(changed, now=self._now))

    def _said_by_us(self, pull: HubPull) -> list[str]:
        us = {self._hub.whoami(), pull.author}
        return [comment.text for comment in pull.comments if comment.author in us]

    def section(self) -> Section:
        """The section of the repo's rows."""
        return make_section(
            self._rows,
            self._config,
            endpoint=self._hub.endpoint,
            project_url=self._settings.project_url,
            leaderboard_url=self._settings.leaderboard_url,
        )

    def body(self) -> str:
        """The pull's first comment."""
        return render_pull_body(
            self._rows, key=self._key, endpoint=self._hub.endpoint, leaderboard_url=self._settings.leaderboard_url
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
    """What a pull would be if manners were no matter: main's card, the new one, title and first comment."""

    before: str
    after: str
    title: str
    body: str


def preview(store: Store, hub: HubDoor, settings: Settings, repo: Repo, rows: list[DatasetRow]) -> Preview:
    """A repo's pull for ``quantcard card --dry-run``, whether or not it would be opened now.

    Raises:
        HubError: the card can't be read.
        CardError: its markers are damaged.
    """
    visit = _Visit(store, hub, settings, repo, rows, now=0.0, settled=True)
    before = card_text(hub, repo.id, revision="main")
    return Preview(before, visit.section().on(before).card, texts.pull_title(), visit.body())
