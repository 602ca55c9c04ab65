"""Judges what the bot did by the hub's folder: one open pull, nothing outside the markers, nothing after a no."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from machine_people import CONFIG, CONFIGS, DATA, PLOTS, README, Ground, without_ours
from machine_world import BOT, BROKEN_MARK, DAY, OWNER_OF, OWNERS, REPOS, key_of

from bot.cycle import CycleReport
from bot.store import Store
from localhub.gitobj import Commit
from localhub.names import MAIN

OPEN = ("open", "draft")
_COMMAND = re.compile(r"^/quantcard (\S+)", re.M)
_MARKER = re.compile(r"<!-- quantcard:([a-z]+(?: [a-z]+)?)=?([\w-]*) -->")
_DATA = re.compile(rb"<!-- quantcard:data v=1 (\{.*\}) -->")
_REPLACED, _WITHDRAWN = "<!-- quantcard:replaced -->", "<!-- quantcard:withdrawn -->"
#: Seconds by which the clock of a process that was killed may have been ahead.
_AHEAD = 600.0


class Broken(AssertionError):
    """The bot broke a promise."""


@dataclass(frozen=True)
class Before:
    """How a repo stood before a cycle."""

    no: str | None
    heads: dict[int, str]
    statuses: dict[int, str]
    n_comments: dict[int, int]


@dataclass
class Judge:
    """Watches one world; call :meth:`before` ahead of a cycle, and :meth:`after` behind it."""

    ground: Ground
    _before: dict[str, Before] = field(default_factory=dict)
    #: When a pull was seen first.
    _opened: dict[tuple[str, int], float] = field(default_factory=dict)
    #: Whether the database was lost, and the owners whose discussions were off then: what was there can't be found.
    lost: bool = False
    _unseen: set[str] = field(default_factory=set)

    # facts

    def main(self, repo_id: str) -> bytes:
        return self.ground.read(repo_id, MAIN) or b""

    def config(self, repo_id: str) -> bytes | None:
        return self.ground.read(repo_id, MAIN, CONFIG)

    def pushed(self, repo_id: str, pull: dict[str, Any]) -> list[Commit]:
        """The commits of a pull, the oldest first."""
        found: list[Commit] = []
        for commit in self.ground.history(repo_id, f"refs/pr/{pull['num']}"):
            if commit.oid == pull["baseOid"]:
                return found[::-1]
            found.append(commit)
        raise Broken(f"pull {pull['num']} of {repo_id} does not begin at a commit of main")

    def comments(self, pull: dict[str, Any]) -> list[dict[str, Any]]:
        """What was said on a pull after its first comment."""
        return [event for event in pull["events"] if event["type"] == "comment"][1:]

    def words(self, repo_id: str, pull: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
        """(place among the events, comment's id, word) of each command of an owner."""
        for place, event in enumerate(pull["events"]):
            if event["type"] == "comment" and event["author"] == OWNER_OF[repo_id].acts:
                plain = re.sub(r"(?ms)^```.*?^```", "", text_of(event))
                for word in _COMMAND.findall(plain):
                    yield place, event["id"], word

    def stopped(self, repo_id: str) -> bool:
        said = [word for pull in self.ground.pulls(repo_id) for _, _, word in self.words(repo_id, pull)]
        last = [word for word in said if word in ("stop", "remeasure")][-1:]
        return last == ["stop"]

    def no(self, repo_id: str) -> str | None:
        """Why no pull may be opened or changed in a repo, as its owner said it on the hub."""
        pulls = self.ground.pulls(repo_id)
        if self.stopped(repo_id):
            return "its owner said stop"
        if pulls and pulls[-1]["status"] == "closed" and not replaced(pulls[-1]):
            return f"pull {pulls[-1]['num']} is closed"
        return None

    def config_says_no(self, repo_id: str) -> bool:
        return self.config(repo_id) in (CONFIGS["no"], CONFIGS["wrong"], CONFIGS["wrong too"])

    def discussions_off(self, repo_id: str) -> bool:
        return bool(self.ground.repo(repo_id).meta().get("discussionsDisabled"))

    # before and after a cycle

    def before(self, *, store: Store | None = None) -> None:
        """Note how things stand; with ``store``, what the bot read of ``.quantcard.yml`` counts too."""
        self._before = {}
        self._note_unseen()
        for repo_id in REPOS:
            no = self.no(repo_id)
            known = store.repos.repo(repo_id) if store else None
            if no is None and self.config_says_no(repo_id) and known and known.config.get("enabled") is False:
                no = "its .quantcard.yml says no"
            pulls = self.ground.pulls(repo_id)
            self._before[repo_id] = Before(
                no,
                heads={pull["num"]: self.ground.history(repo_id, f"refs/pr/{pull['num']}")[0].oid for pull in pulls},
                statuses={pull["num"]: pull["status"] for pull in pulls},
                n_comments={pull["num"]: len(self.comments(pull)) for pull in pulls},
            )

    def after(
        self, report: CycleReport | None = None, *, now: float, paused: bool = False, undisturbed: bool = False
    ) -> None:
        """Check every promise; ``undisturbed``: nothing failed, and nobody acted in the middle of the cycle."""
        if report is not None:
            internal = [said for _, said in [*report.errors, *report.poll.errors] if "internal error" in str(said)]
            if internal:
                raise Broken(f"an error of ours: {internal}")
        for repo_id in REPOS:
            self._standing(repo_id)
            if repo_id in self._before:
                self._since(repo_id, self._before[repo_id], now=now, paused=paused, undisturbed=undisturbed)
        self._note_unseen()
        for owner in {owner.name for owner in OWNERS if not owner.consented} - self._unseen:
            self._introduction(owner)

    def _note_unseen(self) -> None:
        if self.lost:
            self._unseen |= {OWNER_OF[repo_id].name for repo_id in REPOS if self.discussions_off(repo_id)}

    def _standing(self, repo_id: str) -> None:
        pulls = self.ground.pulls(repo_id)
        up = [pull["num"] for pull in pulls if pull["status"] in OPEN and not _opened_again_by_a_human(pull)]
        if len(up) > 1:
            raise Broken(f"{repo_id} has {len(up)} open pulls: {up}")
        for name in self.ground.repo(repo_id).store.refs():
            if name != MAIN and not name.startswith("refs/pr/"):
                raise Broken(f"{repo_id} has {name}")
        history = self.ground.history(repo_id, MAIN)
        if any(commit.author == BOT for commit in history):
            raise Broken(f"the bot committed to main of {repo_id}")
        bare = self._bare_cards(repo_id, history)
        for pull in pulls:
            self._commits(repo_id, pull, bare)
            self._sayings(repo_id, pull)
            self._statuses(repo_id, pull)

    def _bare_cards(self, repo_id: str, history: list[Commit]) -> set[bytes]:
        """Every card that main ever had, without anything of ours."""
        found = set()
        for commit in history:
            try:
                found.add(without_ours(self.ground.read(repo_id, commit.oid) or b""))
            except ValueError:
                continue
        return found

    def _commits(self, repo_id: str, pull: dict[str, Any], bare: set[bytes]) -> None:
        """Only our section (and where it was asked for our file), and nothing behind a human's commit."""
        where = f"pull {pull['num']} of {repo_id}"
        store, human = self.ground.repo(repo_id).store, False
        for commit in self.pushed(repo_id, pull):
            if commit.author != BOT:
                human = True
                continue
            if human:
                raise Broken(f"the bot committed to {where} behind a human")
            old, new = store.tree(commit.parents[0]), store.tree(commit.oid)
            touched = {path for path in {*old, *new} if old.get(path) != new.get(path)}
            if more := touched - {README, DATA, *PLOTS}:
                raise Broken(f"{where} touches {sorted(more)}")
            for path in PLOTS:
                self._plot(repo_id, commit, path, where, touched=path in touched)
            if DATA in touched and not self._ever_had(repo_id, "file"):
                raise Broken(f"{where} has {DATA}, which nobody asked for")
            try:
                card = without_ours(self.ground.read(repo_id, commit.oid) or b"")
            except ValueError as error:
                raise Broken(f"{where} has damaged markers") from error
            if card not in bare:
                raise Broken(f"{where} changes the card outside the markers: {card!r} is none of {bare!r}")

    def _plot(self, repo_id: str, commit: Commit, path: str, where: str, *, touched: bool) -> None:
        """A commit of the bot's has small PNGs of its own only, shows what is there, and overwrites nobody's file."""
        entry = self.ground.tree(repo_id, commit.oid).get(path)
        new = self.ground.read(repo_id, commit.oid, path)
        shown = b"](%s)" % path.encode() in (self.ground.read(repo_id, commit.oid) or b"")
        if shown and (new is None or not _is_plot(new)):
            raise Broken(f"{where} shows {path}, and no plot of ours is there")
        if not touched:
            return
        old = self.ground.read(repo_id, commit.parents[0], path)
        if old is not None and not _is_plot(old):
            raise Broken(f"{where} writes over {path}, which is the owner's")
        if new is None:
            return
        if not _is_plot(new) or len(new) > 100_000 or entry is None or entry.lfs is None:
            raise Broken(f"{where} puts something else than a small plot at {path}")
        if not shown:
            raise Broken(f"{where} adds {path} and does not show it")

    def _ever_had(self, repo_id: str, config: str) -> bool:
        """Whether main ever had this ``.quantcard.yml``."""
        return any(
            self.ground.read(repo_id, commit.oid, CONFIG) == CONFIGS[config]
            for commit in self.ground.history(repo_id, MAIN)
        )

    def _sayings(self, repo_id: str, pull: dict[str, Any]) -> None:
        """Each comment of the bot says one thing, each answer is to an owner's words, and none is said twice."""
        where = f"pull {pull['num']} of {repo_id}"
        asked = {comment_id for _, comment_id, _ in self.words(repo_id, pull)}
        told: Counter[tuple[str, str]] = Counter()
        changed: list[int] = []
        for event in self.comments(pull):
            if event["author"] != BOT or event["data"]["hidden"]:
                continue
            markers = _MARKER.findall(text_of(event))
            if len(markers) != 1:
                raise Broken(f"{where}: the bot says what it can't know again: {text_of(event)!r}")
            [(kind, value)] = markers
            told[kind, value] += 1
            if kind == "changed at":
                changed.append(int(value))
            if kind == "answer to" and value not in asked:
                raise Broken(f"{where}: the bot answers what no owner asked ({value})")
        if twice := [what for what, times in told.items() if times > 1 and what[0] != "replaced"]:
            raise Broken(f"{where}: said twice: {twice}")
        if any(later - earlier < DAY for earlier, later in itertools.pairwise(changed)):
            raise Broken(f"{where}: two comments about changed figures within a day: {changed}")

    def _statuses(self, repo_id: str, pull: dict[str, Any]) -> None:
        """The bot closes only when told to stop, and opens again only when asked to after the no."""
        words = list(self.words(repo_id, pull))
        closed_at = -1
        for place, event in enumerate(pull["events"]):
            if event["type"] != "status-change":
                continue
            status = event["data"]["status"]
            because = text_of(pull["events"][place - 1]) if event["author"] == BOT and status == "closed" else None
            told = because and (_REPLACED in because or (_WITHDRAWN in because and self._ever_had(repo_id, "no")))
            if because is not None and not told and not _said(words, "stop", -1, place):
                raise Broken(f"the bot closed pull {pull['num']} of {repo_id} by itself")
            if event["author"] == BOT and status == "open" and not _said(words, "remeasure", closed_at, place):
                raise Broken(f"the bot opened pull {pull['num']} of {repo_id} again after a no")
            if status == "closed":
                closed_at = place

    def _since(self, repo_id: str, before: Before, *, now: float, paused: bool, undisturbed: bool) -> None:
        """What this cycle may not have done."""
        no = "writing is paused" if paused else before.no
        if no is None and undisturbed and self.config_says_no(repo_id):
            no = "its .quantcard.yml says no"
        for pull in self.ground.pulls(repo_id):
            num, head = pull["num"], self.ground.history(repo_id, f"refs/pr/{pull['num']}")[0]
            seen = self._opened.setdefault((repo_id, num), now)
            if replaced(pull) and before.statuses.get(num) in OPEN:
                if now < seen + DAY - _AHEAD:
                    raise Broken(f"the bot replaced pull {num} of {repo_id} on its first day")
                if undisturbed and not self.ground.conflicts({**pull, "status": "open"}, repo_id):
                    raise Broken(f"the bot replaced pull {num} of {repo_id}, which could be merged")
            if num not in before.heads and no:
                raise Broken(f"the bot opened pull {num} in {repo_id} though {no}")
            if num in before.heads and before.heads[num] != head.oid and head.author == BOT and no:
                if "closed" in no and pull["status"] in OPEN:
                    continue  # it was opened again meanwhile
                raise Broken(f"the bot committed to pull {num} of {repo_id} though {no}")
            ours = [event for event in self.comments(pull)[before.n_comments.get(num, 0) :] if event["author"] == BOT]
            if paused and ours:
                raise Broken(f"the bot commented on pull {num} of {repo_id} though {no}")

    def _introduction(self, owner: str) -> None:
        """Without consent an owner has one pull until one was merged."""
        opened, merged = [], []
        for repo_id in (repo_id for repo_id in REPOS if OWNER_OF[repo_id].name == owner):
            for pull in self.ground.pulls(repo_id):
                if replaced(pull, ever=True):
                    continue
                opened.append((pull["createdAt"], repo_id, pull["num"]))
                merged += [e["createdAt"] for e in pull["events"] if e["data"].get("status") == "merged"]
        for at, repo_id, num in sorted(opened)[1:]:
            if not any(when <= at for when in merged):
                raise Broken(f"{owner} did not consent and got pull {num} in {repo_id} before one was merged")

    # at rest

    def at_rest(self, store: Store, protocol: str) -> None:
        """When nothing happens any more, every pull has the newest figures, and every repo without one a reason."""
        for repo_id in REPOS:
            known = store.publishing.get(repo_id)
            reason = known.reason if known else ""
            pulls = self.ground.pulls(repo_id)
            up = next((pull for pull in reversed(pulls) if pull["status"] in OPEN), None)
            newest = self._figures(repo_id, store, protocol)
            if "have not ended" in reason:
                raise Broken(f"{repo_id} waits for ever: {reason}")
            if "lets us ask nothing" in reason:
                continue  # it refused us once, and is asked again after a week
            if blocked := self._blocked(repo_id, up, newest):
                if up is None and not reason:
                    raise Broken(f"{repo_id} has no pull and no reason is told ({blocked})")
                continue
            if up is not None:
                self._is_fresh(repo_id, up, newest, reason)
            elif not self._may_be_without(repo_id, pulls, newest):
                raise Broken(f"{repo_id} should have a pull: {reason}")

    def _figures(self, repo_id: str, store: Store, protocol: str) -> dict[str, float | None]:
        """The files on main by sha256, and the mean KLD that was measured last, where there is a reference."""
        keys = [entry.lfs for path, entry in self.ground.tree(repo_id, MAIN).items() if path.endswith(".gguf")]
        found: dict[str, float | None] = dict.fromkeys(keys)
        for key in keys if key_of(0) in keys else []:
            quality = store.results.measurements(key, protocol, reference_key=key_of(0)).get("quality")
            found[key] = quality.result.kld.mean if quality else None  # type: ignore[union-attr]
        return found

    def _blocked(self, repo_id: str, up: dict[str, Any] | None, newest: dict[str, float | None]) -> str | None:
        """Why a repo's pull need not be there or fresh."""
        if no := self.no(repo_id):
            return no
        if self.config_says_no(repo_id):
            return "its .quantcard.yml says no"
        if sum(pull["status"] in OPEN for pull in self.ground.pulls(repo_id)) > 1:
            return "a human opened another one again"
        if self.discussions_off(repo_id):
            return "discussions are off"
        if up is not None and any(commit.author != BOT for commit in self.pushed(repo_id, up)):
            return "a human committed to it"
        try:
            self.main(repo_id).decode()
            without_ours(self.main(repo_id))
        except ValueError:
            return "its card is damaged"
        if not newest.keys() - {key_of(0), key_of(BROKEN_MARK)}:
            return "nothing can be measured there"
        return None

    def _told(self, repo_id: str, revision: str) -> dict[str, float | None] | None:
        """What a card or the file beside it tells; None where it tells nothing."""
        card = self.ground.read(repo_id, revision) or b""
        in_card = _DATA.search(card)
        beside = self.ground.read(repo_id, revision, DATA)
        if self.config(repo_id) == CONFIGS["file"] and beside:
            data = json.loads(beside)
        elif in_card:
            data = json.loads(in_card[1])
        else:
            return None
        return {one["key"]: one.get("kld_mean") for one in data["variants"]}

    def _is_fresh(self, repo_id: str, pull: dict[str, Any], newest: dict[str, float | None], reason: str) -> None:
        where, ref = f"pull {pull['num']} of {repo_id}", f"refs/pr/{pull['num']}"
        if without_ours(self.ground.read(repo_id, ref) or b"") != without_ours(self.main(repo_id)):
            raise Broken(f"{where} is not on main's card: {reason}")
        wanted = self.config(repo_id)
        data, old = (self.ground.read(repo_id, one, DATA) for one in (ref, pull["baseOid"]))
        if wanted != CONFIGS["file"] and data not in (None, old):
            raise Broken(f"{where} has a {DATA}, which nobody wants any more: {reason}")
        for path in PLOTS:
            plot, old = (self.ground.read(repo_id, one, path) for one in (ref, pull["baseOid"]))
            section = self.ground.read(repo_id, ref) or b""
            if wanted == CONFIGS["no plots"] and (plot not in (None, old) or b"](%s)" % path.encode() in section):
                raise Broken(f"{where} has {path}, which nobody wants: {reason}")
        if wanted != CONFIGS["no data"] and not _same(self._told(repo_id, ref), newest):
            raise Broken(f"{where} tells {self._told(repo_id, ref)}, not {newest}: {reason}")
        if self.ground.conflicts(pull, repo_id) and "can't be merged" not in reason:
            raise Broken(f"{where} can't be merged and nobody says so: {reason}")

    def _may_be_without(self, repo_id: str, pulls: list[dict[str, Any]], newest: dict[str, float | None]) -> bool:
        if _same(self._told(repo_id, MAIN), newest) or (pulls and self.config(repo_id) == CONFIGS["no data"]):
            return True
        # Merged with these figures before, and taken off the card since.
        if any(_same(self._told(repo_id, f"refs/pr/{p['num']}"), newest) for p in pulls if p["status"] == "merged"):
            return True
        owner = OWNER_OF[repo_id]
        theirs = [p for one in REPOS if OWNER_OF[one] == owner for p in self.ground.pulls(one)]
        last = [self.ground.pulls(one)[-1:] for one in REPOS if OWNER_OF[one] == owner]
        refused = sum(bool(found) and found[0]["status"] == "closed" for found in last)
        introduced = bool(theirs) and not any(pull["status"] == "merged" for pull in theirs)
        return not owner.consented and (introduced or refused > 1)


def _is_plot(data: bytes) -> bool:
    """Whether it is a PNG that says that it is the bot's."""
    return data.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXtquantcard\0plot v=1" in data[:200]


def text_of(event: dict[str, Any]) -> str:
    """What a comment says now."""
    return str(event["data"]["latest"]["raw"]) if event["type"] == "comment" else ""


def replaced(pull: dict[str, Any], *, ever: bool = False) -> bool:
    """Whether the bot closed a pull for another one, since it could not be merged; ``ever``: or once did."""
    changes = [place for place, event in enumerate(pull["events"]) if event["type"] == "status-change"]
    if not ever and pull["status"] != "closed":
        return False
    return any(
        pull["events"][at]["author"] == BOT and _REPLACED in text_of(pull["events"][at - 1])
        for at in (changes if ever else changes[-1:])
    )


def _opened_again_by_a_human(pull: dict[str, Any]) -> bool:
    return any(
        event["type"] == "status-change" and event["data"]["status"] == "open" and event["author"] != BOT
        for event in pull["events"]
    )


def _said(words: list[tuple[int, str, str]], word: str, after: int, before: int) -> bool:
    return any(after < place < before and said == word for place, _, said in words)


def _same(told: dict[str, float | None] | None, newest: dict[str, float | None]) -> bool:
    if told is None or told.keys() != newest.keys():
        return False
    return all(
        a == b or (a is not None and b is not None and abs(a - b) <= 1e-5 * abs(b))
        for a, b in ((told[key], newest[key]) for key in told)
    )
