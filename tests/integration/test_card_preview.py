"""``quantcard card --preview`` and ``--fragment``, as commands over a hub on localhost."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from bot_helpers import REPO, UP, World, command


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as found:
        found.usual()
        found.follow(UP)
        assert found.cycle(publish=False).exit_code == 0
        yield found


def run(world: World, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", *arguments],
        env=world.environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_page_as_a_file_is_whole_and_nothing_is_written_to_the_hub(world: World, tmp_path: Path) -> None:
    world.faults.requests.clear()
    out = tmp_path / "page.html"
    done = run(world, "card", REPO, "--preview", "--out", str(out))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    page = out.read_text()
    assert "<h1>A model</h1>" in page and "Which file should I pick?" in page and 'class="add"' in page
    assert "without the card" not in page
    assert world.pulls() == [] and world.faults.requests.count(method="POST") == 0
    assert run(world, "card", REPO, "--out", str(out)).returncode == 2
    bad = run(world, "card", REPO, "--preview", "--out", str(tmp_path / "no" / "folder" / "x.html"))
    assert bad.returncode in (0, 6)


def test_it_is_served_until_ctrl_c(world: World) -> None:
    with command(world, "card", REPO, "--preview") as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert "A model" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert world.pulls() == []


def test_without_the_hub_the_section_alone_is_shown(world: World, tmp_path: Path) -> None:
    environment = world.environment()
    world.server.stop()
    out = tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-m", "bot.cli", "card", REPO, "--preview", "--out", str(out)],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = out.read_text()
    assert "Which file should I pick?" in page and "without the card that it goes on" in page
    assert "A model" not in page


def test_a_fragment_is_the_same_from_both_commands(world: World) -> None:
    one, other = run(world, "card", REPO, "--fragment"), run(world, "fragment", REPO)
    assert one.returncode == other.returncode == 0 and one.stdout == other.stdout
    assert one.stdout.startswith("<!-- quantcard:begin")


def test_of_what_was_not_measured_there_is_no_preview(world: World) -> None:
    done = run(world, "card", "some/where", "--preview")
    assert done.returncode == 2 and "Nothing is measured" in done.stderr
