"""``quantcard doctor`` as people call it, against a Hub on localhost: its words, its JSON, its exit codes; tokens."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bot_helpers import BOT, BOT_TOKEN, DATASET, READ_TOKEN, REPO, UP, World, command, until
from huggingface_hub.errors import HfHubHTTPError

from bot.doctor.checks import CHECKS
from bot.doctor.here import Here
from bot.doctor.probes import look_at_port
from bot.doctor.runners import judge_runners
from bot.doctor.token import Needs, judge_clock, judge_hub, judge_token
from bot.hub.account import ask_hub
from bot.store import Store
from localhub import seed

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
NEEDS = Needs(pulls=True, dataset=DATASET)
ENOUGH = {
    "global": ["discussion.write"],
    "scoped": [{"entity": {"type": "dataset", "name": DATASET}, "permissions": ["repo.content.read", "repo.write"]}],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("doctor"), template=False) as opened:
        yield opened


def doctor(world: World, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**world.environment(), **more}
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", "doctor", *arguments], env=environment, capture_output=True, text=True,
        timeout=300, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def fine_grained(world: World, rights: dict[str, Any], token: str) -> str:
    return seed.create_user(world.root, BOT, token=token, role="fineGrained", fine_grained=rights)


# the command


def test_a_whole_installation_is_looked_through(world: World) -> None:
    token = fine_grained(world, ENOUGH, "hf_whole_installation")
    done = doctor(world, "--json", HF_TOKEN=token, QUANTCARD_OPERATOR="me@example.org", QUANTCARD_PORT="0")
    told = findings(done)
    assert list(told) == [check.name for check in CHECKS]
    assert done.returncode == (json.loads(done.stdout)["state"] in ("bad", "unknown"))
    for name in ("settings", "gpu", "decode", "hub", "token", "clock", "database", "port", "files"):
        assert told[name]["state"] == "ok", told[name]
    assert all(one["found"] for check in told.values() for one in check["findings"])
    assert all(one["fix"] for check in told.values() for one in check["findings"] if one["state"] in ("warn", "bad"))
    assert token not in done.stdout + done.stderr
    assert f"{len(CHECKS)} checks in" in done.stderr


def test_its_words_are_these(world: World) -> None:
    done = doctor(
        world, "--only", "token", "--only", "settings", "--only", "port", "--only", "database",
        QUANTCARD_PORT="0", QUANTCARD_LEASE="3", QUANTCARD_PUBLIC_URL="https://bot.example", QUANTCARD_OPERATOR="me",
        QUANTCARD_RUNNERS='["local"]',
    )  # fmt: skip
    text = done.stdout.replace(world.server.url, "http://HUB").replace(str(world.folder), "FOLDER")
    assert done.returncode == 0 and BOT_TOKEN not in text
    path = GOLDEN / "doctor.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; look, then UPDATE_GOLDEN=1"
    assert re.fullmatch(r"4 checks in \d+\.\d s: 2 ok, 2 with a warning\.\n", done.stderr)


def test_what_is_bad_makes_exit_code_1(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        done = doctor(world, "--only", "port", QUANTCARD_PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1 and done.stdout.startswith("bad      port") and "QUANTCARD_PORT" in done.stdout
    assert "1 bad" in done.stderr


def test_a_check_that_is_none_is_a_usage_error(world: World) -> None:
    done = doctor(world, "--only", "spleen")
    assert done.returncode == 2 and done.stdout == "" and "spleen" in done.stderr and "leftovers" in done.stderr


def test_settings_that_can_not_be_read_are_a_finding(world: World, tmp_path: Path) -> None:
    config = tmp_path / "q.toml"
    config.write_text("lease = 3\nhf_token = 'hf_from_the_file'\n")
    arguments = ("--only", "settings", "--only", "files", "--only", "database", "--json")
    done = doctor(world, *arguments, QUANTCARD_CONFIG=str(config))
    told = findings(done)
    assert done.returncode == 1
    assert told["settings"]["state"] == "bad" and "'lease'" in told["settings"]["findings"][0]["found"]
    assert told["database"]["state"] == "unknown" and told["files"]["state"] in ("ok", "warn")
    config.write_text("hf_token = 'hf_from_the_file'\n")
    config.chmod(0o644)
    done = doctor(world, "--only", "settings", "--json", QUANTCARD_CONFIG=str(config))
    assert f"chmod 600 {config}" in done.stdout and "hf_from_the_file" not in done.stdout + done.stderr


def test_checks_are_shown_as_they_are_done(world: World) -> None:
    with command(world, "doctor", "--only", "files", "--only", "decode") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "decode" in first, "in the order of the checks"
        rest = process.stdout.read()
    assert "open at once" in rest


def test_a_damaged_database_and_a_stopped_hub(world: World, tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    done = doctor(world, "--only", "database", "--only", "hub", "--only", "token", "--only", "clock", "--json",
                  QUANTCARD_DB=str(path), HF_ENDPOINT="http://127.0.0.1:9")  # fmt: skip
    told = findings(done)
    states = {name: check["state"] for name, check in told.items()}
    assert states == {"hub": "bad", "token": "unknown", "clock": "unknown", "database": "bad"}
    assert done.returncode == 1


def test_it_says_when_its_own_service_has_the_port(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with command(world, "serve", port=port):
        until(lambda: look_at_port("127.0.0.1", port).ours, seconds=60)
        done = doctor(world, "--only", "port", QUANTCARD_PORT=str(port))
    assert done.returncode == 0 and "'quantcard serve' is listening" in done.stdout, done.stdout


# tokens, as the Hub tells them


def judged(world: World, token: str | None, needs: Needs = NEEDS) -> tuple[str, str]:
    answer = ask_hub(world.server.url, token)
    (found,) = judge_token(present=token is not None, answer=answer, needs=needs, now=time.time())
    return found.state, found.found


def test_tokens_of_every_kind(world: World) -> None:
    seed.create_user(world.root, "an-org", is_org=True, members=(BOT,))
    assert judged(world, None)[0] == "warn"
    assert judged(world, "hf_nobody")[0] == "bad"
    assert judged(world, READ_TOKEN)[0] == "bad"
    assert judged(world, READ_TOKEN, Needs(pulls=False))[0] == "ok"
    state, said = judged(world, BOT_TOKEN)
    assert state == "warn" and "classic 'write' token" in said and "an-org" in said


@pytest.mark.parametrize(
    ("rights", "state", "says"),
    [
        (ENOUGH, "ok", "no more"),
        ({**ENOUGH, "global": []}, "bad", "discussion.write everywhere"),
        ({**ENOUGH, "scoped": []}, "bad", f"repo.write on the dataset {DATASET}"),
        ({**ENOUGH, "global": ["discussion.write", "post.write"]}, "warn", "post.write everywhere"),
        (
            {**ENOUGH, "scoped": [{"entity": {"type": "user", "name": BOT}, "permissions": ["repo.write"]}]},
            "warn",
            f"all repos of {BOT}",
        ),
    ],
)  # fmt: skip
def test_fine_grained_tokens(world: World, rights: dict[str, Any], state: str, says: str) -> None:
    token = fine_grained(world, rights, f"hf_fine{abs(hash(json.dumps(rights)))}")
    found = judged(world, token)
    assert found[0] == state and says in found[1]
    assert token not in found[1]


def test_a_token_that_the_doctor_calls_enough_does_all_that_the_bot_does(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.usual()
        world.follow()
        seed.create_repo(world.root, DATASET, repo_type="dataset")
        token = fine_grained(world, ENOUGH, "hf_enough")
        assert judged(world, token)[0] == "ok"
        report = world.cycle(hf_token=token)
        assert report.exit_code == 0, report
        assert [pull.status for pull in world.pulls()] == ["open"]
        assert "README.md" in world.api(token).list_repo_files(DATASET, repo_type="dataset")


def test_a_token_that_the_doctor_calls_too_little_is_refused(tmp_path: Path) -> None:
    with World(tmp_path, template=False) as world:
        seed.upload_files(world.root, REPO, {"README.md": b"# A model"})
        few = fine_grained(world, {**ENOUGH, "global": []}, "hf_few")
        assert judged(world, few)[0] == "bad"
        with pytest.raises(HfHubHTTPError, match=r"discussion\.write"):
            world.api(few).create_discussion(REPO, "Hello there")
        with pytest.raises(HfHubHTTPError, match=r"repo\.write"):
            world.api(few).create_repo(f"{BOT}/other", repo_type="dataset")
        mine = fine_grained(world, {"scoped": ENOUGH["scoped"]}, "hf_mine")
        with pytest.raises(HfHubHTTPError, match=r"user\.webhooks\.write"):
            world.api(mine).create_webhook(url="https://bot.example/hook", watched=[{"type": "user", "name": UP}])


def test_the_clock_is_compared_with_the_hubs_own(world: World) -> None:
    answer = ask_hub(world.server.url, BOT_TOKEN)
    assert answer.date is not None and judge_hub(answer)[0].state == "ok"
    assert judge_clock(answer, newest=None, now=time.time())[0].state == "ok"
    assert ask_hub(world.server.url, None).date is not None, "also without a token"


def test_a_hub_that_is_slow_or_says_nonsense_does_not_hold_the_doctor_up(world: World) -> None:
    started = time.monotonic()
    assert ask_hub("http://127.0.0.1:9", BOT_TOKEN, timeout_s=2).error
    assert ask_hub("http://[broken", BOT_TOKEN, timeout_s=2).error
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        assert ask_hub(f"http://127.0.0.1:{silent.getsockname()[1]}", BOT_TOKEN, timeout_s=1).error
    assert time.monotonic() - started < 30


def test_a_database_in_the_future_is_found_by_the_command(world: World, tmp_path: Path) -> None:
    path = tmp_path / "future.db"
    with Store(path) as store:
        store.db.conn.execute("PRAGMA foreign_keys=OFF")
        store.db.conn.execute(
            "INSERT INTO jobs (key, kind, variant_id, protocol, created_at, updated_at) "
            "VALUES ('k', 'q', 1, 'p', 1, ?)",
            (time.time() + 86400 * 3,),
        )
    done = doctor(world, "--only", "clock", "--json", QUANTCARD_DB=str(path))
    (found,) = findings(done)["clock"]["findings"]
    assert found["state"] == "bad" and "3 days in the future" in found["found"]


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        ({"hf_jobs_monthly_usd": 500.0}, "ok", "USD at the worst, a month 500.00"),
        ({}, "warn", "limit is 0 USD"),
        ({"hf_jobs_monthly_usd": 0.001}, "warn", "none is ever started"),
        ({"hf_jobs_flavors": ["abacus"]}, "bad", "none of abacus"),
        ({"hf_jobs_image": ""}, "bad", "needs an image"),
        ({"hf_token": "hf_nobody"}, "warn", "not ready"),
        ({"hf_endpoint": "http://127.0.0.1:9"}, "warn", "did not answer"),
    ],
)
def test_the_hf_jobs_runner_is_looked_at(world: World, given: dict[str, Any], state: str, says: str) -> None:
    image = {"hf_jobs_image": f"owner/quantcard@sha256:{'a' * 64}"}
    (found,) = judge_runners(Here(world.settings(**{**image, **given})), ["hf-jobs"])
    assert found.state == state and says in found.found, found
