"""Downloads that break: cut, killed, damaged, without room. What arrived is gone on with; only whole files count."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bot_helpers import until
from fetch_world import MIB, SIZE, Shelf, content

from bot.hub import base
from bot.queue import fetch
from bot.queue.disk import Disk
from bot.queue.fetch import DamagedDownloadError, fetched_bytes, is_fetched, model_folder, model_path
from core.errors import HubUnreachableError, InputError, StorageError, TooLargeError
from core.gguf_files import RepoFile
from core.sandbox.child import JobStopped
from tests.conftest import ROOT


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(base, "_PAUSES", (0.01, 0.01))
    found = Shelf(tmp_path)
    with found.server:
        yield found


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(shelf: Shelf) -> None:
    shelf.put(m=content(1))
    variant = shelf.variant("m.gguf")
    shelf.faults.cut(r"/resolve/.*m\.gguf", after=2 * MIB)
    shelf.faults.cut(r"/resolve/.*m\.gguf", after=MIB)
    shelf.faults.requests.clear()
    path = model_path(shelf.data, variant, shelf.hub())
    assert path.read_bytes() == content(1)
    starts = [start for _, start in shelf.ranges]
    # The client may have read less than was sent, never more, and nothing twice.
    assert len(starts) == 3 and starts[0] == 0 and 0 < starts[1] <= 2 * MIB < starts[2] <= 3 * MIB
    assert is_fetched(shelf.data, variant) and fetched_bytes(shelf.data, variant) == SIZE
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.gguf", "m.gguf.ok"]
    shelf.faults.requests.clear()
    assert model_path(shelf.data, variant, shelf.hub()) == path and len(shelf.faults.requests) == 0


def test_a_hub_that_goes_away_leaves_what_came_for_the_next_try(shelf: Shelf) -> None:
    shelf.put(m=content(2))
    variant = shelf.variant("m.gguf")
    shelf.faults.cut(r"/resolve/", after=3 * MIB)
    shelf.faults.fail(r"/resolve/", status=503, times=100)
    with pytest.raises(HubUnreachableError):
        model_path(shelf.data, variant, shelf.hub())
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    kept = part.stat().st_size
    assert 0 < kept <= 3 * MIB and not is_fetched(shelf.data, variant)
    shelf.faults.clear()
    shelf.ranges.clear()
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(2)
    assert shelf.ranges == [("m.gguf", kept)]


CHILD = """
import sys, pickle, time
from pathlib import Path
from bot.hub.client import Hub
from bot.queue.fetch import model_path
data, url = Path(sys.argv[1]), sys.argv[2]
variant = pickle.loads(sys.stdin.buffer.read())
model_path(data, variant, Hub(endpoint=url, token=None), bytes_per_s=2_000_000)
"""


def test_a_process_killed_in_the_middle_is_gone_on_from(shelf: Shelf) -> None:
    shelf.put(m=content(3))
    variant = shelf.variant("m.gguf")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(shelf.data), shelf.server.url], cwd=ROOT, stdin=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(pickle.dumps(variant))
    child.stdin.close()
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    try:
        until(lambda: part.exists() and part.stat().st_size > MIB)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=10)
    kept = part.stat().st_size
    assert MIB < kept < SIZE
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(3)
    # The killed process's lock went with it, and the rest was asked for by its place.
    assert shelf.ranges == [("m.gguf", kept)]


def test_what_a_crash_of_the_machine_spoiled_is_found_and_fetched_anew(shelf: Shelf) -> None:
    shelf.put(m=content(4))
    variant = shelf.variant("m.gguf")
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    part.parent.mkdir(parents=True)
    # Blocks that never reached the disk read as zeros.
    part.write_bytes(content(4)[:MIB] + bytes(MIB))
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(4)
    assert [start for _, start in shelf.ranges] == [0 + 2 * MIB, 0]
    # One longer than the file can be.
    for path in list(part.parent.iterdir()):
        path.unlink()
    part.write_bytes(bytes(SIZE + 1))
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(4)


def test_a_file_that_is_not_what_the_hub_says_is_refused_after_a_second_try(shelf: Shelf) -> None:
    shelf.put(m=content(5))
    variant = shelf.variant("m.gguf")
    other = replace(variant, files=(replace(variant.files[0], sha256=hashlib.sha256(b"another").hexdigest()),))
    with pytest.raises(DamagedDownloadError, match="arrived damaged") as caught:
        model_path(shelf.data, other, shelf.hub())
    assert caught.value.retryable and [start for _, start in shelf.ranges] == [0, 0]
    assert not [p for p in model_folder(shelf.data, other).iterdir() if p.name.startswith("m.gguf")]
    nameless = replace(variant, files=(RepoFile("m.gguf", SIZE, None),))
    with pytest.raises(InputError, match="no sha256"):
        model_path(shelf.data, nameless, shelf.hub())


def test_the_shards_of_a_set_are_one_and_each_is_gone_on_with(shelf: Shelf) -> None:
    names = [f"big-{n:05d}-of-00003" for n in (1, 2, 3)]
    shelf.put(**{name: content(n) for n, name in enumerate(names)})
    variant = shelf.variant("big.gguf")
    assert len(variant.files) == 3
    shelf.faults.cut(r"00002-of-00003", after=MIB)
    shelf.faults.fail(r"00002-of-00003", status=503, times=100)
    with pytest.raises(HubUnreachableError):
        model_path(shelf.data, variant, shelf.hub())
    assert not is_fetched(shelf.data, variant)
    shelf.faults.clear()
    shelf.ranges.clear()
    first = model_path(shelf.data, variant, shelf.hub())
    assert first.name == f"{names[0]}.gguf" and is_fetched(shelf.data, variant)
    assert [first.with_name(f"{name}.gguf").read_bytes() for name in names] == [content(n) for n in range(3)]
    # The first shard was not asked for again, the second not from its start.
    assert [name for name, _ in shelf.ranges] == [f"{name}.gguf" for name in names[1:]] and shelf.ranges[0][1] > 0


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file-size limit of the process is a disk that takes no more (the kernel then says EFBIG)."""
    shelf.put(m=content(6))
    variant = shelf.variant("m.gguf")
    code = CHILD.replace(", bytes_per_s=2_000_000", "").replace(
        "import sys", "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\nimport sys", 1
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(shelf.data), shelf.server.url],
        cwd=ROOT, input=pickle.dumps(variant), capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert re.search(rb"StorageError: .*Free some space", done.stderr), done.stderr
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    assert part.stat().st_size == 2_000_000 and part.read_bytes() == content(6)[:2_000_000]
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(6)
    assert [start for _, start in shelf.ranges] == [2_000_000]


