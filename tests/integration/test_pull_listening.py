"""Where owners' words are heard, what is ours on the Hub, and what hidden comments tell: against localhub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bot_helpers import BOT, CARD, REPO, UP, World
from test_pull_manners import (
    NOON,
    OTHER,
    did,
    lose_database,
    opened,
    requests,
    texts_on,
    visit,
    worsen,
)  # fmt: skip
from test_pull_words import answers, jobs, say, status, stopped

from bot.hub.client import Hub
from bot.publish.manners import DAY
from bot.store import Store
from core.errors import HubUnreachableError
from localhub import seed

HOUR = 3600.0
STRANGER = "hf_stranger"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        seed.create_user(found.root, "stranger", token=STRANGER)
        opened(found)
        yield found


def conflict(world: World, words: str = "Words") -> None:
    """The owner changes the card's last line, behind which our section would stand."""
    world.upload({"README.md": CARD.replace("Some words.", f"{words} of the owner.").encode()})


def replaced(world: World, *, now: float = NOON + DAY) -> None:
    conflict(world)
    assert did(visit(world, now=now)) == "open" and status(world) == [(1, "closed"), (2, "open")]


def merged(world: World) -> None:
    """The first pull is merged, and a second one opened since."""
    world.api().merge_pull_request(REPO, 1)
    visit(world)
    worsen(world, 40.0)
    assert did(visit(world, now=NOON + HOUR)) == "open" and status(world) == [(1, "merged"), (2, "open")]


def close(world: World, num: int = 1) -> None:
    world.api().change_discussion_status(REPO, num, "closed", comment="No, I changed my mind.")


def hide(world: World, num: int = 1, *, first: bool = False) -> None:
    """The owner hides all that we said on a pull, with ``first`` its first comment."""
    events = [one for one in world.api().get_discussion_details(REPO, num).events if one.type == "comment"]
    for one in events[:1] if first else events[1:]:
        if one.author == BOT and not one.hidden:
            world.api().hide_discussion_comment(REPO, num, one.id)


def n_said(world: World, num: int = 1) -> int:
    """Our comments after the first, hidden or not."""
    events = world.api().get_discussion_details(REPO, num).events
    return len([one for one in events if one.type == "comment" and one.author == BOT]) - 1


def asked_already(world: World, *, now: float = NOON) -> None:
    """Files were measured anew within the day, so that nothing is queued."""
    with Store(world.settings().db) as store:
        store.results.put(f"remeasured:{REPO}", repr(now))


def stored(world: World) -> list[tuple[int, str]]:
    with Store(world.settings().db) as store:
        return [(pull.num, pull.status) for pull in store.results.pulls(REPO)]


# what is ours


def test_somebody_elses_discussion_under_an_old_number_is_left_alone(world: World) -> None:
    world.api().delete_repo(REPO)
    world.usual(**{".quantcard.yml": b"columns: [kdl]\n"})
    world.api(STRANGER).create_discussion(REPO, title="Great model", description="How do I run this?")
    assert did(visit(world, now=NOON + DAY)) == "nothing" and stored(world) == []
    say(world, "/quantcard stop")
    world.upload({".quantcard.yml": b"enabled: true\n"})
    assert did(visit(world, now=NOON + 2 * DAY)) == "open" and stored(world) == [(2, "open")]
    events = world.api().get_discussion_details(REPO, 1).events
    assert [one.author for one in events if one.type == "comment"] == ["stranger", UP] and stopped(world) is None


def test_somebody_elses_closed_pull_is_no_no(world: World) -> None:
    world.api().delete_repo(REPO)
    world.usual()
    theirs = world.api(STRANGER).create_pull_request(REPO, title="A better card")
    world.api().change_discussion_status(REPO, theirs.num, "closed")
    assert did(visit(world, now=NOON + DAY)) == "open" and stored(world) == [(2, "open")]


def test_a_stranger_with_our_marker_is_none_of_us(world: World) -> None:
    body = world.api().get_discussion_details(REPO, 1).events[0].content
    world.api().delete_repo(REPO)
    world.usual()
    theirs = world.api(STRANGER).create_pull_request(REPO, title="A better card", description=body)
    say(world, "/quantcard what")
    word = world.api().get_discussion_details(REPO, theirs.num).events[-1]
    say(world, f"<!-- quantcard:answer to={word.id} -->", token=STRANGER)
    visit(world, now=NOON + DAY)
    assert len(answers(world)) == 1, "their marker answers nothing"
    with Store(world.settings().db) as store:
        assert "stranger" not in store.results.accounts()


