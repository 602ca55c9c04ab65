"""The sequences that matter most, each by itself; and bugs put in on purpose, which the judge has to see."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from machine_judge import Broken
from machine_people import BEGIN, CONFIG, README, Deed
from machine_play import Faulty, Killed, KilledIn, Meanwhile, Play, Run
from machine_world import BOT, REPOS, Measuring, quick

from bot.hub.client import Hub
from bot.hub.door import Committed, HubPull
from bot.store.repos import Repos
from localhub.names import MAIN

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")
#: The repo of an owner who consented, and one of an owner who did not; their places in REPOS.
BOB, ALICE = REPOS.index("bob/one-GGUF"), REPOS.index("alice/one-GGUF")
ONE = REPOS[BOB]
#: Every so many lines a process is killed; 1 takes an hour.
EVERY = int(os.environ.get("MACHINE_EVERY", "240"))


@dataclass(frozen=True)
class Step:
    """People act, two hours pass, the database may be lost, and a cycle runs."""

    deeds: list[Deed] = field(default_factory=list)
    run: Run = field(default_factory=Run)
    lost: bool = False


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    measuring = Measuring()
    with quick(measuring), Play(tmp_path / "world", measuring) as found:
        yield found


def run(play: Play, *steps: Step) -> None:
    """Take these steps, and let all come to rest."""
    for step in steps:
        play.step(step.deeds, 2, step.run, lost=step.lost)
    play.rest()


def statuses(play: Play, repo_id: str = ONE) -> list[str]:
    return [pull["status"] for pull in play.ground.pulls(repo_id)]


def n_commits(play: Play, repo_id: str = ONE) -> int:
    """Commits of the bot to its newest pull."""
    return len([one for one in play.judge.pushed(repo_id, play.ground.pulls(repo_id)[-1]) if one.author == BOT])


def upload(mark: int = 5) -> Deed:
    return Deed("upload", BOB, ("Q6_K", mark))


def say(what: str, repo: int = BOB) -> Deed:
    return Deed("say", repo, what)


@pytest.mark.parametrize("kind", ["lost", "cut", "slow", "500", "429", "429 budget", "412"])
def test_a_fault_while_pulls_are_opened_and_changed(play: Play, kind: str) -> None:
    run(play, Step(run=Faulty(kind, "commit", 0)), Step(), Step([upload()], Faulty(kind, "commit", 0)))
    assert statuses(play) == ["open"] and n_commits(play) == 2


@pytest.mark.parametrize("function", ["Hub.open_pull", "Results.save_pull", "Publishing.note", "Results.drop_lease"])
def test_a_kill_around_the_opening_of_a_pull(play: Play, function: str) -> None:
    """Before the request, between the Hub's work and our note of it, and after that."""
    run(play, Step(run=KilledIn(function)))
    assert statuses(play) == ["open"] and n_commits(play) == 1


@pytest.mark.parametrize("function", ["Hub.update_pull", "Hub._edit_body", "Results.save_pull"])
def test_a_kill_around_an_update(play: Play, function: str) -> None:
    run(play, Step(), Step([upload()], KilledIn(function)))
    assert statuses(play) == ["open"] and n_commits(play) == 2


@pytest.mark.parametrize("function", ["Hub.comment", "Answers.add", "Answers.said", "Publishing.note"])
@pytest.mark.parametrize("what", ["remeasure", "dispute"])
def test_a_kill_around_an_answer(play: Play, function: str, what: str) -> None:
    run(play, Step(), Step([say(what)], KilledIn(function)))
    said = [event for event in play.judge.comments(play.ground.pulls(ONE)[0]) if event["author"] == BOT]
    assert sum("quantcard:answer" in str(event) for event in said) == 1


@pytest.mark.parametrize("function", ["Hub.close_pull", "Results.save_pull", "Answers.said"])
def test_a_kill_around_a_stop(play: Play, function: str) -> None:
    run(play, Step(), Step([say("stop"), upload()], KilledIn(function)), Step([upload(6)]))
    assert statuses(play) == ["closed"] and n_commits(play) == 1


