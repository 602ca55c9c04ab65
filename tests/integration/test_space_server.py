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
    assert whole["quality"] and whole["command"] and whole["variant"]["id"] == found["rows"][0]["id"]
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


def test_every_view_has_an_endpoint(world: World) -> None:
    client = world.client()
    page = client.predict(MODEL, sort="-size", per_page=5, api_name="/model")
    assert page["model"]["n_variants"] == page["variants"]["total"] == 26 and len(page["variants"]["rows"]) == 5
    one, other = (row["id"] for row in page["variants"]["rows"][1:3])
    assert client.predict(one, other, api_name="/compare")["how"] == "intervals"
    assert client.predict(MODEL, 3.0, api_name="/pick")["best"]["size_bytes"] < 3e9
    assert client.predict("bartowski", api_name="/uploader")["owner"]["n_models"] == 1
    assert client.predict("gemma", api_name="/search")["hits"][0]["kind"] == "model"
    assert client.predict(api_name="/models")["total"] == 3 and client.predict(api_name="/status")["n_models"] == 3
    assert client.predict(MODEL.replace("Qwen3", "no"), api_name="/search")["hits"] == []
    links = client.predict("owner/repo", api_name="/fragments")
    assert links["badge"].endswith("/cards/owner/repo/badge.svg")


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_filtered_table_can_be_taken_along(world: World, kind: str) -> None:
    path = Path(world.client().predict(kind, owner="unsloth", api_name="/download"))
    content = path.read_bytes()
    assert path.suffix == f".{kind}" and content
    if kind == "csv":
        assert content.count(b"\n") == 9 and b"bartowski/" in content, "its reference is another's"


@pytest.mark.parametrize(
    ("endpoint", "values", "said"),
    [
        ("/variants", {"page": "x"}, "page must be a whole number"),
        ("/variants", {"page": 1.5}, "page must be a whole number"),
        ("/variants", {"page": 10**30}, "page must be a whole number"),
        ("/variants", {"search": "a" * 10_000}, "search is too long"),
        ("/variants", {"search": {"a": ["b"]}}, "search must be text"),
        ("/variants", {"include_stale": "yes"}, "include_stale must be true or false"),
        ("/variants", {"max_kld": -1}, "max_kld"),
        ("/variants", {"show": "'; DROP TABLE models"}, "show"),
        ("/pick", {"model": MODEL, "task": "win"}, "task must be one of"),
        ("/pick", {"model": MODEL, "memory_gb": -4}, "memory_gb"),
        ("/pick", {"model": "<script>"}, "No such base model"),
        ("/compare", {"a": "x", "b": "y"}, "not there"),
        ("/download", {"format": "../../x"}, "csv, json, parquet"),
        ("/fragments", {"repo": "../../../x"}, "owner/name"),
        ("/uploader", {"owner": None}, "Nothing of this uploader"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(world: World, endpoint: str, values: dict[str, Any], said: str) -> None:
    client = world.client()
    with pytest.raises(AppError, match=said):
        client.predict(api_name=endpoint, **values)
    assert client.predict(api_name="/status")["error"] is None, "the page lives"


def test_results_are_typed(world: World) -> None:
    api: dict[str, Any] = world.client().view_api(return_format="dict")  # type: ignore[assignment]
    [result] = api["named_endpoints"]["/pick"]["returns"]
    assert {"best", "because", "runner_up", "need_bytes"} <= set(result["type"]["properties"])


def test_only_named_endpoints_are_public(world: World) -> None:
    api: dict[str, Any] = world.client().view_api(return_format="dict")  # type: ignore[assignment]
    assert set(api["named_endpoints"]) == {
        "/status", "/models", "/model", "/uploader", "/variants", "/search", "/measurement", "/compare", "/pick",
        "/leaderboard", "/download", "/fragments", "/request", "/queue",
    }  # fmt: skip
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
