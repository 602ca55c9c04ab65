"""Pull mode for real: files in the dataset, the service's answers and the command, all with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest
import uvicorn
from bot_helpers import BASE, DATASET, REPO, World
from fastapi import FastAPI
from huggingface_hub import ModelCard

from bot.commands.common import open_hub
from bot.intake.view import view
from bot.publish import card as cards
from bot.publish.data_block import decode
from bot.publish.export import export, left_over
from bot.publish.fragment_files import NAMES
from bot.publish.fragments import links_of
from bot.publish.model_index import remove_metadata, splice_metadata
from bot.publish.rows import current_rows
from bot.store import Store
from bot.web.fragments import router
from core.dataset import DatasetRow

LEADERBOARD = "https://example.org/leaderboard"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        found.usual()
        found.follow()
        found.cycle(publish=False, dataset="")
        yield found


def rows_of(world: World, store: Store) -> list[DatasetRow]:
    settings = world.settings()
    return current_rows(store, view(store, trusted=[]), settings.protocol_in_force(), repo_id=REPO)


def publish(world: World) -> bool:
    settings = world.settings(leaderboard_url=LEADERBOARD)
    with Store(settings.db) as store:
        return export(
            store, open_hub(settings), rows_of(world, store), data=settings.data, dataset=settings.dataset,
            links=links_of(settings),
        )  # fmt: skip


def attached(data: Path) -> list[str]:
    """What stands beside the rows in the local export: per-token files and raw results."""
    found = (data / "export" / "data").glob("*/*/*")
    return sorted(path.relative_to(data / "export").as_posix() for path in found)


def n_commits(world: World) -> int:
    return len(world.api().list_repo_commits(DATASET, repo_type="dataset"))


def fetched(world: World, name: str) -> bytes:
    path = world.api().hf_hub_download(
        DATASET, f"cards/{REPO}/{name}", repo_type="dataset", local_dir=world.folder / "got", force_download=True
    )
    return Path(path).read_bytes()


@contextmanager
def served(world: World) -> Iterator[str]:
    """The routes over the world's database, at an address."""
    app = FastAPI()
    app.include_router(router(world.settings(leaderboard_url=LEADERBOARD)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/repos"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def ask(url: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes, Message]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=named), timeout=20) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def said(svg: bytes) -> str:
    return str(ET.fromstring(svg).get("aria-label"))


def test_the_dataset_has_them_in_one_commit_and_only_when_they_change(world: World) -> None:
    assert publish(world)
    before = n_commits(world)
    api = world.api()
    [commit, *_] = api.list_repo_commits(DATASET, repo_type="dataset")
    tree = {item.path for item in api.list_repo_tree(DATASET, repo_type="dataset", recursive=True)}
    assert {f"cards/{REPO}/{name}" for name in NAMES} | {"README.md", "data/measurements.parquet"} <= tree
    assert commit.title == "2 measured variants" and before <= 2, "one commit after the repo's own"
    local = world.settings().data / "export" / "cards" / REPO
    assert {name: fetched(world, name) for name in NAMES} == {name: (local / name).read_bytes() for name in NAMES}

    assert not publish(world) and n_commits(world) == before
    settings = world.settings()
    with Store(settings.db) as store:
        store.db.conn.execute("UPDATE repos SET config = ?", (json.dumps({"data": "none"}),))
        assert left_over(store, settings.hf_endpoint, DATASET) == 0
    assert decode(fetched(world, "section.md").decode()) is not None
    assert publish(world) and n_commits(world) == before + 1
    assert decode(fetched(world, "section.md").decode()) is None

    # A lost database asks once more, and the Hub has it all.
    with Store(settings.db) as store:
        store.db.conn.execute("DELETE FROM published_files")
        store.db.conn.execute("DELETE FROM keyed")
    assert not publish(world) and n_commits(world) == before + 1


def test_a_commit_that_was_refused_is_made_the_next_time(world: World) -> None:
    settings = world.settings()
    with Store(settings.db) as store:
        rows = rows_of(world, store)
        export(store, None, rows, data=settings.data, dataset=DATASET, links=links_of(settings))
        waiting = left_over(store, settings.hf_endpoint, DATASET)
        assert waiting == len(NAMES) + len(attached(settings.data)) and attached(settings.data)
        dry = open_hub(world.settings(dry_run=True))
        export(store, dry, rows, data=settings.data, dataset=DATASET, links=links_of(settings))
        assert left_over(store, settings.hf_endpoint, DATASET) == waiting
    assert publish(world)
    with Store(settings.db) as store:
        assert left_over(store, settings.hf_endpoint, DATASET) == 0


def test_dataset_service_and_command_give_the_same_bytes(world: World) -> None:
    assert publish(world)
    formats = {"section.md": ("section",), "quantcard.json": ("json",), "badge.svg": ("badge",)}
    with served(world) as url:
        for name in NAMES:
            printed = subprocess.run(
                [sys.executable, "-m", "bot.cli", "fragment", REPO, "--format", *formats[name]],
                env=world.environment() | {"QUANTCARD_LEADERBOARD_URL": LEADERBOARD},
                capture_output=True,
                check=True,
                timeout=120,
            ).stdout
            assert printed == fetched(world, name) == ask(f"{url}/{REPO}/{name}")[1]
        bare = ask(f"{url}/{REPO}/section.md?markers=0")[1].decode()
    text = fetched(world, "section.md").decode()
    found = cards.find(text)
    assert found is not None and cards.find(bare) is None and bare.strip() in text
    told = json.loads(fetched(world, "quantcard.json"))
    assert (told["repo"], told["key"], told["base_model"]) == (REPO, found.key, BASE)
    q8 = next(one for one in told["variants"] if one["label"] == "Q8_0")
    assert q8["quality"]["kld"]["value"] == q8["quality"]["details"]["kld"]["mean"] > 0
    assert q8["speed"]["details"]["tests"] and str(world.folder) not in json.dumps(told)


def test_what_the_service_answers(world: World) -> None:
    with served(world) as url:
        repo = f"{url}/{REPO}"
        for name, kind in (
            ("section.md", "text/markdown"),
            ("quantcard.json", "application/json"),
            ("badge.svg", "image/svg+xml"),
        ):
            status, body, headers = ask(f"{repo}/{name}")
            assert status == 200 and headers["Content-Type"].startswith(kind) and body
            assert headers["Cache-Control"] == "public, max-age=300" and headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Access-Control-Allow-Origin"] == "*"
            etag = headers["ETag"]
            for given in (etag, f'"other", W/{etag}', "*"):
                status, none, again = ask(f"{repo}/{name}", If_None_Match=given)
                assert (status, none, again["ETag"]) == (304, b"", etag)
            assert ask(f"{repo}/{name}", If_None_Match='"other"')[0] == 200
            status, none, again = ask(f"{repo}/{name}", method="HEAD")
            assert (status, none, again["ETag"], again["Content-Length"]) == (200, b"", etag, str(len(body)))
            assert ask(f"{repo.upper().replace('HTTP', 'http').replace('REPOS', 'repos')}/{name}")[1] == body
            assert ask(f"{repo}/{name}", method="POST")[0] == 405
        assert "default-src 'none'" in ask(f"{repo}/badge.svg")[2]["Content-Security-Policy"]
        assert said(ask(f"{repo}/badge.svg")[1]) == "quantcard: 1 quant measured"
        for path in ("Q8_0/badge.svg", "demo-Q8_0.gguf/badge.svg", "badge.svg?variant=q8_0"):
            assert said(ask(f"{repo}/{path}")[1]).startswith("Q8_0: KLD 0.0")
        assert said(ask(f"{repo}/F16/badge.svg")[1]) == "F16: the original"

        for path in ("uploader/nobody", "a/b", f"{REPO}x", "%2e%2e/x", "a/%0a"):
            for name in ("section.md", "quantcard.json"):
                status, body, headers = ask(f"{url}/{path}/{name}")
                assert status == 404 and b"not known here" in body and headers["Cache-Control"] == "public, max-age=60"
            assert json.loads(ask(f"{url}/{path}/quantcard.json")[1])["error"]
            status, body, headers = ask(f"{url}/{path}/badge.svg")
            assert (status, said(body)) == (200, "quantcard: not measured yet")
            assert headers["Cache-Control"] == "public, max-age=60"
        for wanted in ("nothing", "%3Csvg%3E", "x" * 3000, "a/b/c"):
            assert said(ask(f"{repo}/{wanted}/badge.svg")[1]) == "quantcard: not measured yet"


@pytest.mark.parametrize("state", ["private", "gone"])
def test_what_others_can_not_see_is_not_told(world: World, state: str) -> None:
    with Store(world.settings().db) as store:
        store.db.conn.execute("UPDATE repos SET state = ? WHERE id = ?", (state, REPO))
    assert publish(world)
    tree = {item.path for item in world.api().list_repo_tree(DATASET, repo_type="dataset", recursive=True)}
    assert not any(path.startswith("cards/") for path in tree)
    with served(world) as url:
        assert [ask(f"{url}/{REPO}/{name}")[0] for name in NAMES] == [404, 404, 200]
        assert said(ask(f"{url}/{REPO}/badge.svg")[1]) == "quantcard: not measured yet"


def test_a_database_that_is_away_is_a_sentence(world: World) -> None:
    settings = world.settings()
    settings.db.unlink()
    settings.db.mkdir()
    with served(world) as url:
        status, body, headers = ask(f"{url}/{REPO}/quantcard.json")
        assert status == 503 and headers["Retry-After"] and str(world.folder) not in body.decode()
        assert json.loads(body)["error"].endswith("Try again in a minute.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["uploader/nobody"], "Nothing is measured"),
        ([REPO, "--format", "yaml"], "not one of"),
        ([REPO, "--variant", "Q8_0"], "Only a badge"),
        ([REPO, "--format", "badge", "--variant", "Q9"], "has no variant"),
    ],
)
def test_the_command_says_what_is_wrong(world: World, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bot.cli", "fragment", *arguments],
        env=world.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and said in " ".join(done.stderr.split())


def test_the_hub_takes_a_card_with_a_model_index_and_gives_it_back(world: World) -> None:
    hub = open_hub(world.settings())
    main = world.card("main").decode()
    with Store(world.settings().db) as store:
        found = splice_metadata(main, rows_of(world, store), key="abc123", enabled=True, source_url=LEADERBOARD)
    assert found.note is None
    done = hub.open_pull(REPO, files={"README.md": found.card.encode()}, title="A model-index", body="", parent=None)
    text = world.card(f"refs/pr/{done.num}").decode()
    assert text == found.card and remove_metadata(text) == main
    told = ModelCard(text).data
    assert told.base_model == BASE and told.license == "mit"
    assert {one.metric_name for one in told.eval_results or []} >= {"mean KLD (Q8_0)", "same top p (Q8_0)"}
