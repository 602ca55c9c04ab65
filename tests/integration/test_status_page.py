"""The status page over HTTP, and ``quantcard status``: the same report, for strangers and for the operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import REPO, World
from fastapi import FastAPI
from web_helpers import ask, serving

from bot.cli import run_app
from bot.settings import load_settings
from bot.web import status


def app(db: Path, **more: Any) -> FastAPI:
    found = FastAPI()
    found.include_router(status.router(load_settings(db=db, webhook_secret="s3cret-s3cret"), **more))
    return found


def test_an_empty_database_has_a_page(tmp_path: Path) -> None:
    with serving(app(tmp_path / "q.db")) as url:
        code, headers, page = ask(f"{url}/status")
        assert code == 200 and "Nothing is followed yet." in page
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        code, headers, text = ask(f"{url}/status.json")
        assert code == 200 and json.loads(text)["follows"] == [] and headers["content-type"] == "application/json"


def test_a_page_is_made_once_for_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def live() -> dict[str, Any]:
        made.append(1)
        return {}

    monkeypatch.setattr(status, "FRESH_S", 1e9)
    with serving(app(tmp_path / "q.db", live=live)) as url:
        pages = {ask(f"{url}/status")[2] for _ in range(20)} | {ask(f"{url}/status")[2]}
        assert len(pages) == 1 and ask(f"{url}/status.json")[0] == 200 and len(made) == 1
        monkeypatch.setattr(status, "FRESH_S", 0.0)
        ask(f"{url}/status")
        assert len(made) == 2


def test_a_database_that_can_not_be_read_tells_no_path(tmp_path: Path) -> None:
    (tmp_path / "q.db").mkdir()
    with serving(app(tmp_path / "q.db")) as url:
        for path in ("/status", "/status.json"):
            code, _, text = ask(url + path)
            assert code == 503 and "can't be read now" in text and str(tmp_path) not in text


def status_of(world: World, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run_app(["status", "--db", str(world.settings().db), *arguments]) == 0
    return capsys.readouterr().out


def test_the_command_shows_all_at_a_glance_and_one_repo_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(tmp_path) as world:
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        world.usual()
        world.follow()
        assert world.cycle().exit_code == 0
        told = json.loads(status_of(world, capsys, "--json"))
        assert [one["name"] for one in told["follows"]] == ["uploader"] and told["repos"]["live"] >= 1
        assert [(one["repo_id"], one["num"], one["status"]) for one in told["pulls"]] == [(REPO, 1, "open")]
        assert told["jobs"] == {"done": 5} and told["failed"] == [] and "rows" not in told
        shown = status_of(world, capsys)
        assert "Following 1; last poll" in shown and "Pulls: 1 open" in shown and "Q8_0" not in shown

        one = json.loads(status_of(world, capsys, REPO.upper(), "--json"))
        assert (one["repo"], one["state"], one["follow"]) == (REPO, "live", "uploader")
        assert {row["label"] for row in one["rows"]} == {"F16", "Q8_0"} and one["pulls"][0]["num"] == 1
        shown = status_of(world, capsys, REPO)
        assert "Q8_0" in shown and "Pull 1, open" in shown and "State: live" in shown
    for wrong, says in (("nobody/nothing", "was not seen yet"), ("nobody", "is not a repo")):
        assert run_app(["status", wrong, "--db", str(tmp_path / "bot.db")]) == 2
        assert says in capsys.readouterr().err