@pytest.mark.parametrize(
    ("deed", "left", "commits"), [("push", ["open"], 1), ("close", ["closed"], 1), ("merge", ["merged", "open"], 1)]
)
def test_people_act_between_our_look_and_our_commit(play: Play, deed: str, left: list[str], commits: int) -> None:
    run(play, Step(), Step([upload()], Meanwhile(0, Deed(deed, BOB), "commit")), Step([upload(6)]))
    assert statuses(play) == left and n_commits(play) == commits


def test_the_owner_edits_the_card_between_our_look_and_our_commit(play: Play) -> None:
    edit = Deed("edit", BOB, "append")
    run(play, Step(run=Meanwhile(0, edit, "commit")), Step([upload()], Meanwhile(0, edit, "commit")))
    assert statuses(play)[-1] == "open" and (play.ground.read(ONE, MAIN, README) or b"").count(b"Words") == 2


@pytest.mark.parametrize(("config", "left"), [("no", "closed"), ("wrong", "open")])
def test_an_owner_says_no_in_the_repo_while_a_pull_is_open(play: Play, config: str, left: str) -> None:
    run(play, Step(), Step([Deed("configure", BOB, config), upload()]))
    assert statuses(play) == [left] and n_commits(play) == 1


def test_a_no_after_many_words_is_heard_before_anything_is_written(play: Play) -> None:
    run(play, Step(), Step([Deed("rant", BOB, "stop"), upload()]))
    assert statuses(play) == ["closed"] and n_commits(play) == 1


def test_a_closed_pull_is_no_even_if_more_was_asked_for_before(play: Play) -> None:
    run(play, Step(), Step([say("remeasure"), Deed("close", BOB)]))
    assert statuses(play) == ["closed"]


def test_a_lost_database_keeps_every_no_and_every_answer(play: Play) -> None:
    said = Step([say("dispute"), say("stop", ALICE), Deed("hide", BOB, "first")])
    lost = Step([upload(), Deed("upload", ALICE, ("Q6_K", 5))], lost=True)
    run(play, Step(), said, Step([Deed("close", BOB)]), lost)
    assert statuses(play) == ["closed"] == statuses(play, REPOS[ALICE])


def test_a_first_comment_that_was_hidden_makes_no_second_pull(play: Play) -> None:
    run(play, Step(), Step([Deed("hide", BOB, "first")], lost=True))
    assert statuses(play) == ["open"]


def test_a_pull_opened_again_beside_its_successor_makes_no_third(play: Play) -> None:
    behind = Deed("edit", BOB, "line behind ours")
    play.step([], 2, Run())
    play.step([behind], 25, Run())
    assert statuses(play) == ["closed", "open"]
    play.step([Deed("reopen older", BOB)], 2, Run(), lost=True)
    play.step([behind], 50, Run())
    play.rest()
    assert statuses(play) == ["open", "open"]


def test_an_introduction_whose_answer_was_lost_is_not_made_elsewhere(play: Play) -> None:
    """The owner's other repo comes first the next time, since the one with the pull can't be asked just then."""
    run(play, Step(run=KilledIn("Publishing.note")), Step(run=Faulty("lost", "commit", 0)), Step(), Step())
    for nth in range(6):
        play.step([], 2, Faulty("412", "discussions", nth))
    theirs = [statuses(play, repo_id) for repo_id in REPOS if repo_id.startswith("alice/")]
    assert sorted(theirs) == [[], ["open"]]


def test_files_that_owners_share_are_measured_for_the_other_one_still(play: Play) -> None:
    """One asks for a new measurement and then has no reference any more: the others' jobs are not lost with it."""
    acts = [say("dispute", ALICE), Deed("remove", ALICE, "F16"), Deed("upload", BOB, ("Q8_0", 2))]
    play.step([], 2, Run())
    play.step(acts, 2, Run(), paused=True)
    play.rest()


def test_data_that_is_wanted_no_more_leaves_the_pull(play: Play) -> None:
    run(play, Step(), Step([Deed("configure", BOB, "file")]), Step([Deed("configure", BOB, "no data")]))