@pytest.mark.parametrize("anew", [True, False])
def test_a_pull_that_is_no_more_is_a_no_unless_its_repo_was_made_anew(world: World, anew: bool) -> None:
    visit(world)
    world.api().delete_repo(REPO)
    world.usual()
    with Store(world.settings().db) as store:
        # The test's clock is ahead of the Hub's.
        opened_at = time.time() + (-HOUR if anew else HOUR)
        store.db.conn.execute("UPDATE pulls SET created_at = ?", (opened_at,))
    assert did(visit(world, now=NOON + DAY)) == ("open" if anew else "nothing")
    assert stored(world) == [(1, "open" if anew else "closed")] and len(world.pulls()) == anew


@pytest.mark.parametrize("closed", [False, True])
def test_a_pull_whose_marker_is_hidden_is_known_by_what_it_was_called(world: World, closed: bool) -> None:
    hide(world, first=True)
    world.api().rename_discussion(REPO, 1, "Figures")
    if closed:
        world.api().change_discussion_status(REPO, 1, "closed")
    lose_database(world)
    assert did(visit(world)) in ("nothing", "update") and len(world.pulls()) == 1


def test_a_marker_behind_a_long_text_is_found(world: World) -> None:
    hub = Hub(endpoint=world.server.url, token=None)
    first = world.api().get_discussion_details(REPO, 1).events[0]
    long = first.content.replace("\n\n<!-- quantcard", "\n\n" + "x" * 40_000 + "\n\n<!-- quantcard")
    world.api("hf_bot").edit_discussion_comment(REPO, 1, first.id, long)
    assert hub.pull(REPO, 1).body.rstrip() == long.rstrip()


# the order of words and closings


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_asked_before_the_closing_reopens_nothing(world: World, lost: bool) -> None:
    say(world, "/quantcard remeasure")
    close(world)
    for hours in (1, 2):
        visit(world, now=NOON + hours * HOUR)
        assert status(world) == [(1, "closed")]
        if lost:
            lose_database(world)
    [answer] = answers(world)
    assert "stays closed" in answer
    with Store(world.settings().db) as store:
        assert not store.answers.asked(REPO), "no consent"
    # Asked for after it, it is opened again, and counts.
    say(world, "/quantcard remeasure")
    visit(world, now=NOON + 3 * HOUR)
    assert status(world) == [(1, "open")] and len(answers(world)) == 2
    with Store(world.settings().db) as store:
        assert store.answers.asked(REPO)


def test_an_answered_wish_reopens_nothing_after_a_closing_a_lost_database_and_a_hidden_answer(world: World) -> None:
    say(world, "/quantcard remeasure")
    visit(world)
    hide(world)
    close(world)
    lose_database(world)
    assert did(visit(world, now=NOON + 2 * DAY)) == "nothing"
    assert status(world) == [(1, "closed")] and n_said(world) == 1


def test_a_wish_from_before_the_closing_lifts_no_stop(world: World) -> None:
    say(world, "/quantcard stop")
    visit(world)
    world.api().change_discussion_status(REPO, 1, "open")
    say(world, "/quantcard remeasure")
    close(world)
    visit(world, now=NOON + HOUR)
    assert stopped(world) == UP and status(world) == [(1, "closed")]
    assert "closed after you wrote that" in answers(world)[-1] and "todo" not in jobs(world)


def test_of_two_words_that_were_not_heard_yet_the_later_one_holds(world: World) -> None:
    close(world)
    say(world, "/quantcard remeasure")
    say(world, "/quantcard stop")
    visit(world, now=NOON + HOUR)
    assert stopped(world) == UP and status(world) == [(1, "closed")]
    stop, again = answers(world)
    assert "I leave this repo alone" in stop and "told me to stop after that" in again


# hidden comments


def wrong_file(world: World, n: int) -> None:
    world.upload({".quantcard.yml": b"columns: [kdl]\n" + b"#" * n})


def wrong_file_once(world: World, n: int) -> None:
    if not n:
        wrong_file(world, n)


