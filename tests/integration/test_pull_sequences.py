"""The sequences that matter most, each by itself; and bugs put in on purpose, which the judge has to see."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from machine_judge import Broken
from machine_people import README, Deed
from machine_play import Faulty, Killed, KilledIn, Meanwhile, Play, Run
from machine_world import BOT, REPOS, Measuring, quick

from bot.cycle import CycleReport
from bot.hub.client import Hub
from bot.publish import answers, found, pulls, section
from bot.publish import card as cards
from bot.publish.manners import PullView
from bot.store.answers import Answers
from localhub.names import MAIN

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")
#: The repo of an owner who consented, and one of an owner who did not; their places in REPOS.
BOB, ALICE = REPOS.index("bob/one-GGUF"), REPOS.index("alice/one-GGUF")
ONE = REPOS[BOB]
#: Every so many lines a process is killed; 1 takes half an hour.
EVERY = int(os.environ.get("MACHINE_EVERY", "240"))

Step = tuple[list[Deed], float, Run]
FIRST: Step = ([], 0, Run())


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    measuring = Measuring()
    with quick(measuring), Play(tmp_path / "world", measuring) as found:
        yield found


def run(play: Play, *steps: Step) -> CycleReport | None:
    """Take these steps, let all come to rest, and return the last step's report."""
    report = None
    for step in steps:
        report = play.step(*step)
    play.rest()
    return report


def statuses(play: Play, repo_id: str = ONE) -> list[str]:
    return [pull["status"] for pull in play.ground.pulls(repo_id)]


def n_commits(play: Play, repo_id: str = ONE) -> int:
    """Commits of the bot to its newest pull."""
    return len([one for one in play.judge.pushed(repo_id, play.ground.pulls(repo_id)[-1]) if one.author == BOT])


def upload(mark: int = 5) -> Deed:
    return Deed("upload", BOB, ("Q6_K", mark))