def test_a_kill_at_any_line_of_publishing(tmp_path: Path) -> None:
    """Pulls are opened by one process that is killed, changed and answered on by another one."""
    measuring = Measuring()
    with quick(measuring):
        for line in range(EVERY // 2, 2400, EVERY):
            with Play(tmp_path / str(line), measuring) as play:
                acts = [upload(), say("dispute"), Deed("merge", ALICE)]
                run(play, Step(run=Killed(line, "publishing")), Step(acts, Killed(line, "publishing", line % 2 == 0)))
                assert statuses(play)[-1] == "open", line


# bugs on purpose: the Hub as a bot with that bug would see or use it

Seen = Callable[[HubPull], HubPull]


def sees(change: Seen) -> list[tuple[Any, str, Any]]:
    """A bot that sees pulls otherwise than they are."""
    listed, read = Hub.my_pulls, Hub.pull
    return [
        (Hub, "my_pulls", lambda self, repo_id: [change(one) for one in listed(self, repo_id)]),
        (Hub, "pull", lambda self, repo_id, num: change(read(self, repo_id, num))),
    ]


def commits(change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[tuple[Any, str, Any]]:
    """A bot that commits something else; ``change`` gets and gives the arguments."""
    opened, updated = Hub.open_pull, Hub.update_pull
    return [
        (Hub, "open_pull", lambda self, repo_id, **more: opened(self, repo_id, **change(more))),
        (Hub, "update_pull", lambda self, repo_id, num, **more: updated(self, repo_id, num, **change(more))),
    ]


def tidy(more: dict[str, Any]) -> dict[str, Any]:
    """The card without white space at the ends of its lines, above our section."""
    above, marker, rest = more["files"][README].rpartition(BEGIN)
    return {**more, "files": {README: b"\r\n".join(line.rstrip() for line in above.split(b"\n")) + marker + rest}}


def without_config(real: Any) -> Any:
    return lambda self, repo_id, path, **more: None if path == CONFIG else real(self, repo_id, path, **more)


def without_words_of(name: str) -> Seen:
    return lambda pull: replace(pull, comments=tuple(one for one in pull.comments if one.author != name))


def agreed(real: Any) -> Any:
    return lambda self, repo_id: follow and replace(follow, consented=True) if (follow := real(self, repo_id)) else None


_numbers = itertools.count()
BUGS: dict[str, tuple[list[tuple[Any, str, Any]], list[Step], str]] = {
    "finds no pull again": ([(Hub, "my_pulls", lambda *_: [])], [Step(), Step(lost=True)], "open pulls"),
    "takes no for nothing": (
        sees(lambda pull: replace(pull, status="merged") if pull.status == "closed" else pull),
        [Step(), Step([Deed("close", BOB)]), Step([upload()])],
        "is closed",
    ),
    "commits behind humans": (
        commits(lambda more: {**more, "parent": None}),
        [Step(), Step([upload()], Meanwhile(0, Deed("push", BOB), "commit"))],
        "behind a human",
    ),
    "tidies the card": (commits(tidy), [Step([Deed("edit", BOB, "messy")])], "outside the markers"),
    "brings a file along": (
        commits(lambda more: {**more, "files": {**more["files"], "by.txt": b"us"}}),
        [Step()],
        "touches",
    ),
    "does not hear its owner": (
        sees(without_words_of("bob")),
        [Step(), Step([say("stop"), upload()])],
        "its owner said stop",
    ),
    "forgets what it answered": (
        sees(without_words_of(BOT)),
        [Step(), Step([say("unknown")]), Step(lost=True)],
        "said twice",
    ),
    "obeys strangers": (
        sees(lambda pull: replace(pull, comments=tuple(replace(one, owner=True) for one in pull.comments))),
        [Step(), Step([Deed("shout", BOB, "dispute")])],
        "no owner asked",
    ),
    "introduces itself twice": ([(Repos, "follow_of", agreed(Repos.follow_of))], [Step()], "did not consent"),
    "writes without end": (
        [("bot.publish.section", "figures_key", lambda _: f"{next(_numbers):012x}")],
        [Step()],
        "still writing",
    ),
    "never updates": (
        [(Hub, "update_pull", lambda _self, _repo, num, **_: Committed("0" * 40, num))],
        [Step(), Step([upload()])],
        "tells",
    ),
    "reads no .quantcard.yml": (
        [(Hub, "read", without_config(Hub.read))],
        [Step([Deed("configure", BOB, "no")])],
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
