"""The next file is fetched while one is measured, within the budget, and nobody waits for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bot_helpers import until
from fetch_world import MIB, SIZE, Shelf, content

from bot.hub import base
from bot.queue.ahead import Ahead
from bot.queue.disk import Demand, Disk
from bot.queue.fetch import is_fetched, model_folder, model_path
from bot.store.repos import Variant


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(base, "_PAUSES", (0.01, 0.01))
    found = Shelf(tmp_path)
    with found.server:
        found.put(**{name: content(n) for n, name in enumerate("abcd")})
        yield found


class Queue:
    """The variants of jobs in their order; the first one runs."""

    def __init__(self, shelf: Shelf, *names: str) -> None:
        self.order = [shelf.variant(f"{name}.gguf") for name in names]

    def upcoming(self) -> list[Variant]:
        return self.order[1:]

    @contextmanager
    def demand(self) -> Iterator[Demand]:
        yield Demand({variant.key: place for place, variant in enumerate(self.order)})


def test_what_comes_next_is_fetched_in_its_order(shelf: Shelf) -> None:
    jobs = Queue(shelf, "a", "b", "c")
    with Ahead(shelf.data, shelf.hub(), Disk(shelf.data), jobs.upcoming, look_s=0.05) as ahead:
        until(lambda: is_fetched(shelf.data, jobs.order[2]))
        assert [name for name, _ in shelf.ranges] == ["b.gguf", "c.gguf"]
        jobs.order.append(shelf.variant("d.gguf"))
        ahead.wake()
        until(lambda: is_fetched(shelf.data, jobs.order[3]))
    # The running job's own file is its worker's.
    assert not is_fetched(shelf.data, jobs.order[0])
    assert [name for name, _ in shelf.ranges] == ["b.gguf", "c.gguf", "d.gguf"]


def test_a_worker_that_wants_the_file_meanwhile_waits_for_it(shelf: Shelf) -> None:
    jobs = Queue(shelf, "a", "b")
    part = model_folder(shelf.data, jobs.order[1]) / "b.gguf.part"
    with Ahead(shelf.data, shelf.hub(), Disk(shelf.data), jobs.upcoming, bytes_per_s=5_000_000, look_s=0.05):
        until(lambda: part.exists() and part.stat().st_size > 0)
        path = model_path(shelf.data, jobs.order[1], shelf.hub())
    assert path.read_bytes() == content(1) and shelf.ranges == [("b.gguf", 0)]


def test_it_stops_at_once_and_the_next_one_goes_on(shelf: Shelf) -> None:
    jobs = Queue(shelf, "a", "b")
    part = model_folder(shelf.data, jobs.order[1]) / "b.gguf.part"
    ahead = Ahead(shelf.data, shelf.hub(), Disk(shelf.data), jobs.upcoming, bytes_per_s=1_000_000, look_s=0.05)
    ahead.start()
    until(lambda: part.exists() and part.stat().st_size > 0)
    began = time.monotonic()
    ahead.stop()
    assert time.monotonic() - began < 1.5 and "ahead" not in {thread.name for thread in threading.enumerate()}
    kept = part.stat().st_size
    assert 0 < kept < SIZE
    ahead.start()
    until(lambda: part.stat().st_size > kept)
    ahead.stop()
    assert [start for _, start in shelf.ranges] == [0, kept]


def test_what_fails_is_left_to_its_job_and_the_others_are_fetched(shelf: Shelf) -> None:
    jobs = Queue(shelf, "a", "b", "c")
    shelf.faults.fail(r"/resolve/.*b\.gguf", status=404, times=100)
    with Ahead(shelf.data, shelf.hub(), Disk(shelf.data), jobs.upcoming, look_s=0.05):
        until(lambda: is_fetched(shelf.data, jobs.order[2]))
        asked = shelf.faults.requests.count(r"b\.gguf")
        time.sleep(0.3)
        # It is not asked for again and again.
        assert shelf.faults.requests.count(r"b\.gguf") == asked


def test_the_budget_holds_and_only_what_is_needed_later_makes_room(shelf: Shelf) -> None:
    jobs = Queue(shelf, "a", "b", "c", "d")
    disk = Disk(shelf.data, limit=2 * SIZE + MIB, demand=jobs.demand)
    a, b, c, d = jobs.order
    for variant in (a, d):
        model_path(shelf.data, variant, shelf.hub(), disk=disk)
    with Ahead(shelf.data, shelf.hub(), disk, jobs.upcoming, look_s=0.05):
        until(lambda: is_fetched(shelf.data, b))
        time.sleep(0.3)
        # For b the one that is needed last had to go; for c nothing may.
        assert [is_fetched(shelf.data, one) for one in (a, b, c, d)] == [True, True, False, False]
    # The first job is done: its file makes room for the next.
    jobs.order.pop(0)
    with Ahead(shelf.data, shelf.hub(), disk, jobs.upcoming, look_s=0.05):
        until(lambda: is_fetched(shelf.data, c))
        assert [is_fetched(shelf.data, one) for one in (a, b, c)] == [False, True, True]


def test_a_queue_that_can_not_be_read_ends_nothing(shelf: Shelf) -> None:
    jobs, asked = Queue(shelf, "a", "b"), [0]

    def upcoming() -> list[Variant]:
        asked[0] += 1
        if asked[0] == 1:
            raise ZeroDivisionError("an error of ours")
        return jobs.upcoming()

    with Ahead(shelf.data, shelf.hub(), Disk(shelf.data), upcoming, look_s=0.05):
        until(lambda: is_fetched(shelf.data, jobs.order[1]))
