"""Webhooks over HTTP: who may speak, how much, how fast; and our one webhook at a Hub, as the commands keep it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import BOT_TOKEN, REPO, UP, World
from fastapi import FastAPI
from huggingface_hub import HfApi
from web_helpers import ask, serving

from bot.cli import run_app
from bot.store import Store
from bot.web import hooks
from bot.web.hooks import Bucket, Webhooks
from localhub import seed

SECRET = "a long random text"
URL = "http://127.0.0.1:9/bot"
HOOK = f"{URL}/webhooks/hub"


def push(repo_id: str = REPO, *, ref: str = "refs/heads/main", sha: str = "1" * 40) -> dict[str, Any]:
    return {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": repo_id, "private": False, "headSha": sha},
        "updatedRefs": [{"ref": ref, "oldSha": "0" * 40, "newSha": sha}],
    }


class Endpoint:
    """The endpoint alone over a database in which one owner is followed."""

    def __init__(self, folder: Path, **more: Any) -> None:
        from bot.settings import load_settings

        self.wakes = 0
        self.db = folder / "q.db"
        self.hooks = Webhooks(
            load_settings(db=self.db, webhook_secret=more.pop("secret", SECRET)), wake=self._wake, **more
        )
        with Store(self.db) as store:
            store.repos.follow(UP, consented=False, now=1.0)

    def _wake(self) -> None:
        self.wakes += 1

    @contextmanager
    def served(self) -> Iterator[str]:
        app = FastAPI()
        app.include_router(self.hooks.router())
        with serving(app) as url:
            yield f"{url}/webhooks/hub"
        self.hooks.close()

    def due(self) -> list[str]:
        with Store(self.db) as store:
            return [one.id for one in store.watching.due(now=1e12, limit=1000)]

    @property
    def counts(self) -> tuple[int, int, int]:
        counts = self.hooks.counts
        return counts.taken, counts.ignored, counts.refused


def post(url: str, body: object, secret: str | None = SECRET) -> tuple[int, Any]:
    status, _, text = ask(url, body, **({} if secret is None else {"X-Webhook-Secret": secret}))
    return status, json.loads(text)


def test_who_may_speak_and_what_is_taken(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path)
    with endpoint.served() as url:
        assert post(url, push(), None)[0] == 401
        assert post(url, push(), "wrong")[0] == 403
        assert post(url, push(), SECRET + "x")[0] == 403
        assert endpoint.due() == [] and endpoint.counts == (0, 0, 3)
        for body in ([], "x", 3, None, "[" * 100_000):
            assert post(url, body)[0] == 400, body
        assert post(url, b"{")[0] == 400 and post(url, b"\xff")[0] == 400 and post(url, b"[" * 100_000)[0] == 400
        assert post(url, "x" * (300 << 10))[0] == 413
        assert post(url, push(ref="refs/pr/1")) == (200, {"taken": False})
        assert post(url, push("stranger/x")) == (200, {"taken": False})
        assert post(url, {"event": {"scope": "repo.content"}}) == (200, {"taken": False})
        assert endpoint.wakes == 0 and endpoint.due() == []
        for _ in range(3):
            assert post(url, push()) == (200, {"taken": True})
        assert endpoint.due() == [REPO] and endpoint.wakes == 3 and endpoint.hooks.counts.last_at
        assert endpoint.counts[:2] == (3, 3)


def test_closed_without_a_secret(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, secret="")
    with endpoint.served() as url:
        for secret in (None, "", "x"):
            assert post(url, push(), secret)[0] == 403
    assert endpoint.wakes == 0 and not endpoint.hooks.counts.open


def test_who_does_not_know_the_secret_is_not_listened_to(tmp_path: Path) -> None:
    """The answer comes though the body never does, and no database is made."""
    endpoint = Endpoint(tmp_path)
    endpoint.db.unlink()
    with endpoint.served() as url, closing(raw(url, "X-Webhook-Secret: no")) as caller:
        assert b" 403 " in caller.recv(100)
    assert not endpoint.db.exists()


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "BODY_S", 0.2)
    endpoint = Endpoint(tmp_path)
    with endpoint.served() as url:
        with closing(raw(url, f"X-Webhook-Secret: {SECRET}")) as caller:
            assert b" 408 " in caller.recv(100)
        with closing(raw(url, f"X-Webhook-Secret: {SECRET}")) as gone:
            gone.sendall(b"{")
        assert post(url, push())[0] == 200


def raw(url: str, header: str) -> socket.socket:
    """A POST that promises a body and has sent none of it."""
    host, port = url.split("/")[2].split(":")
    caller = socket.create_connection((host, int(port)), timeout=20)
    caller.sendall(f"POST /webhooks/hub HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Length: 999\r\n\r\n".encode())
    return caller


def test_a_flood_is_cut_and_makes_one_row(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path, bucket=Bucket(50, clock=lambda: 0.0))
    answers: list[int] = []
    with endpoint.served() as url:

        def many() -> None:
            for _ in range(30):
                answers.append(post(url, push())[0])

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(set(answers)) == [200, 429] and answers.count(200) == 50
        status, headers, _ = ask(url, push(), **{"X-Webhook-Secret": SECRET})
        assert status == 429 and headers["retry-after"] == "1"
    assert endpoint.due() == [REPO]


def test_a_database_that_can_not_be_written_is_no_secret_told(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path)
    with endpoint.served() as url:
        for left in tmp_path.glob("q.db*"):
            left.unlink()
        endpoint.db.mkdir()
        status, body = post(url, push())
        assert status == 503 and str(tmp_path) not in json.dumps(body)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, template=False) as found:
        seed.create_user(found.root, "acme", is_org=True)
        for name, value in found.environment(webhook_secret=SECRET).items():
            monkeypatch.setenv(name, value)
        yield found


def registered(world: World) -> list[Any]:
    return HfApi(endpoint=world.server.url, token=BOT_TOKEN).list_webhooks()


def watched(world: World) -> set[tuple[str, str]]:
    [hook] = registered(world)
    return {(item.type, item.name) for item in hook.watched}


def synced(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert run_app(["webhooks", "sync", "--url", URL, "--json", *more]) == 0
    told = capsys.readouterr()
    assert SECRET not in told.out + told.err
    return json.loads(told.out), told.err


def test_sync_keeps_one_webhook_that_watches_what_is_followed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    picks = ["else/one-GGUF", REPO]
    for repo_id in picks:
        world.upload({"README.md": b"# x"}, repo_id)
    seed.create_collection(world.root, "else/picks", title="Picks", items=[("model", one) for one in picks])
    for name in (UP, "acme", "stranger/x-GGUF", f"{UP}/covered", "nobody-at-all"):
        world.follow(name)
    told, said = synced(capsys, "--dry-run")
    assert told["action"] == "create" and "+ user uploader" in said and registered(world) == []

    told, said = synced(capsys)
    assert "no user or organisation nobody-at-all" in said
    assert watched(world) == {("user", UP), ("org", "acme"), ("model", "stranger/x-GGUF")}
    [hook] = registered(world)
    assert (hook.url, set(hook.domains), hook.secret) == (HOOK, {"repo", "discussion"}, SECRET)
    assert synced(capsys)[0]["action"] == "keep"

    world.follow("collections/else/picks")
    with Store(world.settings().db) as store:
        store.repos.unfollow("acme")
    HfApi(endpoint=world.server.url, token=BOT_TOKEN).disable_webhook(hook.id)
    told, said = synced(capsys)
    assert "the Hub had disabled it" in said and "- org acme" in said and told["enabled_again"]
    assert watched(world) == {("user", UP), ("model", "stranger/x-GGUF"), ("model", "else/one-GGUF")}
    [again] = registered(world)
    assert again.id == hook.id and not again.disabled

    capsys.readouterr()
    assert run_app(["webhooks", "sync", "--url", "http://127.0.0.1:9/moved"]) == 0
    [moved] = registered(world)
    assert (moved.id, moved.url) == (hook.id, "http://127.0.0.1:9/moved/webhooks/hub")
    assert run_app(["webhooks", "list"]) == 0
    assert f"* {hook.id}" in capsys.readouterr().out
    assert run_app(["webhooks", "remove"]) == 0 and registered(world) == []
    assert run_app(["webhooks", "remove"]) == 0


def test_a_lost_answer_makes_no_second_webhook(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.follow()
    world.faults.drop(r"/api/settings/webhooks$", method="POST")
    capsys.readouterr()
    assert run_app(["webhooks", "sync", "--url", URL]) == 4
    assert len(registered(world)) == 1
    assert synced(capsys)[0]["action"] == "keep" and len(registered(world)) == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("--url", URL), {"QUANTCARD_WEBHOOK_SECRET": ""}, "Set QUANTCARD_WEBHOOK_SECRET".lower()),
        (("--url", URL), {"QUANTCARD_WEBHOOK_SECRET": "gehëim"}, "ascii"),
        ((), {}, "quantcard_public_url"),
        (("--url", URL), {"HF_TOKEN": ""}, "set hf_token"),
    ],
)
def test_what_is_missing_is_said(
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    says: str,
) -> None:
    world.follow()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_app(["webhooks", "sync", *arguments]) in (2, 4)
    told = " ".join(capsys.readouterr().err.split()).lower()
    assert says in told and registered(world) == []