def other_figures(world: World, n: int) -> None:
    worsen(world, 0.025 if n % 2 else 40.0)


@pytest.mark.parametrize("deed", [wrong_file, wrong_file_once, other_figures])
@pytest.mark.parametrize("lost", [False, True])
def test_where_a_comment_of_ours_was_hidden_no_more_is_said_unasked(
    world: World, deed: Callable[[World, int], None], lost: bool
) -> None:
    for n in range(4):
        deed(world, n)
        visit(world, now=NOON + n * 2 * DAY)
        hide(world)
        if lost and deed is not other_figures:
            lose_database(world)
    assert n_said(world) == 1
    world.upload({".quantcard.yml": b"enabled: true\n"})
    say(world, "/quantcard what")
    visit(world, now=NOON + 9 * DAY)
    assert n_said(world) == 2, "what they say after that is answered"


def test_a_first_comment_that_was_hidden_says_the_same(world: World) -> None:
    hide(world, first=True)
    wrong_file(world, 0)
    visit(world)
    assert n_said(world) == 0


def test_answers_that_were_hidden_are_not_given_again(world: World) -> None:
    say(world, "/quantcard what")
    say(world, "/quantcard dispute wrong")
    for _ in range(3):
        visit(world)
        hide(world)
    assert n_said(world) == 2
    lose_database(world)
    visit(world)
    assert n_said(world) == 2
    with Store(world.settings().db) as store:
        assert store.answers.disputed(REPO) == "wrong"


