"""The leaderboard under load: how soon it shows something, answers a filter, what it sends, and what it takes.

The page is served as ``python -m space`` does, on this machine alone; everybody who asks stops after a fixed number of
questions.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import ROOT
from benchmarks.setting import say
from benchmarks.space_data import write_dataset
from benchmarks.table import BenchError, Row, Target, size

ROWS, MODELS = 100_000, 2_000
QUICK_ROWS, QUICK_MODELS = 2_000, 50
USERS, QUESTIONS = 50, 6
#: What a filter or a click on a heading asks.
_FILTERED = ("all variants", "base models", "model page", "uploader page")
_START_S, _ASK_S = 180.0, 60.0


def space_title(rows: int, models: int) -> str:
    """What stands above the table."""
    return f"leaderboard: {rows:,} measurements of {models:,} base models, {USERS} users at once"


def measure_space(folder: Path, *, rows: int = ROWS, models: int = MODELS) -> list[Row]:
    """Make a dataset, ask it in a process of its own, serve it and let many people ask.

    Raises:
        BenchError: the page does not come up.
    """
    say(f"making {rows:,} measurements …")
    published = write_dataset(folder / "published", rows=rows, models=models)
    say("asking …")
    asked = _asked(published)
    say(f"serving {USERS} users …")
    with _served(published) as page:
        first = page.first_content()
        load = page.crowd(asked["rows"])
        peak = page.peak_memory()
    found = [*_rows(asked, first, load, peak)]
    for few in (0, 1):
        say(f"the same with {few} measurements …")
        small = write_dataset(folder / f"published-{few}", rows=few, models=few)
        told = _asked(small)
        with _served(small) as page:
            page.first_content()
            failed = page.crowd(few, questions=1).errors
        found.append(Row(f"with {few} measurements: rows, errors", f"{told['rows']}, {len(failed)}"))
    return found


def _rows(asked: dict[str, Any], first: float, load: Load, peak: int) -> Iterator[Row]:
    filtered = sorted(took for name in _FILTERED for took in asked["times_s"].get(name, []))
    p95 = _at(filtered, 0.95)
    yield Row("reading the dataset, once for each revision", f"{asked['loaded_s']:.1f} s")
    yield Row("first content", f"{first:.2f} s", "2 s", target=Target("≤ 2 s", 2.0), value=first)
    yield Row("filter or sort, 95 %", f"{1e3 * p95:.0f} ms", "300 ms", target=Target("≤ 300 ms", 0.3), value=p95)
    for name, times in asked["times_s"].items():
        yield Row(f"– {name}: median, 95 %", f"{1e3 * _at(times, 0.5):.0f} ms, {1e3 * _at(times, 0.95):.0f} ms")
    largest = max(asked["bytes"], key=lambda name: asked["bytes"][name])
    n_bytes = asked["bytes"][largest]
    yield Row(
        f"data of the largest view ({largest})", size(n_bytes), "200 kB", target=Target("≤ 200 kB", 2e5), value=n_bytes
    )
    n = len(load.times)
    yield Row(
        f"errors of {n:,} questions by {USERS} users", f"{len(load.errors)}", "0", target=Target("none", 0),
        value=len(load.errors),
    )  # fmt: skip
    yield Row("– their wait: median, 95 %", f"{_at(load.times, 0.5):.2f} s, {_at(load.times, 0.95):.2f} s")
    yield Row("– answers a second", f"{n / load.seconds:.0f}")
    yield Row("memory of the page's process", size(peak), "1 GB", target=Target("≤ 1 GB", 1e9), value=peak)


def _at(times: list[float], share: float) -> float:
    return sorted(times)[int(share * (len(times) - 1))] if times else float("nan")


def _asked(published: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.space_child", str(published)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=1800, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise BenchError(f"The dataset could not be asked: {done.stderr.strip()[-300:]}") from None
    return found


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTCARD_", "HF_", "GRADIO_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}


@dataclass
class Load:
    """What a crowd met: the wait for each answer in seconds, and what went wrong."""

    times: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


@contextmanager
def _served(published: Path) -> Iterator[Page]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = _environment() | {
        "QUANTCARD_DATASET": str(published),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "space"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        page = Page(process.pid, port)
        deadline = time.monotonic() + _START_S
        while not page.is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("The page did not come up.")
            time.sleep(0.2)
        yield page
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Page:
    """The page as it is served."""

    pid: int
    port: int

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            self._get("/")
        except OSError:
            return False
        return True

    def first_content(self) -> float:
        """Seconds until a visitor's first table could be drawn, the median of three: the page, then its data."""
        times = []
        for _ in range(3):
            before = time.perf_counter()
            self._get("/")
            self.call("models", ["", "", 1, 50])
            times.append(time.perf_counter() - before)
        return sorted(times)[1]

    def crowd(self, rows: int, *, questions: int = QUESTIONS) -> Load:
        """Many users at once, each with a few questions one after the other."""
        load, begun = Load(), time.perf_counter()

        def user(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(questions):
                name, values = _question(draw, rows)
                before = time.perf_counter()
                try:
                    self.call(name, values)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    load.errors.append(f"{name}: {error}")
                load.times.append(time.perf_counter() - before)

        users = [threading.Thread(target=user, args=(seed,), daemon=True) for seed in range(USERS)]
        for one in users:
            one.start()
        for one in users:
            one.join(timeout=questions * _ASK_S)
        load.seconds = time.perf_counter() - begun
        return load

    def peak_memory(self) -> int:
        """Bytes that its process held at most."""
        status = Path(f"/proc/{self.pid}/status")
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return 1024 * int(found[1]) if found else 0

    def call(self, name: str, values: list[Any]) -> Any:
        """A named endpoint's answer, by Gradio's own way: a call, and the stream of its events."""
        body = json.dumps({"data": values}).encode()
        event = json.loads(self._ask("POST", f"/gradio_api/call/{name}", body))["event_id"]
        stream = self._ask("GET", f"/gradio_api/call/{name}/{event}").decode()
        if "event: complete" not in stream:
            raise ValueError(stream[:200])
        return json.loads(stream.partition("data: ")[2].splitlines()[0])

    def _get(self, path: str) -> bytes:
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ASK_S)
        try:
            connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
        return content


def _question(draw: random.Random, rows: int) -> tuple[str, list[Any]]:
    """Something that a visitor asks: endpoint and values."""
    words = draw.choice(["", "q4_k_m", "unsloth"])
    sort = draw.choice(["kld_mean", "-size", "tg", "-measured"])
    asked = [
        ("models", [draw.choice(["", "model-7"]), draw.choice(["", "-newest"]), 1, 50]),
        ("variants", ["", "", "", "", "", "", words, "", "all", 0, 0, 0.0, False, sort, 1, 50]),
        ("search", [draw.choice(["model-12", "iq4", "bartowski"]), 20]),
    ]
    if rows >= 100:
        asked.append(("uploader", ["unsloth", "", False, sort, 1, 50]))
    return draw.choice(asked)