@pytest.mark.parametrize("kind", ["lost", "cut", "slow", "500", "429", "429 budget", "412"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_fault_while_pulls_are_opened_and_changed(play: Play, kind: str, nth: int) -> None:
    run(play, ([], 0, Faulty(kind, "commit", nth)), ([], 2, Run()), ([upload()], 2, Faulty(kind, "commit", 0)))
    assert statuses(play) == ["open"] and n_commits(play) == 2


@pytest.mark.parametrize(
    "function", ["Hub.open_pull", "Results.save_pull", "_Visit.outcome", "Publishing.note", "Results.drop_lease"]
)
def test_a_kill_around_the_opening_of_a_pull(play: Play, function: str) -> None:
    """Before the request, between the Hub's work and our note of it, and after that."""
    run(play, ([], 0, KilledIn(function)))
    assert statuses(play) == ["open"] and n_commits(play) == 1


@pytest.mark.parametrize("function", ["Hub.update_pull", "Hub._edit_body", "_Visit._save", "_Visit._tell_changes"])
def test_a_kill_around_an_update(play: Play, function: str) -> None:
    run(play, FIRST, ([upload()], 2, KilledIn(function)))
    assert statuses(play) == ["open"] and n_commits(play) == 2


@pytest.mark.parametrize("function", ["Hub.comment", "Answers.add", "Answers.said", "_Visit._publish"])
@pytest.mark.parametrize("what", ["remeasure", "dispute", "unknown"])
def test_a_kill_around_an_answer(play: Play, function: str, what: str) -> None:
    run(play, FIRST, ([Deed("say", BOB, what)], 2, KilledIn(function)))
    [pull] = play.ground.pulls(ONE)
    assert sum(event["author"] == BOT for event in play.judge.comments(pull)) == 1


@pytest.mark.parametrize("function", ["Hub.close_pull", "Results.save_pull", "Answers.said"])
def test_a_kill_around_a_stop(play: Play, function: str) -> None:
    run(play, FIRST, ([Deed("say", BOB, "stop"), upload()], 2, KilledIn(function)), ([upload(6)], 25, Run()))
    assert statuses(play) == ["closed"] and n_commits(play) == 1


def test_a_human_commits_between_our_look_and_our_commit(play: Play) -> None:
    run(play, FIRST, ([upload()], 2, Meanwhile(0, Deed("push", BOB), "commit")), ([upload(6)], 25, Run()))
    assert statuses(play) == ["open"] and n_commits(play) == 1


def test_the_owner_closes_in_the_middle_of_an_update(play: Play) -> None:
    run(play, FIRST, ([upload()], 2, Meanwhile(0, Deed("close", BOB), "commit")), ([upload(6)], 25, Run()))
    assert statuses(play) == ["closed"] and n_commits(play) == 1


def test_the_owner_merges_in_the_middle_of_an_update(play: Play) -> None:
    run(play, FIRST, ([upload()], 2, Meanwhile(0, Deed("merge", BOB), "commit")), ([], 25, Run()))
    assert statuses(play) == ["merged", "open"]


def test_the_owner_edits_the_card_between_our_look_and_our_commit(play: Play) -> None:
    edit = Deed("edit", BOB, "append")
    run(play, ([], 0, Meanwhile(0, edit, "commit")))
    run(play, ([upload()], 2, Meanwhile(0, edit, "commit")))
    assert statuses(play)[-1] == "open" and play.ground.read(ONE, MAIN, README).count(b"Words") == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("config", ["no", "wrong"])
def test_an_owner_says_no_in_the_repo_while_a_pull_is_open(play: Play, config: str) -> None:
    run(play, FIRST, ([Deed("configure", BOB, config), upload()], 2, Run()))
    assert statuses(play) == ["open"] and n_commits(play) == 1


def test_a_lost_database_keeps_every_no_and_every_answer(play: Play) -> None:
    words = [Deed("say", BOB, "dispute"), Deed("say", ALICE, "stop")]
    for step in (FIRST, (words, 2, Run()), ([Deed("close", BOB)], 2, Run())):
        play.step(*step)
    play.step([upload(), Deed("upload", ALICE, ("Q6_K", 5))], 25, Run(), lost=True)
    play.rest()
    assert statuses(play) == ["closed"] == statuses(play, REPOS[ALICE])


def test_a_kill_at_any_line_of_publishing(tmp_path: Path) -> None:
    """Pulls are opened by one process that is killed, changed and answered on by another one."""
    measuring = Measuring()
    with quick(measuring):
        for line in range(EVERY // 2, 2400, EVERY):
            with Play(tmp_path / str(line), measuring) as play:
                acts = [upload(), Deed("say", BOB, "dispute"), Deed("merge", ALICE)]
                play.step([], 0, Killed(line, "publishing"))
                play.step(acts, 2, Killed(line, "publishing", interrupt=line % 2 == 0))
                play.rest()
                assert statuses(play)[-1] == "open", line


# bugs on purpose


def nothing_known(*_: Any, **__: Any) -> list[found.Found]:
    return []


def blind_to(status: str) -> Callable[..., Any]:
    """The decision of a bot that does not see pulls of this status."""
    real = pulls.decide

    def decide(*, pulls: list[PullView], **more: Any) -> Any:
        return real(pulls=[view for view in pulls if view.status != status], **more)

    return decide


def tidied(self: section.Section, card: str) -> Any:
    """A section put into a card whose lines are tidied on the way."""
    return section.splice_metadata(
        cards.splice("\n".join(line.rstrip() for line in card.split("\n")).rstrip(), self.body, key=self.key),
        self.rows, key=self.key, enabled=False, source_url="",
    )  # fmt: skip


def without_parent(real: Any) -> Any:
    return lambda self, repo_id, num, **more: real(self, repo_id, num, **{**more, "parent": None})


def with_a_file(real: Any) -> Any:
    return lambda self, repo_id, *, files, **more: real(self, repo_id, files={**files, "by.txt": b"us"}, **more)


def everybody_owns(real: Any) -> Any:
    def pull(self: Hub, repo_id: str, num: int) -> Any:
        whole = real(self, repo_id, num)
        return replace(whole, comments=tuple(replace(comment, owner=True) for comment in whole.comments))

    return pull


def restless(real: Any) -> Any:
    """Sections that say something else every time."""
    times = itertools.count()

    def make(*args: Any, **more: Any) -> section.Section:
        made = real(*args, **more)
        return replace(made, body=f"{made.body.rstrip()}\n\n{next(times)}\n")

    return make


MESSY, STOP = Deed("edit", BOB, "messy"), Deed("say", BOB, "stop")
SHOUT = Deed("shout", BOB, "dispute")
BUGS: dict[str, tuple[list[tuple[Any, str, Any]], list[Step], str]] = {
    "finds no pull again": ([(pulls, "known_pulls", nothing_known)], [FIRST, ([upload()], 2, Run())], "open pulls"),
    "takes no for nothing": (
        [(pulls, "decide", blind_to("closed"))],
        [FIRST, ([Deed("close", BOB)], 2, Run()), ([upload()], 25, Run())],
        "is closed",
    ),
    "commits behind humans": (
        [(Hub, "update_pull", without_parent(Hub.update_pull))],
        [FIRST, ([upload()], 2, Meanwhile(0, Deed("push", BOB), "commit"))],
        "behind a human",
    ),
    "tidies the card": ([(section.Section, "on", tidied)], [([MESSY], 0, Run())], "outside the markers"),
    "brings a file along": ([(Hub, "open_pull", with_a_file(Hub.open_pull))], [FIRST], "touches"),
    "does not hear stop": (
        [(answers._Listener, "_stand", lambda *_: None)],
        [FIRST, ([STOP, upload()], 2, Run())],
        "though its owner said stop",
    ),
    "forgets what it answered": (
        [(answers.texts, "answered", lambda _: set()), (Answers, "of_pull", lambda *_: {})],
        [FIRST, ([Deed("say", BOB, "unknown")], 2, Run()), ([], 2, Run())],
        "said twice",
    ),
    "obeys strangers": ([(Hub, "pull", everybody_owns(Hub.pull))], [FIRST, ([SHOUT], 2, Run())], "no owner asked"),
    "introduces itself twice": (
        [(pulls, "held_back", lambda _: None), ("bot.publish.manners", "held_back", lambda _: None)],
        [FIRST],
        "did not consent",
    ),
    "writes without end": (
        [
            (pulls, "make_section", restless(pulls.make_section)),
            (section.Section, "says", lambda *_, **__: False),
            (pulls._Visit, "_unchanged", lambda *_: None),
        ],
        [FIRST],
        "still writing",
    ),
    "never updates": ([(section.Section, "says", lambda *_, **__: True)], [FIRST, ([upload()], 2, Run())], "tells"),
    "reads no .quantcard.yml": (
        [("bot.intake.look", "parse_config", lambda _: pulls.RepoConfig())],
        [([Deed("configure", BOB, "no")], 0, Run())],
        "says no",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_judge_sees_a_bug(play: Play, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    patches, steps, said = BUGS[bug]
    for where, name, instead in patches:
        if isinstance(where, str):
            monkeypatch.setattr(f"{where}.{name}", instead)
        else:
            monkeypatch.setattr(where, name, instead)
    with pytest.raises(Broken, match=said):
        run(play, *steps)