@pytest.mark.parametrize("lost", [False, True])
def test_a_replacement_that_was_hidden_or_followed_by_an_answer_is_still_one(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    def away(*_: object, **__: object) -> None:
        raise HubUnreachableError("The Hub is away.")

    conflict(world)
    with monkeypatch.context() as patch:
        patch.setattr(Hub, "open_pull", away)
        with pytest.raises(HubUnreachableError):
            visit(world, now=NOON + DAY)
        say(world, "/quantcard what")
        with pytest.raises(HubUnreachableError):
            visit(world, now=NOON + DAY + HOUR)
    if lost:
        lose_database(world)
    else:
        hide(world)
    assert did(visit(world, now=NOON + DAY + 2 * HOUR)) == "open" and status(world) == [(1, "closed"), (2, "open")]
    assert stored(world) == [(1, "replaced"), (2, "open")]


# older pulls


@pytest.mark.parametrize("older", [replaced, merged])
@pytest.mark.parametrize("lost", [False, True])
def test_a_stop_on_an_older_pull_is_heard_within_a_day(
    world: World, older: Callable[[World], None], lost: bool
) -> None:
    older(world)
    now = NOON + 2 * DAY
    visit(world, now=now)
    say(world, "/quantcard stop")
    assert status(world)[1] == (2, "open")
    visit(world, now=now + HOUR)
    assert status(world)[1] == (2, "open"), "not at every look"
    if lost:
        lose_database(world)
    assert "told us to stop" in visit(world, now=now + DAY).decision.reason
    assert status(world)[1] == (2, "closed") and stopped(world) == UP
    assert answers(world) == [] and "I was told on pull 1 to stop" in answers(world, 2)[0]
    lose_database(world)
    assert "told us to stop" in visit(world, now=now + DAY + HOUR).decision.reason
    assert len(answers(world, 2)) == 1 and answers(world) == []
    # The last word holds, also between looks at the older one.
    say(world, "/quantcard remeasure", num=2)
    visit(world, now=now + DAY + 2 * HOUR)
    visit(world, now=now + DAY + 3 * HOUR)
    assert stopped(world) is None and status(world)[1] == (2, "open")


def test_older_pulls_are_heard_before_a_new_one_is_opened(world: World) -> None:
    merged(world)
    world.api().merge_pull_request(REPO, 2)
    visit(world, now=NOON + 2 * HOUR)
    say(world, "/quantcard stop", num=2)
    worsen(world, 30.0)
    assert "told us to stop" in visit(world, now=NOON + 3 * HOUR).decision.reason


def test_older_pulls_are_heard_before_one_is_replaced(world: World) -> None:
    merged(world)
    visit(world, now=NOON + DAY)
    say(world, "/quantcard stop")
    conflict(world)
    assert "told us to stop" in visit(world, now=NOON + DAY + 2 * HOUR).decision.reason
    assert status(world) == [(1, "merged"), (2, "closed")]


def test_looks_at_older_pulls_cost_little(world: World) -> None:
    merged(world)
    assert requests(world) == ["api"] * 3, "the open one, whose token it is, and once a day the older one"
    assert requests(world) == ["api"] * 2


def test_a_wish_on_an_older_pull_opens_no_second_one(world: World) -> None:
    replaced(world)
    say(world, "/quantcard remeasure")
    visit(world, now=NOON + 3 * DAY)
    assert status(world) == [(1, "closed"), (2, "open")]
    [answer] = answers(world)
    assert "measured again" in answer and "reopen" not in answer


# a comment that is edited


@pytest.mark.parametrize("lost", [False, True])
def test_an_answered_comment_that_becomes_a_stop_is_heard(world: World, lost: bool) -> None:
    say(world, "/quantcard what is this")
    visit(world)
    word = world.api().get_discussion_details(REPO, 1).events[-2]
    world.api().edit_discussion_comment(REPO, 1, word.id, "Enough.\n\n/quantcard stop")
    if lost:
        lose_database(world)
    world.faults.drop(rf"/api/models/{REPO}/discussions/1/status$", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world, now=NOON + HOUR)
    for hours in (2, 3):
        visit(world, now=NOON + hours * HOUR)
    assert status(world) == [(1, "closed")] and stopped(world) == UP and len(answers(world)) == 2
    world.api().edit_discussion_comment(REPO, 1, word.id, "/quantcard stop it")
    visit(world, now=NOON + 4 * HOUR)
    assert len(answers(world)) == 2


# disputes


def disputed(world: World) -> None:
    asked_already(world)
    say(world, "/quantcard dispute wrong")
    visit(world, now=NOON + 60)
    asked_already(world, now=NOON + DAY)
    replaced(world)


def end_dispute(world: World) -> None:
    with Store(world.settings().db) as store:
        [dispute] = [one for one in store.answers.disputes() if one.state == "open"]
        store.answers.close_dispute(dispute.id, note="It is fine.")


def test_a_dispute_is_shown_at_once_and_decided_about_again_soon(world: World) -> None:
    asked_already(world)
    say(world, "/quantcard dispute wrong")
    with Store(world.settings().db) as store:
        before = store.publishing.touches(REPO)
    assert did(visit(world, now=NOON + 60)) == "update"
    assert "Disputed by" in world.card("refs/pr/1").decode() and "With the next update" in answers(world)[0]
    with Store(world.settings().db) as store:
        assert store.publishing.touches(REPO) > before


def test_the_end_of_a_dispute_is_told_where_we_are_now(world: World) -> None:
    disputed(world)
    end_dispute(world)
    world.faults.drop(rf"/api/models/{REPO}/discussions/2/comment$", method="POST")
    with pytest.raises(HubUnreachableError):
        visit(world, now=NOON + DAY + HOUR)
    for hours in (2, 3):
        visit(world, now=NOON + DAY + hours * HOUR)
    told = [[text for text in texts_on(world, num) if "quantcard:settled" in text] for num in (1, 2)]
    assert [len(texts) for texts in told] == [0, 1] and "It is fine." in told[1][0]
    lose_database(world)
    visit(world, now=NOON + 4 * DAY)
    assert "Disputed by" not in world.card("refs/pr/2").decode() and n_said(world, 2) == 1


def test_an_open_dispute_survives_a_replacement_and_a_lost_database(world: World) -> None:
    disputed(world)
    lose_database(world)
    for now in (NOON + 3 * DAY, NOON + 3 * DAY + HOUR):
        assert did(visit(world, now=now)) == "nothing" and "Disputed by" in world.card("refs/pr/2").decode()
    assert len(answers(world)) == 1 and answers(world, 2) == []


def test_an_accounts_word_in_another_repo_is_not_heard_here(world: World) -> None:
    world.usual(OTHER)
    seed.create_user(world.root, "quantbot-two", token="hf_two")
    visit(world, hf_token="hf_two")
    say(world, "/quantcard what")
    visit(world)
    visit(world, hf_token="hf_two")
    assert len(answers(world)) == 1, "what the other account of ours answered is answered"
