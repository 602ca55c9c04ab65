"""The page as a running server, spoken to by the real gradio_client."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from core.dataset import MEASUREMENTS_PATH, QueueRow, RequestAck
from core.errors import QuantcardError
from space.data import LocalSource, Results
from space.serve import PortTakenError, RunningApp, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import MODEL, hostile, row, sample, write


@dataclass
class World:
    """A served page and what reached it."""

    folder: Path
    app: RunningApp
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def client(self) -> Client:
        """A client that has read the page's endpoints."""
        return Client(self.app.url, verbose=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("published")
    write(folder / MEASUREMENTS_PATH, [*sample(), hostile()])
    asked: list[tuple[str, str | None]] = []

    def submit(repo: str, user: str | None) -> RequestAck:
        asked.append((repo, user))
        if repo == "owner/refused":
            raise QuantcardError("Its owner does not want it measured.")
        return RequestAck(accepted=True, message=f"{repo} will be measured.", position=1)

    job = QueueRow(id=1, kind="quality", repo_id="a/b", variant="b.gguf", state="running", updated_at=datetime.now(UTC))
    results = Results(LocalSource(folder))
    app = serve(results, port=0, submit=submit, queue=lambda: [job], refresh_seconds=0.2, block=False)
    yield World(folder, app, asked)
    app.close()


def test_the_leaderboard_is_json(world: World) -> None:
    client = world.client()
    found = client.predict(model=MODEL, sort="-kld_mean", limit=3, api_name="/leaderboard")
    assert found["total"] == 26 and len(found["rows"]) == 3
    assert [r["label"] for r in found["rows"]] == ["Q2_K", "Q2_K", "Q2_K"]
    assert "quality_json" not in found["rows"][0] and "results" in found["status"]
    whole = client.predict(found["rows"][0]["id"], api_name="/measurement")
    assert whole["quality_json"] and whole["command"]
    stale = client.predict(search="Q4_0", include_stale=True, api_name="/leaderboard")
    assert [r["state"] for r in stale["rows"]] == ["stale"]
    assert client.predict(search="'; DROP TABLE measurements", api_name="/leaderboard")["total"] == 0


def test_a_request_reaches_the_callable(world: World) -> None:
    client = world.client()
    ack = client.predict("https://huggingface.co/owner/repo-GGUF/tree/main", "somebody", api_name="/request")
    assert ack == {"accepted": True, "message": "owner/repo-GGUF will be measured.", "position": 1}
    assert world.asked[-1] == ("owner/repo-GGUF", "somebody")
    before = len(world.asked)
    assert not client.predict("https://evil.example/owner/repo", api_name="/request")["accepted"]
    assert len(world.asked) == before
    refused = client.predict("owner/refused", api_name="/request")
    assert refused["message"] == "Its owner does not want it measured."


def test_the_queue_is_json(world: World) -> None:
    assert [job["repo_id"] for job in world.client().predict(api_name="/queue")] == ["a/b"]


def test_errors_are_sentences(world: World) -> None:
    with pytest.raises(AppError, match="There is no such measurement"):
        world.client().predict("nothing", api_name="/measurement")


def test_only_named_endpoints_are_public(world: World) -> None:
    api: dict[str, Any] = world.client().view_api(return_format="dict")  # type: ignore[assignment]
    assert set(api["named_endpoints"]) == {"/leaderboard", "/measurement", "/request", "/queue"}
    assert not api["unnamed_endpoints"]


def test_a_new_revision_is_seen_without_a_restart(world: World, tmp_path: Path) -> None:
    client = world.client()
    write(world.folder / MEASUREMENTS_PATH, [*sample(), hostile(), row(label="NEW")])
    deadline = time.monotonic() + 20
    while client.predict(search="NEW", api_name="/leaderboard")["total"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_taken_port_is_a_sentence(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)):
            serve(Results(LocalSource(world.folder)), port=port, block=False)


def test_without_a_bot_the_page_says_so(tmp_path: Path) -> None:
    app = serve(Results(LocalSource(tmp_path)), port=0, block=False)
    try:
        client = Client(app.url, verbose=False)
        assert client.predict(api_name="/leaderboard")["rows"] == []
        assert "only shows results" in client.predict("a/b", api_name="/request")["message"]
        with pytest.raises(AppError, match="only shows results"):
            client.predict(api_name="/queue")
    finally:
        app.close()
