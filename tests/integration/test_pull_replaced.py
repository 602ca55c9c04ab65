"""A pull that the card's own changes stand in the way of is closed by us and opened anew: that is nobody's no."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import CARD, REPO, World
from huggingface_hub.errors import HfHubHTTPError
from test_pull_manners import NOON, did, lose_database, visit

from bot.hub.client import Hub
from bot.publish.manners import DAY
from bot.store import Store
from core.errors import HubUnreachableError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def conflict(world: World, words: str = "Words") -> None:
    """The owner changes the card's last line, behind which our section would stand."""
    world.upload({"README.md": CARD.replace("Some words.", f"{words} of the owner.").encode()})


def statuses(world: World) -> list[str]:
    return [pull.status for pull in world.pulls()]


def test_a_pull_that_conflicts_is_replaced_a_day_later_and_can_be_merged(world: World) -> None:
    world.usual()
    world.follow()
    assert did(visit(world)) == "open"
    conflict(world)
    assert world.api().get_discussion_details(REPO, 1).conflicting_files == ["README.md"]
    soon = visit(world, now=NOON + DAY - 60)
    assert did(soon) == "update" and soon.decision.reason.endswith("; a new one may be opened 1 day after it.")
    assert soon.next_at == NOON + DAY and statuses(world) == ["open"]
    later = visit(world, now=NOON + DAY)
    assert did(later) == "open" and statuses(world) == ["closed", "open"]
    said = world.api().get_discussion_details(REPO, 1).events
    assert [event.content for event in said if event.type == "comment"][-1].endswith("<!-- quantcard:replaced -->")
    assert b"Words of the owner." in world.card("refs/pr/2")
    world.api().merge_pull_request(REPO, 2)
    assert did(visit(world, now=NOON + DAY + 10)) == "nothing" and statuses(world) == ["closed", "merged"]


def test_the_one_that_took_its_place_is_the_only_one_also_for_a_new_database(world: World) -> None:
    world.usual()
    world.follow()
    visit(world)
    conflict(world)
    visit(world, now=NOON + DAY)
    lose_database(world)
    assert did(visit(world, now=NOON + DAY + 10)) == "nothing" and statuses(world) == ["closed", "open"]
    # A no to it is a no.
    world.api().change_discussion_status(REPO, 2, "closed")
    conflict(world, "Other words")
    for now in (NOON + DAY + 20, NOON + 9 * DAY):
        assert did(visit(world, now=now)) == "nothing"
    lose_database(world)
    assert did(visit(world, now=NOON + 10 * DAY)) == "nothing" and statuses(world) == ["closed", "closed"]


def test_stopped_between_closing_and_opening_it_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.usual()
    world.follow()
    visit(world)
    conflict(world)

    def away(*_: object, **__: object) -> None:
        raise HubUnreachableError("The Hub is away.")

    with monkeypatch.context() as patch:
        patch.setattr(Hub, "open_pull", away)
        with pytest.raises(HubUnreachableError):
            visit(world, now=NOON + DAY)
    assert statuses(world) == ["closed"]
    lose_database(world)
    again = visit(world, now=NOON + DAY + 10)
    assert did(again) == "open" and statuses(world) == ["closed", "open"], again
    with Store(world.settings().db) as store:
        assert [pull.status for pull in store.results.pulls(REPO)] == ["replaced", "open"]


def test_an_owner_who_closes_it_first_has_said_no(world: World) -> None:
    world.usual()
    world.follow()
    visit(world)
    conflict(world)
    world.api().change_discussion_status(REPO, 1, "closed")
    assert did(visit(world, now=NOON + 2 * DAY)) == "nothing" and statuses(world) == ["closed"]


def test_a_lost_response_to_the_closing_makes_no_second_one(world: World) -> None:
    world.usual()
    world.follow()
    visit(world)
    conflict(world)
    world.faults.drop(r"/discussions/1/status$", method="POST")
    with pytest.raises((HubUnreachableError, HfHubHTTPError)):
        visit(world, now=NOON + DAY)
    assert did(visit(world, now=NOON + DAY + 10)) == "open" and statuses(world) == ["closed", "open"]
