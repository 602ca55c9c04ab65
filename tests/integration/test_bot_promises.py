"""What must not happen to an uploader or to the published results, whatever happens to the operator."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bot_helpers import BOT, DATASET, F16, REPO, World, quant
from huggingface_hub import hf_hub_download

from bot.hub.client import Hub
from bot.intake.watch import poll
from bot.publish import card as cards
from bot.store import Store
from core.dataset import MEASUREMENTS_PATH
from core.gguf_files import RepoFile
from localhub import seed
from localhub.server import HubServer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def published(world: World) -> list[tuple[str, str]]:
    """(repo, variant) of every published row."""
    path = hf_hub_download(
        DATASET,
        MEASUREMENTS_PATH,
        repo_type="dataset",
        endpoint=world.server.url,
        token=False,
        local_dir=world.folder / "got",
        force_download=True,
    )
    table = pq.read_table(path)
    return sorted(zip(table["repo_id"].to_pylist(), table["variant"].to_pylist(), strict=True))


def pull_commits(world: World, num: int = 1) -> int:
    return len(world.api().list_repo_commits(REPO, revision=f"refs/pr/{num}"))


def test_an_operators_mistake_reaches_no_card(world: World, tmp_path: Path) -> None:
    """A corpus that is too short: the baseline dies, speeds are there, and no pull tells of it."""
    short = tmp_path / "short.txt"
    short.write_text("Too short to be cut into chunks. " * 20)
    world.usual()
    world.follow()
    report = world.cycle(corpus=short)
    assert report.jobs_dead and report.exit_code == 5
    assert world.pulls() == []
    [outcome] = report.outcomes
    assert outcome.decision.action == "wait" and "at least 1024" in outcome.decision.reason


def test_a_reference_that_is_still_uploading_is_no_reference(world: World) -> None:
    world.usual(**{"demo-BF16-00001-of-00002.gguf": F16})
    world.follow()
    report = world.cycle()
    assert [outcome.decision.action for outcome in report.outcomes] == ["open"]
    rows = {name: row for (repo, name, _), row in world.rows().items() if repo == REPO}
    assert rows["demo-Q8_0.gguf"].reference_variant == "demo-F16.gguf"
    assert rows["demo-Q8_0.gguf"].kld_mean is not None


def test_a_new_database_or_protocol_keeps_what_was_published(world: World) -> None:
    world.usual()
    world.follow()
    assert world.cycle().exported
    before = published(world)
    assert (REPO, "demo-Q8_0.gguf") in before
    # A new bot that follows nobody known publishes nothing; one that follows somebody else adds.
    other = "someone/other-GGUF"
    seed.create_user(world.root, "someone", token="hf_someone")
    world.usual(other)
    new = world.folder / "new.db"
    with Store(new) as store:
        store.repos.follow("nobody-here", consented=False, now=1.0)
    assert not world.cycle(db=new).exported
    assert published(world) == before
    with Store(new) as store:
        store.repos.follow("someone", consented=False, now=1.0)
    assert world.cycle(db=new, publish=True, chunks=2).exported
    after = published(world)
    assert set(before) < set(after) and (other, "demo-Q8_0.gguf") in after
    # The old bot's next publication keeps the other's rows too.
    world.upload({"demo-Q6_K.gguf": quant("Q6_K")})
    assert world.cycle().exported
    assert set(after) < set(published(world))


def test_another_address_of_the_hub_is_no_reason_to_commit(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    commits, said = pull_commits(world), world.card("refs/pr/1")
    world.server.stop()
    world.server = HubServer(world.root).start()
    report = world.later()
    assert [outcome.decision.reason for outcome in report.outcomes] == ["Pull 1 has these figures."]
    assert pull_commits(world) == commits and world.card("refs/pr/1") == said
    with Store(world.settings().db) as store:
        [pull] = store.results.pulls(REPO)
    assert pull.url and pull.url.startswith(world.server.url)


def test_a_pull_follows_what_its_owner_writes_on_the_card(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    card = world.card("main") + b"\nThe owner wrote this afterwards.\n"
    world.upload({"README.md": card})
    report = world.cycle()
    assert [outcome.decision.action for outcome in report.outcomes] == ["update"]
    assert cards.remove(world.card("refs/pr/1").decode()).encode() == card
    assert world.cycle().outcomes == [], "nothing happened since"
    assert world.later().outcomes[0].decision.action == "nothing"


def test_what_an_owner_pushes_between_our_read_and_our_commit_is_not_undone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.usual()
    world.follow()
    parents: list[str | None] = []
    opened = Hub.open_pull

    def late(self: Hub, repo_id: str, *, parent: str | None, **more: Any) -> Any:
        parents.append(parent)
        world.upload({"README.md": world.card("main") + b"\nPushed meanwhile.\n"})
        return opened(self, repo_id, parent=parent, **more)

    head = world.api().model_info(REPO).sha
    monkeypatch.setattr(Hub, "open_pull", late)
    world.cycle()
    assert parents == [head]
    details = world.api().get_discussion_details(REPO, 1)
    # The pull's only change is our section: against its own base nothing of the owner's is taken away.
    removed = [line for line in (details.diff or "").splitlines() if line.startswith("-") and line[:3] != "---"]
    assert not [line for line in removed if "Pushed meanwhile" in line]


def test_a_closed_pull_is_a_no_to_every_account_of_ours(world: World) -> None:
    world.usual()
    world.follow()
    world.cycle()
    world.api().change_discussion_status(REPO, 1, "closed")
    seed.create_user(world.root, "quantbot-two", token="hf_two")
    report = world.later(hf_token="hf_two", dataset="")
    assert [outcome.decision.action for outcome in report.outcomes] == ["nothing"]
    assert "closed" in report.outcomes[0].decision.reason and len(world.pulls()) == 1
    world.api().change_discussion_status(REPO, 1, "open")
    assert world.pulls()[0].author == BOT
    assert world.later().outcomes[0].decision.reason == "Pull 1 has these figures."


def test_small_ggufs_outside_lfs_are_known_by_their_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.usual()
    world.follow()
    listed = Hub.files

    def inline(self: Hub, repo_id: str, *, revision: str) -> list[RepoFile]:
        return [RepoFile(file.path, file.size, None) for file in listed(self, repo_id, revision=revision)]

    monkeypatch.setattr(Hub, "files", inline)
    with Store(world.settings().db) as store:
        hub = Hub(endpoint=world.server.url, token=None)
        poll(store, hub, now=1.0, stop=threading.Event())
        keys = {variant.name: variant.key for variant in store.repos.variants(REPO)}
    assert keys["demo-F16.gguf"] == hashlib.sha256(F16.read_bytes()).hexdigest()


def test_a_follow_in_another_case_is_the_same_follow(world: World) -> None:
    world.usual()
    world.follow(REPO.upper())
    with Store(world.settings().db) as store:
        assert store.repos.follow_of(REPO) is not None
