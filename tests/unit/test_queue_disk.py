"""What may leave the disk for what comes, and that nothing else does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.queue.disk import PROMISE, Demand, Disk, Kind, OpenJob, Stored, choose, demand_of, locked, scan
from core.errors import StorageError, TooLargeError

MB = 1_000_000


def model(name: str, size: int = 10, *, last_use: float = 0.0, busy: bool = False) -> Stored:
    return Stored("model", name, size, last_use, busy)


def names(chosen: list[Stored] | None) -> list[str] | None:
    return None if chosen is None else [one.name for one in chosen]


def test_what_nobody_needs_goes_before_what_is_needed_and_that_from_the_end() -> None:
    stored = [model("running"), model("next"), model("later"), model("old", last_use=1), model("older")]
    demand = Demand({"running": 0, "next": 1, "later": 9})
    assert names(choose(stored, demand, to_free=10, place=0)) == ["older"]
    assert names(choose(stored, demand, to_free=20, place=0)) == ["older", "old"]
    assert names(choose(stored, demand, to_free=30, place=0)) == ["older", "old", "later"]
    assert names(choose(stored, demand, to_free=40, place=0)) == ["older", "old", "later", "next"]
    # What a running job holds never goes, whatever is asked for.
    assert choose(stored, demand, to_free=41, place=0) is None
    assert choose(stored, demand, to_free=0, place=0) == []


def test_a_file_fetched_ahead_takes_nothing_from_one_that_is_needed_sooner() -> None:
    stored = [model("next"), model("later")]
    demand = Demand({"next": 1, "ahead": 5, "later": 9})
    assert names(choose(stored, demand, to_free=10, place=5)) == ["later"]
    assert choose(stored, demand, to_free=20, place=5) is None
    # One that nobody waits for takes only what nobody needs.
    assert choose(stored, demand, to_free=1, place=None) is None
    assert names(choose([*stored, model("x")], demand, to_free=1, place=None)) == ["x"]


def test_a_thing_is_needed_when_its_first_job_is() -> None:
    running = OpenJob("b", "y", running=True)
    jobs = [OpenJob("a", "x"), running, OpenJob("c", "x"), OpenJob("a"), OpenJob("c", running=True)]
    assert demand_of(jobs) == Demand({"a": 1, "b": 0, "c": 0}, {"x": 1, "y": 0})
    assert demand_of([]).place("model", "a") is None


def test_no_more_goes_than_has_to() -> None:
    stored = [model("small", 1, last_use=1), model("big", 100, last_use=2)]
    assert names(choose(stored, Demand(), to_free=50, place=0)) == ["big"]
    assert names(choose(stored, Demand(), to_free=101, place=0)) == ["small", "big"]


def test_what_is_being_fetched_stays_and_baselines_count_by_their_own_names() -> None:
    stored = [model("b", busy=True), Stored("baseline", "b", 10, 0.0), Stored("baseline", "w", 10, 0.0)]
    assert choose(stored, Demand({}, {"w": 0}), to_free=11, place=0) is None
    assert choose(stored, Demand({}, {"w": 0}), to_free=10, place=0) == [stored[1]]


THINGS = st.lists(
    st.builds(
        Stored,
        kind=st.sampled_from(["model", "baseline"]),
        name=st.sampled_from("abcdefgh"),
        size=st.integers(0, 50),
        last_use=st.floats(0, 10),
        busy=st.booleans(),
    ),
    max_size=10,
    unique_by=lambda one: (one.kind, one.name),
)
PLACES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5))


@given(THINGS, PLACES, PLACES, st.integers(0, 200), st.one_of(st.none(), st.integers(0, 5)))
def test_a_choice_frees_enough_and_touches_nothing_it_must_not(
    stored: list[Stored], models: dict[str, int], baselines: dict[str, int], to_free: int, place: int | None
) -> None:
    demand = Demand(models, baselines)
    chosen = choose(stored, demand, to_free=to_free, place=place)

    def may_go(one: Stored) -> bool:
        at = demand.place(one.kind, one.name)
        return not one.busy and (at is None or (place is not None and at > place))

    if chosen is None:
        assert sum(one.size for one in stored if may_go(one)) < to_free
        return
    freed = sum(one.size for one in chosen)
    assert freed >= to_free and all(map(may_go, chosen))
    # Each of them is needed for that, and whatever nobody needs went first.
    assert all(freed - one.size < to_free for one in chosen)


class Folder:
    """A data folder with things of a megabyte each in it."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def add(self, kind: Kind, name: str, *, last_use: float = 1.0) -> Path:
        folder = self.data / f"{kind}s" / name
        (folder / "deep").mkdir(parents=True)
        (folder / "one").write_bytes(bytes(MB // 2))
        (folder / "deep" / "two").write_bytes(bytes(MB // 2))
        os.utime(folder, (last_use, last_use))
        return folder

    def there(self) -> set[str]:
        return {folder.name for kind in ("models", "baselines") for folder in (self.data / kind).glob("*")}

    def disk(self, limit: int, demand: Demand) -> Disk:
        @contextmanager
        def asked() -> Iterator[Demand]:
            yield demand

        return Disk(self.data, limit=limit, demand=asked)

    def ask(self, disk: Disk, name: str, n_bytes: int) -> None:
        with locked(self.data / "models" / name, wait=lambda: None):
            disk.make_room(self.data / "models" / name, n_bytes, wanted=name)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path / "data")
    for number, name in enumerate("abc"):
        found.add("model", name, last_use=number)
    found.add("baseline", "base")
    (found.data / "corpora").mkdir()
    (found.data / "corpora" / "text").write_bytes(bytes(MB))
    return found


def test_a_scan_counts_everything_and_names_what_may_go(folder: Folder) -> None:
    (folder.data / "models" / ".doomed-x").mkdir()
    (folder.data / "models" / "loose").write_bytes(b"x")
    stored, used = scan(folder.data)
    assert {(one.kind, one.name, one.size) for one in stored} == {
        ("model", "a", MB), ("model", "b", MB), ("model", "c", MB), ("baseline", "base", MB)
    }  # fmt: skip
    assert used == 5 * MB + 1 and [one.last_use for one in stored[:3]] == [0, 1, 2]
    assert scan(folder.data / "nowhere") == ([], 0)


def test_room_is_made_within_the_limit_and_corpora_stay(folder: Folder) -> None:
    demand = Demand({"a": 1, "c": 0, "new": 0}, {"base": 3})
    # The promise itself takes a few bytes.
    five, six = (n * MB + 100 for n in (5, 6))
    folder.ask(folder.disk(six, demand), "new", MB)
    assert folder.there() == {"a", "b", "c", "base", "new"}
    folder.ask(folder.disk(five, demand), "new", MB)
    assert folder.there() == {"a", "c", "base", "new"}
    folder.ask(folder.disk(five, demand), "new", 2 * MB)
    assert folder.there() == {"a", "c", "new"}
    with pytest.raises(StorageError, match=r"new needs 0.0 GB on disk.*QUANTCARD_DISK_BUDGET_GB"):
        folder.ask(folder.disk(five, demand), "new", 4 * MB)
    assert folder.there() == {"a", "c", "new"} and (folder.data / "corpora" / "text").exists()
    with pytest.raises(TooLargeError, match="are allowed"):
        folder.ask(folder.disk(five, demand), "new", five + 1)


def test_without_knowing_what_is_needed_nothing_goes(folder: Folder) -> None:
    with pytest.raises(StorageError):
        folder.ask(Disk(folder.data, limit=5 * MB), "new", MB)
    assert {"a", "b", "c", "base"} <= folder.there()


def test_two_who_fetch_at_once_never_count_on_the_same_bytes(folder: Folder) -> None:
    disk = folder.disk(8 * MB, Demand(dict.fromkeys(("a", "b", "c", "x", "y"), 0), {"base": 0}))
    with locked(folder.data / "models" / "x", wait=lambda: None):
        disk.make_room(folder.data / "models" / "x", 2 * MB, wanted="x")
        with pytest.raises(StorageError):
            folder.ask(disk, "y", 2 * MB)
        # What has arrived of a promise is not counted twice.
        (folder.data / "models" / "x" / "part").write_bytes(bytes(MB))
        folder.ask(disk, "y", MB - 1000)
        with pytest.raises(StorageError):
            folder.ask(disk, "y", MB + 1000)
    # Whoever promised it is gone: the promise is worth nothing.
    assert (folder.data / "models" / "x" / PROMISE).exists()
    folder.ask(disk, "y", 2 * MB - 1000)


def test_a_folder_that_was_taken_away_while_it_was_waited_for_is_made_again(tmp_path: Path) -> None:
    place = tmp_path / "models" / "m"
    held, go, seen = threading.Event(), threading.Event(), []

    def holder() -> None:
        with locked(place, wait=lambda: None):
            held.set()
            go.wait(5)
            place.rename(place.with_name("gone"))

    def waiter() -> None:
        with locked(place, wait=lambda: go.set()):
            seen.append(place.is_dir())

    threads = [threading.Thread(target=holder), threading.Thread(target=waiter)]
    threads[0].start()
    assert held.wait(5)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert seen == [True]


def test_a_reserve_stays_free_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(100 * MB, 0, 10 * MB))
    folder = Folder(tmp_path)
    disk = Disk(tmp_path)
    folder.ask(disk, "new", 8 * MB)
    with pytest.raises(StorageError, match="Free some space"):
        folder.ask(disk, "new", 8 * MB + 1)


class _Usage:
    def __init__(self, total: int, used: int, free: int) -> None:
        self.total, self.used, self.free = total, used, free
