"""The queue's table under a clock of our own: claims, leases, retries, and what follows from a dead dependency."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.clock import FakeClock
from bot.store import Store
from bot.store.jobs import BACKOFF, MAX_ATTEMPTS, MAX_DEFERRALS, Job, NewJob
from core.contract import ProgressEvent
from core.gguf_files import RepoFile, VariantFiles
from core.protocol import WIKITEXT2_TEST, Protocol

PROTOCOL = Protocol(corpus=WIKITEXT2_TEST)
LEASE = 100.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    with Store(tmp_path / "q.db") as found:
        save(found, "o/r", clock, "a", "b")
        yield found


def save(store: Store, repo: str, clock: FakeClock, *names: str) -> None:
    store.repos.save_repo(
        repo, sha="1", last_modified=None, source="follow", note=None, base_model=None, config={}, now=clock.now()
    )
    found = [(VariantFiles(n, (RepoFile(n, 1, n * 64),), 1), None, None) for n in names]
    store.repos.save_variants(repo, found, revision="1", now=clock.now())


def new(key: str, *, variant: int = 1, after: str | None = None, priority: int = 0) -> NewJob:
    return NewJob(key, "quality" if after else "baseline", variant, None, PROTOCOL, after, priority)


def claim(store: Store, clock: FakeClock, worker: str = "w") -> Job | None:
    return store.jobs.claim(worker, now=clock.now(), lease=LEASE)


def fail(store: Store, clock: FakeClock, job: Job, *, retryable: bool = True, deferred: bool = False) -> str | None:
    return store.jobs.fail(
        job.id, "w", error_type="JobError", reason="why", retryable=retryable, now=clock.now(), deferred=deferred
    )


def test_a_key_is_one_job_and_priority_comes_before_age(store: Store, clock: FakeClock) -> None:
    assert store.jobs.add([new("a"), new("b", priority=2), new("a")], now=clock.now()) == 2
    first, second, third = claim(store, clock), claim(store, clock), claim(store, clock)
    assert first and second and (first.key, second.key, third) == ("b", "a", None)


def test_a_dependency_is_waited_for_and_buried_with(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base"), new("q", after="base", priority=9)], now=clock.now())
    base = claim(store, clock)
    assert base and base.key == "base" and claim(store, clock) is None
    assert fail(store, clock, base, retryable=False) == "dead"
    assert claim(store, clock) is None
    found = store.jobs.by_keys(["q"])["q"]
    assert (found.state, found.error_type) == ("dead", "Dependency") and "why" in (found.error or "")
    assert not store.jobs.retry(999, now=clock.now())
    # Asking for the one that waited gives its dependency another chance too.
    assert store.jobs.retry(found.id, now=clock.now())
    assert {job.state for job in store.jobs.all()} == {"todo"}
    base = claim(store, clock)
    assert base and base.key == "base" and base.attempts == 1
    assert store.jobs.finish(base.id, "w", now=clock.now())
    assert (claim(store, clock) or base).key == "q"


def test_retry_of_the_dependency_revives_what_waited(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base"), new("q", after="base")], now=clock.now())
    base = claim(store, clock)
    assert base
    fail(store, clock, base, retryable=False)
    claim(store, clock)
    assert store.jobs.retry(base.id, now=clock.now())
    assert {job.state for job in store.jobs.all()} == {"todo"}
    assert not store.jobs.retry(base.id, now=clock.now())


def test_a_lost_worker_is_replaced_and_can_finish_nothing(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    job = claim(store, clock)
    assert job and store.jobs.next_start() == clock.now() + LEASE
    clock.sleep(LEASE - 1)
    assert store.jobs.heartbeat(
        job.id, "w", now=clock.now(), lease=LEASE, progress=ProgressEvent(stage="s", done=1, total=2)
    )
    clock.sleep(LEASE - 1)
    assert claim(store, clock, "other") is None
    clock.sleep(2)
    again = claim(store, clock, "other")
    assert again and again.attempts == 2
    assert not store.jobs.heartbeat(job.id, "w", now=clock.now(), lease=LEASE)
    assert not store.jobs.finish(job.id, "w", now=clock.now())
    assert not store.jobs.release(job.id, "w", reason="", now=clock.now())
    assert fail(store, clock, job) is None
    assert store.jobs.finish(job.id, "other", now=clock.now())
    assert not store.jobs.finish(job.id, "other", now=clock.now())


def test_a_job_that_loses_every_worker_is_dead_without_naming_a_machine(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    for _ in range(MAX_ATTEMPTS):
        assert claim(store, clock, "secret-host:1")
        clock.sleep(LEASE + 1)
    assert claim(store, clock) is None
    [job] = store.jobs.all()
    assert (job.state, job.error_type) == ("dead", "LostWorker") and "secret-host" not in (job.error or "")
    assert any("secret-host" in (event["reason"] or "") for event in store.jobs.events(job.id))


def test_retries_back_off_and_end(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    waits = []
    while job := claim(store, clock):
        state = fail(store, clock, job)
        due = store.jobs.next_start()
        if due is None:
            break
        waits.append(due - clock.now())
        assert claim(store, clock) is None
        clock.sleep(waits[-1])
    assert state == "dead" and waits == [BACKOFF, 2 * BACKOFF]


def test_what_could_not_start_is_no_attempt_but_not_for_ever(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    for tries in range(1, MAX_DEFERRALS + 1):
        job = claim(store, clock)
        assert job and job.attempts == 1
        state = fail(store, clock, job, deferred=True)
        assert state == ("dead" if tries == MAX_DEFERRALS else "todo")
        clock.sleep(3600)


def test_a_stopped_job_is_as_if_it_had_not_begun(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    job = claim(store, clock)
    assert job and store.jobs.release(job.id, "w", reason="stop", now=clock.now())
    again = claim(store, clock)
    assert again and again.attempts == 1


def test_redo_queues_what_is_finished_only(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base"), new("q", after="base")], now=clock.now())
    store.jobs.redo("base", reason="gone", now=clock.now())
    store.jobs.redo("nothing", reason="gone", now=clock.now())
    base = claim(store, clock)
    assert base
    store.jobs.redo("base", reason="gone", now=clock.now())
    assert store.jobs.finish(base.id, "w", now=clock.now())
    store.jobs.redo("base", reason="gone", now=clock.now())
    assert (claim(store, clock) or base).key == "base"
    assert claim(store, clock) is None, "what depends on it waits again"


def test_jobs_of_files_that_left_are_moved_or_withdrawn(store: Store, clock: FakeClock) -> None:
    save(store, "o/other", clock, "a")
    store.jobs.add([new("base", variant=1), new("q", variant=2, after="base"), new("s", variant=2)], now=clock.now())
    store.repos.save_variants("o/r", [], revision="2", now=clock.now())
    # The first file lies in another repo as well.
    there = store.repos.variants("o/other")[0]
    store.jobs.add([new("base", variant=there.id)], now=clock.now())
    assert store.jobs.withdraw_outdated() == 2
    [left] = store.jobs.all()
    assert (left.key, left.variant_id) == ("base", there.id)


def test_threads_never_claim_the_same_job(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new(f"k{n}") for n in range(40)], now=clock.now())
    claimed: list[int] = []

    def work(name: str) -> None:
        with Store(store.path) as own:
            while job := own.jobs.claim(name, now=clock.now(), lease=LEASE):
                claimed.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(set(claimed)) and len(claimed) == 40