def test_no_more_than_the_budget_is_fetched(shelf: Shelf) -> None:
    shelf.put(one=content(7), two=content(8))
    one, two = shelf.variant("one.gguf"), shelf.variant("two.gguf")
    with pytest.raises(TooLargeError, match="QUANTCARD_DISK_BUDGET_GB"):
        model_path(shelf.data, one, shelf.hub(), disk=Disk(shelf.data, limit=SIZE - 1))
    assert shelf.ranges == []
    disk = Disk(shelf.data, limit=SIZE + MIB)
    model_path(shelf.data, one, shelf.hub(), disk=disk)
    with pytest.raises(StorageError, match="Free some space"):
        model_path(shelf.data, two, shelf.hub(), disk=disk)
    assert is_fetched(shelf.data, one) and [name for name, _ in shelf.ranges] == ["one.gguf"]


def test_two_who_want_the_same_file_fetch_it_once(shelf: Shelf) -> None:
    shelf.put(m=content(9))
    variant = shelf.variant("m.gguf")
    shelf.faults.delay(r"/resolve/", seconds=0.5)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(model_path(shelf.data, variant, shelf.hub()))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(set(found)) == 1 and len(found) == 4 and found[0].read_bytes() == content(9)
    assert shelf.ranges == [("m.gguf", 0)]


def test_a_download_stops_when_asked_and_so_does_one_who_waits_for_it(shelf: Shelf) -> None:
    shelf.put(m=content(10))
    variant = shelf.variant("m.gguf")
    stop = threading.Event()
    ended: list[str] = []

    def run(pace: float | None) -> None:
        try:
            model_path(shelf.data, variant, shelf.hub(), stop=stop.is_set, bytes_per_s=pace)
        except JobStopped:
            ended.append("stopped")

    threads = [threading.Thread(target=run, args=(pace,)) for pace in (500_000.0, None)]
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    threads[0].start()
    until(lambda: part.exists() and part.stat().st_size > 0)
    threads[1].start()
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join(timeout=10)
    assert ended == ["stopped", "stopped"]
    kept = part.stat().st_size
    assert 0 < kept < SIZE
    shelf.ranges.clear()
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(10) and shelf.ranges[0][1] == kept


def test_what_is_being_fetched_is_not_set_aside(shelf: Shelf) -> None:
    shelf.put(m=content(11))
    variant = shelf.variant("m.gguf")
    stop = threading.Event()

    def run() -> None:
        with pytest.raises(JobStopped):
            model_path(shelf.data, variant, shelf.hub(), stop=stop.is_set, bytes_per_s=500_000)

    thread = threading.Thread(target=run)
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    thread.start()
    until(lambda: part.exists() and part.stat().st_size > 0)
    fetch.set_aside(shelf.data, keep=())
    fetch.evict(shelf.data)
    assert part.exists()
    stop.set()
    thread.join(timeout=10)
    fetch.set_aside(shelf.data, keep=())
    assert not part.exists()
    fetch.evict(shelf.data)
    assert list((shelf.data / "models").iterdir()) == []


def test_a_server_that_ignores_ranges_is_understood(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put(m=content(12))
    variant = shelf.variant("m.gguf")
    part = model_folder(shelf.data, variant) / "m.gguf.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content(12)[:MIB])
    monkeypatch.setattr("localhub.ranges.parse", lambda *_: None)
    assert model_path(shelf.data, variant, shelf.hub()).read_bytes() == content(12)
    assert shelf.ranges == [("m.gguf", MIB)]
