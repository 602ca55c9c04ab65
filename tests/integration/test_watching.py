"""Watching: what an idle poll costs, what a first sync costs and survives, and repos that come, go and change names."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from huggingface_hub import HfApi

from bot.hub import base
from bot.hub.client import Hub
from bot.intake import watch
from bot.intake.watch import PollReport, poll
from bot.store import Store
from localhub import seed
from localhub.faults import Faults
from localhub.ratelimit import Quota
from localhub.server import HubServer

TOKEN, BOT_TOKEN = "hf_up", "hf_bot"


def gguf(folder: Path, mark: int, *, kind: str = "model") -> bytes:
    """A whole tiny GGUF; ``mark`` tells it from others."""
    path = folder / f"{kind}-{mark}.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_uint32("test.mark", mark)
    writer.add_tensor("token_embd.weight", np.full((4, 32), mark, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


class World:
    """A hub, a store and a bot that only polls."""

    def __init__(self, folder: Path, *, quota: Quota | None = None) -> None:
        self.folder, self.root = folder, folder / "hub"
        self.faults = Faults()
        for owner in ("ann", "bob"):
            seed.create_user(self.root, owner, token=f"{TOKEN}_{owner}")
        seed.create_user(self.root, "bot", token=BOT_TOKEN)
        self.server = HubServer(self.root, faults=self.faults, quota=quota)
        self.store = Store(folder / "bot.db")
        self.now = time.time()
        self.mark = 0

    def __enter__(self) -> World:
        self.server.start()
        self.hub = Hub(endpoint=self.server.url, token=BOT_TOKEN)
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.server.stop()

    def upload(self, repo: str, *names: str, **more: bytes) -> None:
        """Commit new files of these names."""
        files: dict[str, Path | bytes] = {}
        for name in names:
            self.mark += 1
            files[name] = gguf(self.folder, self.mark)
        seed.upload_files(self.root, repo, {**files, **{name.replace("__", "."): data for name, data in more.items()}})

    def follow(self, name: str) -> None:
        self.store.repos.follow(name, consented=False, now=self.now)

    def poll(self, **more: Any) -> PollReport:
        self.now += 1
        return poll(self.store, self.hub, now=self.now, **more)

    def requests(self) -> tuple[int, int]:
        """(API requests, file requests) since the last time this was asked."""
        counted = self.hub.budget.requests
        told = counted["api"], counted["resolvers"]
        counted.clear()
        return told

    def state(self, repo: str) -> tuple[str, str | None]:
        found = self.store.repos.repo(repo)
        assert found is not None
        return found.state, found.note

    def names(self, repo: str) -> list[str]:
        return [variant.name for variant in self.store.repos.variants(repo) if variant.inspection]

    def api(self, owner: str = "ann") -> HfApi:
        return HfApi(endpoint=self.server.url, token=f"{TOKEN}_{owner}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def test_an_idle_poll_is_one_request_for_each_owner(world: World) -> None:
    for number in range(6):
        world.upload(f"ann/m{number}-GGUF", "m-Q8_0.gguf")
        world.upload(f"bob/m{number}-GGUF", "m-Q8_0.gguf", README__md=b"---\nbase_model: org/m\n---\n# m\n")
    world.follow("ann")
    world.follow("bob")
    first = world.poll()
    assert sorted(first.changed) == sorted(f"{owner}/m{n}-GGUF" for owner in ("ann", "bob") for n in range(6))
    api, files = world.requests()
    assert api - 1 <= 2 + 12, "a listing for each owner, a request for each repo (and the client's own first one)"
    assert files == 12, "a range for each new header"
    idle = world.poll()
    assert idle.changed == [] and idle.audited == [] and idle.errors == []
    assert world.requests() == (2, 0)
    # One of twelve changes: its owner's listing, and a request for it and for its new header.
    world.upload("bob/m3-GGUF", "m-Q4_K_M.gguf")
    report = world.poll()
    assert report.changed == ["bob/m3-GGUF"]
    assert world.requests() == (3, 1)
    assert world.names("bob/m3-GGUF") == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    repo = world.store.repos.repo("bob/m3-GGUF")
    assert repo and repo.base_model == "org/m"
    follow = world.store.repos.follow_of("bob/m3-GGUF")
    assert follow and follow.polled_at == world.now and follow.cursor


def test_a_list_is_read_down_to_what_was_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        world.upload(f"ann/m{number}-GGUF", "m-Q8_0.gguf")
        time.sleep(0.002)
    world.follow("ann")
    world.poll()
    # Entries of the last minutes are compared again, since a list may learn of a commit late.
    assert world.poll().seen == 6
    monkeypatch.setattr(watch, "_OVERLAP", timedelta(0))
    assert world.poll().seen == 1
    world.upload("ann/m2-GGUF", "m-Q4_K_M.gguf")
    assert world.poll().seen == 2
    assert world.poll(sweep_interval=0.0).seen == 6


def test_the_same_bytes_are_not_read_again(world: World) -> None:
    world.upload("ann/m-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.poll()
    world.requests()
    data = gguf(world.folder, world.mark)
    seed.upload_files(world.root, "ann/copy-GGUF", {"other-Q8_0.gguf": data})
    seed.upload_files(world.root, "ann/m-GGUF", {"README.md": b"# new words\n"})
    world.poll()
    assert world.requests() == (3, 0)
    assert world.names("ann/copy-GGUF") == ["other-Q8_0.gguf"]


def test_a_first_sync_goes_on_after_a_kill(world: World) -> None:
    for number in range(8):
        world.upload(f"ann/m{number}-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    stop = threading.Event()
    looked: list[str] = []
    real = world.hub.detail

    def detail(repo_id: str) -> Any:
        looked.append(repo_id)
        if len(looked) == 3:
            stop.set()
        return real(repo_id)

    world.hub.detail = detail  # type: ignore[method-assign]
    world.poll(stop=stop)
    # The last changed ones first: a new upload does not wait for the backlog.
    assert looked == ["ann/m7-GGUF", "ann/m6-GGUF", "ann/m5-GGUF"]
    assert world.store.watching.waiting()[0] == 5
    world.store.close()
    world.store = Store(world.folder / "bot.db")
    world.upload("ann/new-GGUF", "m-Q8_0.gguf")
    world.poll()
    assert looked[3] == "ann/new-GGUF" and len(looked) == len(set(looked)) == 9
    assert world.store.watching.waiting() == (0, 0)


def test_a_file_that_is_no_model_is_asked_once(world: World) -> None:
    data = gguf(world.folder, 1, kind="imatrix")
    seed.upload_files(world.root, "ann/m-GGUF", {"m-Q4_K.gguf": data})
    world.follow("ann")
    world.poll()
    assert world.requests()[1] == 1 and world.names("ann/m-GGUF") == []
    seed.upload_files(world.root, "ann/m-GGUF", {"README.md": b"# words\n"})
    world.poll()
    assert world.requests()[1] == 0 and world.store.repos.variants("ann/m-GGUF") == []


def test_repos_that_go_and_come_back(world: World) -> None:
    for name in ("deleted", "private", "disabled", "stays"):
        world.upload(f"ann/{name}-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.poll()
    api = world.api()
    api.delete_repo("ann/deleted-GGUF")
    api.update_repo_settings("ann/private-GGUF", visibility="private")
    seed.set_repo(world.root, "ann/disabled-GGUF", disabled=True)
    # What is gone from a list shows when the whole list is read.
    world.poll(sweep_interval=0.0)
    assert world.state("ann/deleted-GGUF")[0] == "gone"
    assert world.state("ann/private-GGUF")[0] == "gone"
    assert world.state("ann/disabled-GGUF")[0] == "disabled"
    assert world.state("ann/stays-GGUF") == ("live", None)
    for name in ("deleted", "private", "disabled"):
        assert world.names(f"ann/{name}-GGUF") == []
    world.requests()
    world.poll()
    assert world.requests() == (1, 0), "nothing is asked again for them"
    api.update_repo_settings("ann/private-GGUF", visibility="public")
    seed.set_repo(world.root, "ann/disabled-GGUF", disabled=False)
    world.poll(sweep_interval=0.0)
    assert world.state("ann/private-GGUF") == world.state("ann/disabled-GGUF") == ("live", None)
    assert world.names("ann/private-GGUF") == world.names("ann/disabled-GGUF") == ["m-Q8_0.gguf"]


def test_a_renamed_repo_keeps_its_pulls_and_its_follow(world: World) -> None:
    world.upload("ann/old-GGUF", "m-Q8_0.gguf")
    world.upload("bob/single-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.follow("bob/single-GGUF")
    world.poll()
    for repo in ("ann/old-GGUF", "bob/single-GGUF"):
        world.store.results.save_pull(repo, 3, key="abc123", status="closed", url=None, now=1.0)
    world.store.repos.follow("ann/old-GGUF", consented=True, now=1.0)
    world.api().move_repo("ann/old-GGUF", "ann/new-GGUF")
    world.api("bob").move_repo("bob/single-GGUF", "bob/renamed-GGUF")
    world.poll(sweep_interval=0.0)
    assert world.state("ann/old-GGUF") == ("moved", "It is called ann/new-GGUF now.")
    for repo in ("ann/new-GGUF", "bob/renamed-GGUF"):
        assert world.state(repo)[0] == "live" and world.names(repo) == ["m-Q8_0.gguf"]
        assert [pull.status for pull in world.store.results.pulls(repo)] == ["closed"]
    assert [follow.name for follow in world.store.repos.follows()] == ["ann", "ann/new-GGUF", "bob/renamed-GGUF"]
    world.requests()
    assert world.poll().errors == []
    assert world.requests() == (2, 0)


def test_a_gated_repo_waits_a_day_for_access(world: World) -> None:
    world.upload("ann/m-GGUF", "m-Q8_0.gguf")
    seed.set_repo(world.root, "ann/m-GGUF", gated="manual")
    world.follow("ann")
    report = world.poll()
    assert report.errors == []
    state, note = world.state("ann/m-GGUF")
    assert state == "gated" and note and "gated" in note
    world.requests()
    world.poll()
    assert world.requests() == (1, 0)
    seed.set_repo(world.root, "ann/m-GGUF", gated=False)
    world.now += 86400
    world.poll()
    assert world.state("ann/m-GGUF") == ("live", None) and world.names("ann/m-GGUF") == ["m-Q8_0.gguf"]


def test_a_collection_is_one_request_and_what_leaves_it_is_left(world: World) -> None:
    for repo in ("ann/a-GGUF", "bob/b-GGUF", "bob/c-GGUF"):
        world.upload(repo, "m-Q8_0.gguf")
    slug = "ann/best-0123456789abcdef01234567"
    items = [("model", "ann/a-GGUF"), ("model", "bob/b-GGUF")]
    seed.create_collection(world.root, slug, title="Best", items=items)
    world.follow(f"collections/{slug}")
    assert world.poll().changed and world.names("bob/b-GGUF") == ["m-Q8_0.gguf"]
    assert world.store.repos.repo("bob/c-GGUF") is None
    world.requests()
    world.poll()
    assert world.requests() == (1, 0)
    time.sleep(0.002)
    world.upload("bob/b-GGUF", "m-Q4_K_M.gguf")
    assert world.poll().changed == ["bob/b-GGUF"]
    found = world.store.repos.follow_of("bob/b-GGUF")
    assert found and found.name == f"collections/{slug}"
    seed.create_collection(world.root, slug, title="Best", items=items[:1])
    world.poll()
    assert world.store.repos.follow_of("bob/b-GGUF") is None
    assert world.store.repos.follow_of("ann/a-GGUF") is not None


def test_a_spent_budget_stops_polling_before_publishing(tmp_path: Path) -> None:
    with World(tmp_path, quota=Quota(api=20, window_s=300)) as world:
        for number in range(20):
            world.upload(f"ann/m{number}-GGUF", "m-Q8_0.gguf")
        world.follow("ann")
        report = world.poll()
        [(what, error)] = report.errors
        assert what == "polling" and "budget stopped" in str(error) and error.retryable
        assert report.resume_in is not None and 0 < report.resume_in <= 300
        left = world.hub.budget.told()["windows"]["api"]
        assert left["remaining"] >= 0.25 * 20 - 1, "looking left the rest to measuring and publishing"
        waiting = world.store.watching.waiting()[0]
        assert 0 < waiting < 20
        # Publishing may still ask.
        assert world.hub.whoami() == "bot"


def test_one_owner_that_is_missing_does_not_stop_the_others(world: World) -> None:
    world.upload("bob/m-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.follow("bob")
    world.follow("bob2/none-GGUF")
    report = world.poll()
    assert report.changed == ["bob/m-GGUF"]
    assert [what for what, _ in report.errors] == ["bob2/none-GGUF"]
    errors = {follow.name: follow.error for follow in world.store.repos.follows()}
    assert errors["bob"] is None and "missing" in str(errors["bob2/none-GGUF"])


def test_a_repo_that_fails_is_put_off_and_the_others_go_on(world: World) -> None:
    world.upload("ann/a-GGUF", "m-Q8_0.gguf")
    world.upload("ann/b-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.faults.fail(r"/api/models/ann/b-GGUF$", status=418, times=1)
    report = world.poll()
    assert report.changed == ["ann/a-GGUF"] and [what for what, _ in report.errors] == ["ann/b-GGUF"]
    assert world.poll().errors == []
    world.now += 3600
    assert world.poll().changed == ["ann/b-GGUF"]


def test_what_the_hub_fails_at_keeps_nothing_else_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES", (0.0,))
    world.upload("bob/z-GGUF", "m-Q8_0.gguf", "n-Q8_0.gguf")
    for name in ("y", "x"):
        world.upload(f"ann/{name}-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.follow("bob")
    world.follow("ann-gone/only-GGUF")
    # One repo, one file and one follow for which there is never an answer, each the first in its line.
    world.faults.fail(r"/api/models/ann/x-GGUF$", status=500, times=1000)
    world.faults.fail(r"/bob/z-GGUF/resolve/.*n-Q8_0", status=500, times=1000)
    world.faults.fail(r"/api/models/ann-gone/only-GGUF$", status=504, times=1000)
    report = world.poll()
    assert sorted(report.changed) == ["ann/y-GGUF", "bob/z-GGUF"] and world.names("bob/z-GGUF") == ["m-Q8_0.gguf"]
    assert [what for what, _ in report.errors] == ["ann-gone/only-GGUF", "ann/x-GGUF", "bob/z-GGUF/n-Q8_0.gguf"]
    seen = len([request for request in world.server.requests.all() if "x-GGUF" in request.path])
    for _ in range(3):
        world.poll()
    assert len([r for r in world.server.requests.all() if "x-GGUF" in r.path]) == seen, "it waits, ever longer"
    world.faults.clear()
    world.now += 86_400
    assert world.poll().errors == [] or world.names("bob/z-GGUF") == ["m-Q8_0.gguf", "n-Q8_0.gguf"]
    assert world.names("ann/x-GGUF") == ["m-Q8_0.gguf"]


def test_a_card_that_is_odd_is_a_card(world: World) -> None:
    """The client makes keyword arguments of what stands there; we do not."""
    odd = b"---\nignore_metadata_errors: true\nself: 1\nget: 5\nbase_model: [org/m]\n---\n"
    world.upload("ann/odd-GGUF", "m-Q8_0.gguf", README__md=odd)
    world.follow("ann")
    assert world.poll().errors == []
    repo = world.store.repos.repo("ann/odd-GGUF")
    assert repo and repo.base_model == "org/m" and repo.config["base_models"] == ["org/m"]
    assert world.hub.repo("ann/odd-GGUF").id == "ann/odd-GGUF"


def test_a_repo_whose_ggufs_were_deleted_has_none(world: World) -> None:
    world.upload("ann/m-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.poll()
    world.api().delete_file("m-Q8_0.gguf", "ann/m-GGUF")
    world.poll(sweep_interval=0.0)
    assert world.names("ann/m-GGUF") == []


def test_a_repo_that_went_to_another_owner_is_theirs(world: World) -> None:
    world.upload("ann/m-GGUF", "m-Q8_0.gguf")
    world.store.repos.follow("ann", consented=True, now=1.0)
    world.poll()
    seed.move_repo(world.root, "ann/m-GGUF", "bob/m-GGUF")
    world.poll(sweep_interval=0.0)
    assert world.state("ann/m-GGUF")[0] == "moved"
    assert world.store.repos.repo("bob/m-GGUF") is None and world.store.repos.follow_of("bob/m-GGUF") is None


def test_unfollowing_ends_a_first_sync_and_following_again_begins_anew(world: World) -> None:
    for number in range(4):
        world.upload(f"ann/m{number}-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    stop = threading.Event()
    real = world.hub.detail

    def detail(repo_id: str) -> Any:
        stop.set()
        return real(repo_id)

    world.hub.detail = detail  # type: ignore[method-assign]
    world.poll(stop=stop)
    assert world.store.repos.unfollow("ANN")
    assert world.poll().changed == [] and world.store.watching.waiting()[0] == 0
    world.store.publishing.note(
        "ann/m3-GGUF", key="", sha=None, action="nothing", reason="", num=None, now=1.0, next_at=None, touched=9
    )
    world.follow("ann")
    assert "ann/m3-GGUF" in world.store.publishing.due(now=world.now + 1)
    assert len(world.poll().changed) == 3
    world.store.repos.follow("Ann", consented=True, now=1.0)
    assert [(follow.name, follow.consented) for follow in world.store.repos.follows()] == [("ann", True)]


def test_a_private_repo_that_is_followed_itself_beside_its_owner(world: World) -> None:
    with World(world.folder / "own") as own:
        own.hub = Hub(endpoint=own.server.url, token=f"{TOKEN}_ann")
        own.upload("ann/secret-GGUF", "m-Q8_0.gguf")
        own.upload("ann/open-GGUF", "m-Q8_0.gguf")
        seed.set_repo(own.root, "ann/secret-GGUF", private=True)
        own.follow("ann")
        own.follow("ann/secret-GGUF")
        own.poll()
        assert own.state("ann/secret-GGUF")[0] == own.state("ann/open-GGUF")[0] == "live"
        assert own.poll().changed == [] and own.poll(sweep_interval=0.0).changed == []


def test_a_name_in_another_case_is_the_new_name(world: World) -> None:
    world.upload("ann/model-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.poll()
    world.store.results.save_pull("ann/model-GGUF", 1, key="k", status="closed", url=None, now=1.0)
    world.store.repos.set_stopped("ann/model-GGUF", "ann")
    seed.move_repo(world.root, "ann/model-GGUF", "ann/Model-GGUF")
    world.poll(sweep_interval=0.0)
    world.poll(sweep_interval=0.0)
    assert world.state("ann/model-GGUF")[0] == "moved" and world.state("ann/Model-GGUF")[0] == "live"
    renamed = world.store.repos.repo("ann/Model-GGUF")
    assert renamed and renamed.stopped == "ann" and len(world.store.results.pulls("ann/Model-GGUF")) == 1


def test_too_many_shards_are_not_read(world: World) -> None:
    data = gguf(world.folder, 1)
    files: dict[str, Path | bytes] = {f"m-Q8_0-{n:05d}-of-00300.gguf": data for n in range(1, 301)}
    seed.upload_files(world.root, "ann/many-GGUF", files)
    world.upload("ann/a-GGUF", "m-Q8_0.gguf")
    world.follow("ann")
    world.poll()
    [many] = world.store.repos.variants("ann/many-GGUF")
    assert many.note and "300 shards" in many.note and world.requests()[1] <= 3


def test_a_verdict_on_a_file_is_looked_at_once_more(world: World) -> None:
    seed.upload_files(world.root, "ann/m-GGUF", {"m-Q8_0.gguf": b"not a GGUF at all" * 9})
    world.follow("ann")
    world.poll()
    [bad] = world.store.repos.variants("ann/m-GGUF")
    assert bad.note and "not a GGUF" in bad.note
    world.requests()
    world.poll()
    assert world.requests()[1] == 0
    world.now += 86_400
    world.poll()
    assert world.requests()[1] == 1
    world.now += 9 * 86_400
    world.poll()
    assert world.requests()[1] == 0
