"""The service as a process: health, webhooks that reach it from a Hub, the status page, a clean end on SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import BOT_TOKEN, CARD, REPO, World, command, quant, until
from web_helpers import ask

from bot.cli import run_app
from bot.store import Store

SECRET = "s3cret"
#: What a push to a pull of ours causes.
OWN_PUSH = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": REPO},
    "updatedRefs": [{"ref": "refs/pr/1", "oldSha": "0" * 40, "newSha": "1" * 40}],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def health(url: str) -> dict[str, Any]:
    return dict(json.loads(ask(f"{url}/healthz")[2]) or {})


def ended(process: Any) -> str:
    """Send SIGTERM; what the service said in all. It must end soon, and well."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = str(process.communicate(timeout=30)[0])
    assert time.monotonic() - started < 12 and process.returncode == 0, said
    assert "Stopped." in said and "Traceback" not in said, said
    return said


def test_a_hubs_webhook_is_acted_upon_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is a quarter of an hour: whatever happens within this test, a webhook did it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path) as world:
        world.usual()
        world.follow()
        for name, value in world.environment(webhook_secret=SECRET).items():
            monkeypatch.setenv(name, value)
        with command(world, "serve", port=port, webhook_secret=SECRET) as process:
            until(lambda: health(url).get("cycles"), seconds=60)
            assert [pull.num for pull in world.pulls()] == [1]
            assert run_app(["webhooks", "sync", "--url", url]) == 0

            uploader = world.api()
            uploader.upload_file(path_or_fileobj=quant("Q6_K"), path_in_repo="demo-Q6_K.gguf", repo_id=REPO)
            until(lambda: b"Q6_K" in world.card("refs/pr/1"), seconds=90)
            found = health(url)
            assert found["webhooks"]["taken"] >= 1 and found["jobs"] == {"done": 7} and found["last_poll_age_s"] > 0
            assert [pull.num for pull in world.pulls()] == [1], "brought up to date, not opened again"

            # Our own push to the pull came back as a webhook, and nothing came of it.
            until(lambda: health(url)["webhooks"]["ignored"] >= 1)
            taken = health(url)["webhooks"]["taken"]
            uploader.change_discussion_status(REPO, 1, "closed", comment="No, thank you.")
            until(lambda: health(url)["webhooks"]["taken"] > taken)
            with Store(world.settings().db) as store:
                until(lambda: store.results.pulls(REPO)[0].status == "closed")
            page = ask(f"{url}/status")[2]
            assert REPO in page and "closed pull 1" in until(lambda: _with(f"{url}/status", "closed pull 1"))
            assert BOT_TOKEN not in page and str(tmp_path) not in page
            ended(process)


def _with(url: str, text: str) -> str:
    page = ask(url)[2]
    return page if text in page else ""


@pytest.mark.parametrize("secret", [SECRET, ""])
def test_the_service_answers_and_ends(tmp_path: Path, secret: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path) as world:
        world.usual()
        world.follow()
        with command(world, "serve", port=port, webhook_secret=secret) as process:
            until(lambda: health(url).get("cycles"), seconds=60)
            hook = f"{url}/webhooks/hub"
            push = {**OWN_PUSH, "updatedRefs": [{"ref": "refs/heads/main", "newSha": "1" * 40}]}
            assert ask(hook, push)[0] == (401 if secret else 403)
            if secret:
                given = {"X-Webhook-Secret": secret}
                assert json.loads(ask(hook, OWN_PUSH, **given)[2]) == {"taken": False}
                # A new file: SIGTERM comes while it is measured.
                world.upload({"demo-Q6_K.gguf": quant("Q6_K"), "README.md": CARD.encode()})
                assert json.loads(ask(hook, push, **given)[2]) == {"taken": True}
                until(lambda: health(url)["jobs"].get("running"))
            assert ask(f"{url}/status")[0] == ask(f"{url}/status.json")[0] == ask(f"{url}/")[0] == 200
            # A page that listens must not keep the service alive.
            listener = socket.create_connection(("127.0.0.1", port))
            listener.sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: x\r\n\r\n")
            ended(process)
            listener.close()
        with Store(world.settings().db) as store:
            assert "running" not in store.jobs.counts()


def test_a_token_that_is_not_known_is_seen_in_the_status(tmp_path: Path) -> None:
    """The service goes on, since the token may be one again; what is wrong is told where one looks."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path, template=False) as world:
        world.follow()
        with command(world, "serve", port=port, hf_token="hf_nobody") as process:
            until(lambda: "error" in health(url), seconds=60)
            told = json.loads(ask(f"{url}/status.json")[2])
            assert [one["what"] for one in told["last_cycle"]["errors"]] == ["the cycle"]
            assert "does not know this token" in told["last_cycle"]["errors"][0]["error"]
            ended(process)


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with command(world, "serve", port=taken.getsockname()[1]) as process:
            said = process.communicate(timeout=60)[0]
        assert process.returncode == 2 and "Set another with --port" in said
