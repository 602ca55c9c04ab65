"""The README's promise: the whole main job in one command; a second time there is nothing left to do."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

#: As on a user's machine: nothing is set, Xet neither.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "QUANTCARD_"))}


def demo(folder: Path, *arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", "demo", "--dir", str(folder), "--hub-port", "0", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    return demo(folder, "--once")


def jobs(folder: Path) -> list[tuple[str, str]]:
    return sqlite3.connect(folder / "quantcard.db").execute("SELECT kind, state FROM jobs").fetchall()


def test_the_demo_measures_every_quant_and_opens_a_pull(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert first.returncode == 0, first.stderr
    table = {line.split()[0]: line for line in first.stdout.splitlines() if " MB " in line}
    assert set(table) == {"F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"}
    kld = {name: float(re.search(r"MB +(\S+) ±", line)[1]) for name, line in table.items()}  # type: ignore[index]
    assert kld["F16"] < 1e-4 < kld["Q8_0"] < kld["Q4_K_M"] < kld["Q2_K"]
    assert re.search(
        r"Pull \(open\): http://127\.0\.0\.1:\d+/demo-uploader/quantcard-demo-GGUF/discussions/1", first.stdout
    )
    assert sorted(jobs(folder)) == sorted([("baseline", "done")] + [("quality", "done"), ("speed", "done")] * 8)


def test_a_second_demo_runs_no_job_and_opens_no_pull(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    before = jobs(folder)
    again = demo(folder, "--once")
    assert again.returncode == 0, again.stderr
    assert "0 jobs run, 0 pulls opened" in again.stderr
    assert jobs(folder) == before
    assert "discussions/1" in again.stdout and "discussions/2" not in again.stdout


def test_the_demo_keeps_serving_until_it_is_told_to_end(first: subprocess.CompletedProcess[str], folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bot.cli", "demo", "--dir", str(folder), "--hub-port", "0", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("The demo's Hub"):
                break
        address = re.search(r"Leaderboard: (\S+)", said)[1]  # type: ignore[index]
        page = _get(address)
        assert "quantcard" in page
        card = _get(re.search(r"The demo's Hub: (\S+)", said)[1])  # type: ignore[index]
        assert "quantcard-demo-GGUF" in card
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _get(url: str) -> str:
    """The page at a loopback address, once it answers."""
    assert url.startswith("http://127.0.0.1:")
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer")
