"""The dataset read through the real huggingface_hub client from a server that speaks the Hub's HTTP API."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.dataset import MEASUREMENTS_PATH
from space.data import HubSource, Results

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
from sample_rows import row, write


class Hub:
    """One dataset repo: its commit and its file; ``None`` is not there, ``down`` answers 503."""

    def __init__(self) -> None:
        self.sha: str | None = "1" * 40
        self.file: bytes | None = None
        self.down = False
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def answer(self, with_body: bool) -> None:
                hub.tokens.add(self.headers.get("authorization"))
                code, headers, body = hub.answer(self.path.split("?")[0])
                self.send_response(code)
                for name, value in ({"content-length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.down:
            return 503, {}, b""
        if self.sha is None:
            return 401, {"x-error-code": "RepoNotFound"}, b""
        if path.startswith("/api/datasets/me/results"):
            info = {"id": "me/results", "sha": self.sha, "lastModified": "2026-03-04T05:06:07.000Z", "siblings": []}
            return 200, {"content-type": "application/json"}, json.dumps(info).encode()
        if path == f"/datasets/me/results/resolve/{self.sha}/{MEASUREMENTS_PATH}" and self.file is not None:
            return 200, {"etag": f'"{hash(self.file)}"', "x-repo-commit": self.sha}, self.file
        return 404, {"x-error-code": "EntryNotFound"}, b""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    hub = Hub()
    yield hub
    hub.server.shutdown()


def test_a_dataset_is_read_kept_and_renewed(hub: Hub, tmp_path: Path) -> None:
    results = Results(HubSource("me/results", hub.url))
    assert not results.refresh() and "no measurements yet" in results.status_line() and results.nothing_yet

    hub.file = write(tmp_path / "a.parquet", [row()]).read_bytes()
    assert results.refresh(), results.error
    assert results.count() == 1 and results.revision == "1" * 40 and results.age()

    hub.sha, hub.file = "2" * 40, write(tmp_path / "b.parquet", [row(), row(label="Q2_K")]).read_bytes()
    assert results.refresh() and results.count() == 2

    hub.sha, hub.file = "3" * 40, b"not parquet"
    assert not results.refresh() and results.count() == 2 and results.revision == "2" * 40

    hub.down = True
    assert not results.refresh() and results.count() == 2 and "last good copy" in results.status_line()


def test_no_token_is_sent_and_a_missing_repo_is_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    hub.sha = None
    results = Results(HubSource("me/results", hub.url))
    assert not results.refresh() and results.nothing_yet
    assert "does not exist" in results.status_line()
    assert hub.tokens == {None}
