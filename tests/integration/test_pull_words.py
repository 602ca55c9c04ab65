"""What owners say on our pulls, against localhub: done and answered once, whatever gets lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import BOT, REPO, UP, UP_TOKEN, World, quant
from test_pull_manners import NOON, did, lose_database, opened, texts_on, visit

from bot.publish.manners import DAY
from bot.store import Store
from core.errors import HubUnreachableError
from localhub import seed


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        opened(found)
        yield found


def say(world: World, text: str, *, token: str = UP_TOKEN, num: int = 1) -> None:
    world.api(token).comment_discussion(REPO, num, text)


def answers(world: World, num: int = 1) -> list[str]:
    events = world.api().get_discussion_details(REPO, num).events
    ours = [event.content for event in events if event.type == "comment" and event.author == BOT]
    return [text for text in ours if "quantcard:answer" in text]


def jobs(world: World) -> dict[str, int]:
    with Store(world.settings().db) as store:
        return store.jobs.counts()


def stopped(world: World) -> str | None:
    with Store(world.settings().db) as store:
        repo = store.repos.repo(REPO)
        assert repo is not None
        return repo.stopped


def status(world: World) -> list[tuple[int, str]]:
    return [(pull.num, pull.status) for pull in world.pulls()]


def test_only_owners_are_heard(world: World) -> None:
    seed.create_user(world.root, "stranger", token="hf_stranger")
    say(world, "/quantcard stop", token="hf_stranger")
    say(world, "> /quantcard stop\n\nNo, do go on.")
    assert did(visit(world)) == "nothing" and answers(world) == []
    assert stopped(world) is None and status(world) == [(1, "open")]


def test_a_strangers_marker_answers_nothing(world: World) -> None:
    seed.create_user(world.root, "stranger", token="hf_stranger")
    say(world, "/quantcard help")
    event = world.api().get_discussion_details(REPO, 1).events[-1]
    say(world, f"<!-- quantcard:answer to={event.id} -->", token="hf_stranger")
    visit(world)
    assert len(answers(world)) == 1


def test_members_of_the_organisation_are_owners(tmp_path: Path) -> None:
    repo = "some-org/demo-GGUF"
    with World(tmp_path) as world:
        seed.create_user(world.root, "some-org", is_org=True, members=(UP,))
        world.usual(repo)
        world.follow("some-org")
        visit(world, repo)
        world.api().comment_discussion(repo, 1, "/quantcard stop")
        visit(world, repo)
        assert [pull.status for pull in world.pulls(repo)] == ["closed"]


def test_stop_closes_the_pull_and_only_its_owner_calls_us_back(world: World) -> None:
    say(world, "Thanks, but no.\n\n/quantcard stop")
    assert did(visit(world)) == "nothing"
    assert status(world) == [(1, "closed")] and stopped(world) == UP
    [answer] = answers(world)
    assert "I close this pull" in answer
    # Reopened by hand, or with new files: still no.
    world.api().change_discussion_status(REPO, 1, "open")
    before = world.card("refs/pr/1")
    world.upload({"second/demo-Q8_0.gguf": quant("Q8_0")})
    again = visit(world)
    assert did(again) == "nothing" and "told us to stop" in again.decision.reason
    assert world.card("refs/pr/1") == before and len(answers(world)) == 1
    say(world, "/quantcard remeasure")
    visit(world)
    assert stopped(world) is None and len(answers(world)) == 2
    visit(world, now=NOON + 60)
    assert len(answers(world)) == 2 and len(world.pulls()) == 1


def test_a_stop_survives_a_lost_database_and_lost_responses(world: World) -> None:
    say(world, "/quantcard stop")
    world.faults.drop(rf"/api/models/{REPO}/discussions/1/status$", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    assert stopped(world) == UP and status(world) == [(1, "closed")]
    assert did(visit(world)) == "nothing" and len(answers(world)) == 1
    lose_database(world)
    world.upload({"second/demo-Q8_0.gguf": quant("Q8_0")})
    visit(world)
    assert stopped(world) == UP and len(answers(world)) == 1 and status(world) == [(1, "closed")]


def test_an_answer_that_was_never_given_is_given_later_and_what_was_done_is_not_done_twice(world: World) -> None:
    say(world, "/quantcard remeasure")
    world.faults.fail(rf"/api/models/{REPO}/discussions/1/comment$", status=500, method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    waiting = jobs(world)["todo"]
    assert waiting and answers(world) == []
    visit(world)
    [answer] = answers(world)
    assert "measured again" in answer and jobs(world)["todo"] == waiting


def test_remeasure_queues_everything_once_a_day(world: World) -> None:
    say(world, "/quantcard remeasure")
    visit(world)
    assert jobs(world)["todo"] == 4 and "Every file here is measured again" in answers(world)[0]
    say(world, "/QUANTCARD Remeasure")
    visit(world, now=NOON + 3600)
    assert len(answers(world)) == 2 and "ask again after 2027-01-16 12:00 UTC" in answers(world)[1]
    report = world.cycle()
    assert report.jobs_done == 4 and report.exit_code == 0
    say(world, "/quantcard remeasure")
    visit(world, now=NOON + DAY + 1)
    assert jobs(world)["todo"] == 4 and len(answers(world)) == 3 and len(world.pulls()) == 1


def test_a_closed_pull_is_reopened_when_its_owner_asks_and_never_opened_anew(world: World) -> None:
    world.api().change_discussion_status(REPO, 1, "closed")
    assert did(visit(world)) == "nothing"
    say(world, "/quantcard remeasure")
    world.faults.drop(rf"/api/models/{REPO}/discussions/1/status$", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world)
    assert did(visit(world)) != "open" and status(world) == [(1, "open")]
    [answer] = answers(world)
    assert "I reopen this pull" in answer
    world.cycle()
    assert status(world) == [(1, "open")] and len(answers(world)) == 1
    with Store(world.settings().db) as store:
        assert store.answers.asked(REPO)


def test_a_dispute_stands_beside_the_figures_until_it_is_closed(world: World) -> None:
    say(world, "/quantcard dispute Q8_0 is **0.0001** here, see <img src=x>")
    visit(world)
    [answer] = answers(world)
    assert "shown beside these figures" in answer and "measured again" in answer
    world.cycle()
    assert did(visit(world)) in ("update", "nothing")
    card = world.card("refs/pr/1").decode()
    assert "Disputed by this repo's owner" in card and r"\*\*0.0001\*\*" in card and "<img" not in card
    with Store(world.settings().db) as store:
        [dispute] = store.answers.disputes()
        assert (dispute.state, dispute.author, dispute.num) == ("open", UP, 1)
    assert all(row.disputed for (repo, _, _), row in world.rows().items() if repo == REPO)
    # A new database learns of it from the Hub.
    lose_database(world)
    visit(world)
    visit(world)
    assert len(answers(world)) == 1 and "Disputed by" in world.card("refs/pr/1").decode()
    with Store(world.settings().db) as store:
        [dispute] = store.answers.disputes()
        assert store.answers.close_dispute(dispute.id, note="Another machine agrees with us.") is not None
        assert store.answers.close_dispute(dispute.id, note="twice") is None
    assert did(visit(world)) == "update" and "Disputed by" not in world.card("refs/pr/1").decode()
    [told] = [text for text in texts_on(world) if "quantcard:settled" in text]
    assert "Another machine agrees with us." in told
    lose_database(world)
    visit(world)
    visit(world)
    assert len(texts_on(world)) == 3 and "Disputed by" not in world.card("refs/pr/1").decode()


def test_what_is_not_understood_gets_one_list_of_words(world: World) -> None:
    say(world, "/quantcard please\n/quantcard go on\n/quantcard dispute")
    for _ in range(2):
        assert did(visit(world)) == "nothing"
    [answer] = answers(world)
    assert "`/quantcard remeasure`" in answer and "`/quantcard dispute TEXT`" in answer
    assert stopped(world) is None and status(world) == [(1, "open")]


def test_many_comments_are_answered_in_turns(world: World) -> None:
    for number in range(7):
        say(world, f"/quantcard what {number}")
    visit(world)
    assert len(answers(world)) == 5
    visit(world)
    assert len(answers(world)) == 7


def test_owners_are_heard_while_measurements_run_and_on_a_pull_that_they_committed_to(world: World) -> None:
    from huggingface_hub import CommitOperationAdd

    theirs = [CommitOperationAdd(path_in_repo="notes.txt", path_or_fileobj=b"mine")]
    world.api().create_commit(REPO, theirs, commit_message="mine", revision="refs/pr/1")
    world.upload({"demo-Q6_K.gguf": quant("Q6_K")})
    say(world, "/quantcard stop")
    assert did(visit(world)) == "nothing" and status(world) == [(1, "closed")]


def test_in_a_dry_run_words_are_only_told(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    say(world, "/quantcard stop")
    visit(world, dry_run=True)
    shown = capfd.readouterr()
    assert "change_discussion_status(" in shown.out and "'closed'" in shown.out and "Would close pull 1" in shown.err
    assert status(world) == [(1, "open")] and stopped(world) is None and answers(world) == []
