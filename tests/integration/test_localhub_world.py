"""A hub with people in it, for the other localhub tests; and what is about the server itself: start, restart, kill."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, httpx

from localhub import seed
from localhub.faults import Faults
from localhub.ratelimit import Quota
from localhub.server import HubServer

REPO_ROOT = Path(__file__).parents[2]
CARD = b"---\nlicense: mit\n---\n# Card\n"


class World:
    """alice owns things, bob is in acme with her, mallory is a stranger, bot opens pulls, reader may only read."""

    def __init__(self, root: Path, server: HubServer) -> None:
        self.root = root
        self.server = server
        self.url = server.url
        self.tokens = {name: seed.create_user(root, name) for name in ("alice", "bob", "mallory", "bot")}
        self.tokens["reader"] = seed.create_user(root, "reader", role="read")
        seed.create_user(root, "acme", is_org=True, members=("alice", "bob"))
        self.alice, self.bob, self.mallory, self.bot, self.reader = (
            HfApi(endpoint=self.url, token=self.tokens[name]) for name in ("alice", "bob", "mallory", "bot", "reader")
        )
        self.nobody = HfApi(endpoint=self.url, token=False)
        self._numbers = itertools.count()

    def repo(self, owner: str = "alice", *, files: dict[str, bytes] | None = None, **settings: object) -> str:
        """A new repo, seeded without HTTP."""
        repo_id = f"{owner}/repo{next(self._numbers)}"
        kind = settings.get("repo_type", "model")
        seed.create_repo(self.root, repo_id, **settings)  # type: ignore[arg-type]
        if files is None:
            files = {"README.md": CARD}
        if files:
            seed.upload_files(self.root, repo_id, files, repo_type=kind)  # type: ignore[arg-type]
        return repo_id


@contextmanager
def open_world(root: Path, *, faults: Faults | None = None, quota: Quota | None = None) -> Iterator[World]:
    with HubServer(root, faults=faults, quota=quota) as server:
        yield World(root, server)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


# the server itself


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    with open_world(tmp_path / "hub") as world:
        repo_id = world.repo(files={"README.md": CARD, "m.gguf": b"weights" * 100})
        pull = world.bot.create_commit(
            repo_id, [add("README.md", CARD + b"more\n")], commit_message="More", create_pr=True
        )
        world.alice.create_webhook(url="http://127.0.0.1:9/x", watched=[{"type": "model", "name": repo_id}])
        before = world.alice.model_info(repo_id, files_metadata=True)
    with HubServer(tmp_path / "hub") as server:
        alice = HfApi(endpoint=server.url, token=world.tokens["alice"])
        after = alice.model_info(repo_id, files_metadata=True)
        assert (after.sha, after.siblings) == (before.sha, before.siblings)
        assert alice.get_discussion_details(repo_id, pull.pr_num or 0).status == "open"
        assert len(alice.list_webhooks()) == 1
        alice.merge_pull_request(repo_id, pull.pr_num or 0)


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    token = seed.create_user(root, "alice")
    seed.create_repo(root, "alice/killed")
    code = "import sys; from localhub.server import serve; serve(sys.argv[1], port=0)"
    command = [sys.executable, "-c", code, str(root)]

    def start() -> tuple[subprocess.Popen[str], HfApi]:
        process = subprocess.Popen(command, cwd=REPO_ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        return process, HfApi(endpoint=url.group(0), token=token)

    process, api = start()
    acknowledged: list[int] = []

    def push() -> None:
        for number in range(1000):
            # by hand: the client would try for half a minute to reach the server again
            lines = (
                {"key": "header", "value": {"summary": f"c{number}"}},
                {"key": "file", "value": {"path": f"f{number}.txt", "content": f"{number}"}},
            )
            try:
                response = get_session().post(
                    f"{api.endpoint}/api/models/alice/killed/commit/main",
                    headers={"Authorization": f"Bearer {token}"},
                    content="\n".join(map(json.dumps, lines)).encode(),
                )
            except httpx.TransportError:
                return
            assert response.status_code == 200, response.text
            acknowledged.append(number)
            if number == 5:  # some time into what comes next
                threading.Timer(0.02, process.send_signal, [signal.SIGKILL]).start()

    try:
        push()
    finally:
        process.kill()
        process.wait(10)
    assert len(acknowledged) >= 6
    process, api = start()
    try:
        files = set(api.list_repo_files("alice/killed"))
        assert {f"f{number}.txt" for number in acknowledged} <= files
        for commit in api.list_repo_commits("alice/killed"):  # every commit can still be read
            api.list_repo_files("alice/killed", revision=commit.commit_id)
        api.create_commit("alice/killed", [add("last.txt", b"x")], commit_message="goes on")
    finally:
        process.kill()
        process.wait(10)


def test_two_servers_over_one_folder_lose_nothing(tmp_path: Path) -> None:
    with open_world(tmp_path / "hub") as world, HubServer(tmp_path / "hub") as second:
        repo_id = world.repo()
        apis = [world.alice, HfApi(endpoint=second.url, token=world.tokens["alice"])]

        def push(number: int) -> None:
            apis[number % 2].create_commit(
                repo_id, [add(f"f{number}.txt", b"%d" % number)], commit_message=f"c{number}"
            )

        threads = [threading.Thread(target=push, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {f"f{number}.txt" for number in range(8)} <= set(world.alice.list_repo_files(repo_id))


def test_links_and_names_use_the_free_port(tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub") as one, HubServer(tmp_path / "other") as two:
        assert one.url != two.url
        assert one.url.startswith("http://127.0.0.1:")
