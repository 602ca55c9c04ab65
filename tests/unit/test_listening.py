"""Which older pulls are listened to, what hidden comments tell, and what the store knows of pulls and words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.hub.door import Comment, HubPull
from bot.publish import pull_texts as texts
from bot.publish.found import Found
from bot.publish.listening import MOST_OTHERS, to_hear
from bot.publish.manners import DAY, PullView
from bot.publish.remarks import Remarks, last_hidden
from bot.store import Store
from bot.store.results import StoredPull

NOW = 1_800_000_000.0
US, REPO = {"bot", "bot-two"}, "up/demo-GGUF"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "bot.db") as found:
        yield found


def others(*pulls: tuple[int, str], old: tuple[int, ...] = ()) -> list[int]:
    """The pulls that are listened to besides the last of these."""
    found = [Found(PullView(num, status, "k")) for num, status in pulls]
    stored = {
        num: StoredPull(REPO, num, "k", status, None, NOW - (91 if num in old else 1) * DAY) for num, status in pulls
    }
    return to_hear(found, stored, main=pulls[-1][0] if pulls else None, now=NOW)


def test_the_newest_of_each_status_and_what_was_replaced_lately_is_listened_to() -> None:
    assert others() == others((1, "open")) == []
    assert others((1, "merged"), (2, "merged"), (3, "open")) == [2]
    assert others((1, "merged"), (2, "closed"), (3, "replaced"), (4, "open")) == [3, 2, 1]
    assert others((1, "replaced"), (2, "replaced"), (3, "replaced"), (4, "open")) == [3, 2, 1]
    assert others((1, "replaced"), (2, "replaced"), (3, "open"), old=(1, 2)) == [2], "the newest one always"
    assert others((1, "draft"), (2, "open"), (3, "open")) == [2]
    many = [(n, ("replaced", "merged", "closed")[n % 3]) for n in range(1, 30)]
    assert others(*many) == [28, 27, 26] and len(others(*many)) == MOST_OTHERS


def pull(*comments: Comment, body_hidden: bool = False) -> HubPull:
    return HubPull(1, "t", "open", "u", author="bot", comments=comments, body_hidden=body_hidden)


def said(place: int, author: str, text: str = "", *, hidden: bool = False) -> Comment:
    return Comment(f"c{place}", author, owner=False, text=text, place=place, hidden=hidden)


def test_only_what_is_hidden_of_ours_tells_that_we_are_unwelcome(store: Store) -> None:
    assert last_hidden(pull(said(2, "bot"), said(3, "up", hidden=True)), US) == -1
    assert last_hidden(pull(said(2, "bot", hidden=True), said(4, "bot-two", hidden=True), said(5, "bot")), US) == 4
    assert last_hidden(pull(body_hidden=True), US) == 0 and last_hidden(pull(body_hidden=True), {"another"}) == -1
    told = Remarks(store, REPO, pull(said(2, "bot", hidden=True)), us=US)
    assert not told.may_tell_problem("0123456789ab") and not told.may_tell_changes(now=NOW)


def test_what_was_said_is_known_by_the_hub_and_by_the_store(store: Store) -> None:
    config = texts.config_comment("A problem.", digest="0123456789ab")
    by_hub = Remarks(store, REPO, pull(said(2, "bot-two", config)), us=US)
    assert not by_hub.may_tell_problem("0123456789ab") and by_hub.may_tell_problem("ffffffffffff")
    by_stranger = Remarks(store, REPO, pull(said(2, "stranger", config)), us=US)
    assert by_stranger.may_tell_problem("0123456789ab")
    for remarks, num in ((by_stranger, 1), (Remarks(store, REPO, pull(), us=US), 1)):
        remarks.told_problem("0123456789ab", now=NOW)
        remarks.told_changes(now=NOW)
        assert not Remarks(store, REPO, pull(), us=US).may_tell_problem("0123456789ab"), num
    again = Remarks(store, REPO, pull(), us=US)
    assert not again.may_tell_changes(now=NOW + DAY - 1) and again.may_tell_changes(now=NOW + DAY)
    assert Remarks(store, "up/other-GGUF", pull(), us=US).may_tell_changes(now=NOW)


def test_a_pull_that_is_gone_counts_as_nothing_and_its_number_may_be_ours_again(store: Store) -> None:
    save = store.results.save_pull
    save(REPO, 1, key="k", status="open", url="u", author="bot", now=NOW)
    save(REPO, 1, key="k", status="gone", url="u", now=NOW + 1)
    assert store.results.pulls() == store.results.pulls(REPO) == [] and store.results.accounts() == {"bot"}
    save(REPO, 1, key="k2", status="open", url=None, now=NOW + 2)
    save(REPO, 1, key="k2", status="closed", url=None, author="bot-two", now=NOW + 3)
    assert store.results.pulls() == [StoredPull(REPO, 1, "k2", "closed", "u", NOW + 2, "bot-two")]


def test_a_wish_that_was_overruled_is_no_consent(store: Store) -> None:
    def add(comment: str, word: str, *, first: int = 0, at: float = NOW) -> None:
        store.answers.add(
            comment, [(word, "")], repo_id=REPO, num=1, author="up", answer="a", said=False, first=first,
            asked_at=at, now=NOW,
        )  # fmt: skip

    add("one", "remeasure")
    add("one", "stop", first=1, at=NOW + 5)
    assert store.answers.asked(REPO)
    store.answers.overrule("one", overruled=True)
    assert not store.answers.asked(REPO)
    words = [(one.word, one.state, one.asked_at) for one in store.answers.standing_words(REPO)]
    assert words == [("remeasure", "overruled", NOW), ("stop", "done", NOW + 5)]
    store.answers.overrule("one", overruled=False)
    assert store.answers.asked(REPO) and store.answers.untold(REPO) == []


def test_titles_of_ours_are_known_however_they_went_on() -> None:
    assert texts.is_our_title(texts.pull_title()) and texts.is_our_title("[bot] quantcard: something else")
    assert not texts.is_our_title("Figures") and not texts.is_our_title("About [bot] quantcard: it")
