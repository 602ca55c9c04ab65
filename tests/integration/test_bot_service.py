"""The service as a process: health, webhook, a clean end on SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from bot_helpers import CARD, REPO, World, command, quant, until

from bot.store import Store

PUSH = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": REPO},
    "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": "1" * 40}],
}


def ask(url: str, body: object = None, **headers: str) -> tuple[int, dict[str, object]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


@pytest.mark.parametrize("secret", ["s3cret", ""])
def test_the_service_answers_wakes_and_ends(tmp_path: Path, secret: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with World(tmp_path) as world:
        world.usual()
        world.follow()
        with command(world, "serve", port=port, webhook_secret=secret) as process:
            until(lambda: ask(f"{url}/healthz")[1].get("cycles"), seconds=60)
            hook = f"{url}/webhooks/hub"
            if not secret:
                assert ask(hook, PUSH)[0] == 403
            else:
                assert ask(hook, PUSH)[0] == 401
                assert ask(hook, PUSH, **{"X-Webhook-Secret": "no"})[0] == 403
                assert ask(hook, [], **{"X-Webhook-Secret": secret}) == (200, {"taken": False})
                assert ask(hook, "x" * (300 << 10), **{"X-Webhook-Secret": secret})[0] == 413
                # A new file: SIGTERM comes while it is measured.
                world.upload({"demo-Q6_K.gguf": quant("Q6_K"), "README.md": CARD.encode()})
                assert ask(hook, PUSH, **{"X-Webhook-Secret": secret}) == (200, {"taken": True})
                until(lambda: ask(f"{url}/healthz")[1]["jobs"].get("running"))  # type: ignore[attr-defined]
            # A page that listens must not keep the service alive.
            listener = socket.create_connection(("127.0.0.1", port))
            listener.sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: x\r\n\r\n")
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[0]
            listener.close()
            assert time.monotonic() - started < 12 and process.returncode == 0, said
            assert "Stopped." in said and "Traceback" not in said, said
        with Store(world.settings().db) as store:
            assert "running" not in store.jobs.counts()


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with command(world, "serve", port=taken.getsockname()[1]) as process:
            said = process.communicate(timeout=60)[0]
        assert process.returncode == 2 and "Set another with --port" in said
