"""One process publishes at a time, asked again before every write; one repo's surprise stops no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import CARD, REPO, UP, World

from bot.hub.client import Hub
from bot.intake import look
from bot.publish.lease import LEASE_S
from bot.store import Store
from core.dataset import DatasetRow
from localhub import seed

OTHER = "zoe/other-GGUF"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        yield found


def test_who_was_silent_for_too_long_writes_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes over while we wait for the Hub, publishes, and gives the lease back."""
    world.usual()
    world.follow(consented=True)
    slow = Hub.my_pulls
    outcomes = []

    def my_pulls(self: Hub, repo_id: str) -> Any:
        found = slow(self, repo_id)
        monkeypatch.setattr(Hub, "my_pulls", slow)
        with Store(world.settings().db) as store:
            held = store.results.get("lease:publish")
            assert held is not None
            later = float(held.split('"until": ')[1].split("}")[0]) + LEASE_S
            assert store.results.take_lease("publish", "another", now=later, lease=LEASE_S)
            store.results.drop_lease("publish", "another")
        outcomes.append(world.cycle())
        return found

    monkeypatch.setattr(Hub, "my_pulls", my_pulls)
    report = world.cycle()
    assert [outcome.decision.action for outcome in outcomes[0].outcomes] == ["open"]
    assert [pull.status for pull in world.pulls()] == ["open"]
    assert report.outcomes == [] and "took over" in str(report.errors[0][1])


def test_one_repos_surprise_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seed.create_user(world.root, "zoe", token="hf_zoe")
    world.usual()
    world.usual(OTHER, **{".quantcard.yml": b"position: top\n"})
    world.follow()
    world.follow("zoe")

    def surprise(_: bytes | None) -> Any:
        raise OverflowError("Python int too large to convert to C int")

    monkeypatch.setattr(look, "parse_config", surprise)
    report = world.cycle()
    assert [(what, "OverflowError" in str(error)) for what, error in report.poll.errors] == [(OTHER, True)]
    assert len(world.pulls()) == 1 and world.pulls(OTHER) == []
    assert world.cycle().poll.errors == [], "it is tried again later"


def test_a_config_that_overflows_is_answered_and_stops_nobody(world: World) -> None:
    world.usual(**{".quantcard.yml": b'enabled: "\\UFFFFFFFF"\n'})
    world.follow()
    report = world.cycle()
    assert report.exit_code == 0 and world.pulls() == []
    with Store(world.settings().db) as store:
        repo = store.repos.repo(REPO)
    assert repo and repo.config["enabled"] is False and repo.config["problem"]


def test_after_a_merge_other_speeds_are_no_reason_for_a_new_pull(world: World) -> None:
    """Files are measured once for all who hold them: a mirror's owner may have asked for it."""
    world.usual()
    world.follow()
    world.cycle()
    world.api().merge_pull_request(REPO, 1)
    assert world.cycle().exit_code == 0
    with Store(world.settings().db) as store:
        store.db.conn.execute(
            "UPDATE measurements SET result = json_set(result, '$.tests[0].avg_ts', 12345.0) WHERE kind = 'speed'"
        )
    report = world.later()
    assert [(o.decision.action, "Only speeds" in o.decision.reason) for o in report.outcomes] == [("nothing", True)]
    rows: list[DatasetRow] = [row for (repo, _, _), row in world.rows().items() if repo == REPO]
    assert any(row.pp_ts == 12345.0 for row in rows) and len(world.pulls()) == 1
    # Its owner's own wish is one.
    with Store(world.settings().db) as store:
        store.results.put(f"remeasured:{REPO}", "9e9")
    assert [outcome.decision.action for outcome in world.later().outcomes] == ["open"]
    assert CARD.encode()[:20] in world.card("refs/pr/2") and UP in REPO
