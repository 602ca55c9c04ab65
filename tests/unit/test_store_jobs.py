"""The queue's table under a clock of our own: claims, leases, retries, and what follows from a dead dependency."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bot.clock import FakeClock
from bot.store import Store
from bot.store.jobs import Job, NewJob
from core.contract import ProgressEvent
from core.gguf_files import RepoFile, VariantFiles
from core.need import Need
from core.protocol import WIKITEXT2_TEST, Protocol
from core.retry import DELAY, LIMITS, RetryClass
from core.turns import Urgency

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


def new(
    key: str, *, variant: int = 1, after: str | None = None, urgency: Urgency = "back-fill", owner: str = "o"
) -> NewJob:
    return NewJob(key, "quality" if after else "baseline", variant, None, PROTOCOL, after, urgency, owner)


def claim(store: Store, clock: FakeClock, worker: str = "w") -> Job | None:
    return store.leases.claim(worker, now=clock.now(), lease=LEASE)


def fail(store: Store, clock: FakeClock, job: Job, retry: RetryClass = "attempt") -> str | None:
    return store.leases.fail(job.id, "w", error_type="JobError", reason="why", retry=retry, now=clock.now())


def test_a_key_is_one_job_and_what_is_asked_for_comes_before_what_lay_there(store: Store, clock: FakeClock) -> None:
    assert store.jobs.add([new("a"), new("b", variant=2, urgency="asked"), new("a")], now=clock.now()) == 2
    first, second, third = claim(store, clock), claim(store, clock), claim(store, clock)
    assert first and second and (first.key, second.key, third) == ("b", "a", None)


def test_a_dependency_is_waited_for_and_buried_with(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base"), new("q", variant=2, after="base", urgency="asked")], now=clock.now())
    base = claim(store, clock)
    assert base and base.key == "base" and claim(store, clock) is None
    assert fail(store, clock, base, "never") == "failed"
    assert claim(store, clock) is None
    found = store.jobs.by_keys(["q"])["q"]
    assert (found.state, found.error_type) == ("dead", "Dependency") and "why" in (found.error or "")
    assert not store.jobs.retry(999, now=clock.now())
    # Asking for the one that waited gives its dependency another chance too.
    assert store.jobs.retry(found.id, now=clock.now())
    assert {job.state for job in store.jobs.all()} == {"todo"}
    base = claim(store, clock)
    assert base and base.key == "base" and base.attempts == 1
    assert store.leases.finish(base.id, "w", now=clock.now())
    assert (claim(store, clock) or base).key == "q"


def test_retry_of_the_dependency_revives_what_waited(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base"), new("q", after="base")], now=clock.now())
    base = claim(store, clock)
    assert base
    fail(store, clock, base, "never")
    claim(store, clock)
    assert store.jobs.retry(base.id, now=clock.now())
    assert {job.state for job in store.jobs.all()} == {"todo"}
    assert not store.jobs.retry(base.id, now=clock.now())


def test_a_lost_worker_is_replaced_and_can_finish_nothing(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    job = claim(store, clock)
    assert job and store.jobs.next_start() == clock.now() + LEASE
    clock.sleep(LEASE - 1)
    assert store.leases.heartbeat(
        job.id, "w", now=clock.now(), lease=LEASE, progress=ProgressEvent(stage="s", done=1, total=2)
    )
    clock.sleep(LEASE - 1)
    assert claim(store, clock, "other") is None
    clock.sleep(2)
    again = claim(store, clock, "other")
    # The same run may still be going on elsewhere: it is no other attempt.
    assert again and (again.attempts, again.lost, again.run_id) == (1, 1, job.run_id)
    assert not store.leases.heartbeat(job.id, "w", now=clock.now(), lease=LEASE)
    assert not store.leases.finish(job.id, "w", now=clock.now())
    assert not store.leases.release(job.id, "w", reason="", now=clock.now())
    assert fail(store, clock, job) is None
    assert store.leases.finish(job.id, "other", now=clock.now())
    assert not store.leases.finish(job.id, "other", now=clock.now())


def test_a_job_that_loses_every_worker_is_dead_without_naming_a_machine(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    for _ in range(LIMITS["lost"]):
        assert claim(store, clock, "secret-host:1")
        clock.sleep(LEASE + 1)
        # Whoever asks next notices; the job itself is put off by then, but the first time.
        if taken := claim(store, clock):
            store.leases.release(taken.id, "w", reason="not now", now=clock.now())
        clock.sleep(3600)
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
    assert state == "dead" and waits == [DELAY, 2 * DELAY]


def test_what_could_not_start_is_no_attempt_but_not_for_ever(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    for tries in range(1, LIMITS["later"] + 1):
        job = claim(store, clock)
        assert job and job.attempts == 1
        state = fail(store, clock, job, "later")
        assert state == ("dead" if tries == LIMITS["later"] else "todo")
        clock.sleep(3600)


def test_a_stopped_job_is_as_if_it_had_not_begun(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    job = claim(store, clock)
    assert job and store.leases.release(job.id, "w", reason="stop", now=clock.now())
    again = claim(store, clock)
    assert again and again.attempts == 1


def test_redo_queues_what_is_finished_only(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base"), new("q", after="base")], now=clock.now())
    store.jobs.redo("base", reason="gone", now=clock.now())
    store.jobs.redo("nothing", reason="gone", now=clock.now())
    base = claim(store, clock)
    assert base
    store.jobs.redo("base", reason="gone", now=clock.now())
    assert store.leases.finish(base.id, "w", now=clock.now())
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
            while job := own.leases.claim(name, now=clock.now(), lease=LEASE):
                claimed.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(set(claimed)) and len(claimed) == 40


def test_one_owners_thousand_files_do_not_stand_before_anothers_one(store: Store, clock: FakeClock) -> None:
    save(store, "big/r", clock, *(f"{n:x}" for n in range(10)))
    theirs = [variant.id for variant in store.repos.variants("big/r")]
    store.jobs.add([new(f"big{n}", variant=one, owner="big") for n, one in enumerate(theirs)], now=clock.now())
    clock.sleep(90)
    store.jobs.add([new("small", variant=1, owner="o")], now=clock.now())
    order = [job.key for job in store.jobs.all()]
    assert order.index("small") == 2 and [one for one in order if one != "small"] == [f"big{n}" for n in range(10)]


def test_nothing_starves_behind_what_is_asked_for(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("old")], now=clock.now())
    clock.sleep(8 * 86_400)
    store.jobs.add([new("asked", variant=2, urgency="asked", owner="x")], now=clock.now())
    assert [job.key for job in store.jobs.all()] == ["old", "asked"]


def test_a_baseline_comes_as_soon_as_the_most_urgent_of_what_waits_for_it(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base", owner="x"), new("other", variant=2)], now=clock.now())
    clock.sleep(600)
    store.jobs.add([new("base", owner="x"), new("q", variant=2, after="base", urgency="asked")], now=clock.now())
    assert [job.key for job in store.jobs.all()] == ["base", "q", "other"]


def test_a_cancelled_job_ends_at_once_or_by_its_worker_and_takes_along_what_waits(
    store: Store, clock: FakeClock
) -> None:
    store.jobs.add([new("base"), new("q", after="base"), new("other", variant=2)], now=clock.now())
    job = claim(store, clock)
    assert job and store.jobs.cancel(job.id, reason="not wanted", now=clock.now()) == "leased"
    assert store.leases.cancelled(job.id) == "not wanted"
    assert store.leases.release(job.id, "w", reason="", now=clock.now())
    states = {one.key: one.state for one in store.jobs.all()}
    assert states == {"base": "cancelled", "q": "dead", "other": "todo"}
    other = store.jobs.by_keys(["other"])["other"]
    assert store.jobs.cancel(other.id, reason="x", now=clock.now()) == "cancelled"
    assert store.jobs.cancel(other.id, reason="x", now=clock.now()) is None and claim(store, clock) is None
    assert store.jobs.retry(job.id, now=clock.now()) and (claim(store, clock) or job).run_id != job.run_id


def test_a_job_that_is_cancelled_while_its_worker_dies_does_not_come_back(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    job = claim(store, clock)
    assert job
    store.jobs.cancel(job.id, reason="not wanted", now=clock.now())
    clock.sleep(LEASE + 1)
    assert claim(store, clock) is None and [one.state for one in store.jobs.all()] == ["cancelled"]


def test_what_comes_after_a_dead_baseline_is_dead_with_its_reason(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("base")], now=clock.now())
    base = claim(store, clock)
    assert base
    fail(store, clock, base, "never")
    store.jobs.add([new("q", after="base")], now=clock.now())
    assert store.jobs.by_keys(["q"])["q"].error == "Its baseline could not be recorded: why"


def test_a_paused_queue_hands_out_nothing(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a")], now=clock.now())
    store.jobs.pause("a new disk")
    assert claim(store, clock) is None and store.jobs.paused() == "a new disk"
    store.jobs.resume()
    assert claim(store, clock)


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_clock_that_jumps_loses_no_job(store: Store, clock: FakeClock, hours: int) -> None:
    store.jobs.add([new("a"), new("b", variant=2)], now=clock.now())
    first, second = claim(store, clock), claim(store, clock)
    assert first and second and fail(store, clock, second) == "todo"
    clock.sleep(hours * 3600)
    again = [claim(store, clock, "other") for _ in range(2)]
    clock.sleep(LEASE + 1)
    again += [claim(store, clock, "other") for _ in range(2)]
    assert {job.key for job in again if job} == {"a", "b"}


def test_a_job_goes_only_where_it_fits(store: Store, clock: FakeClock) -> None:
    small = Need(weights=10, kv_cache=0, logits=0, compute=0, baseline=0, disk=0, n_layers=1)
    large = replace(small, weights=1000)
    jobs = [replace(new("large"), need=large), replace(new("small", variant=2), need=small)]
    store.jobs.add(jobs, now=clock.now())
    found = store.leases.claim("w", now=clock.now(), lease=LEASE, memory=100)
    assert found and found.key == "small" and found.need == small
    assert store.leases.claim("w", now=clock.now(), lease=LEASE, memory=100) is None
    assert store.leases.refuse_larger(100, now=clock.now()) == 1
    assert store.jobs.by_keys(["large"])["large"].state == "failed"


def test_workers_that_are_gone_give_their_jobs_back_at_once(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a"), new("b", variant=2)], now=clock.now())
    assert claim(store, clock, "dead:1") and claim(store, clock, "alive:2")
    assert store.leases.release_gone(lambda worker: not worker.startswith("dead"), now=clock.now()) == 1
    found = claim(store, clock)
    assert found and found.key == "a" and found.lost == 1


def test_places_and_times_come_from_what_was_measured(store: Store, clock: FakeClock) -> None:
    store.jobs.add([replace(new("a"), size_bytes=100)], now=clock.now())
    job = claim(store, clock)
    assert job and store.leases.began(job.id, "w", runner="local", now=clock.now())
    clock.sleep(50)
    store.leases.finish(job.id, "w", now=clock.now(), seconds=50)
    jobs = [replace(new(key, variant=2), size_bytes=100) for key in "bc"]
    store.jobs.add(jobs, now=clock.now())
    last = store.jobs.by_keys(["c"])["c"]
    place = store.standing.place(last, now=clock.now(), slots=1)
    assert place and (place.position, place.eta_s) == (2, 100.0)
    assert [one.key for one in store.standing.upcoming(5)] == ["b", "c"]
    claim(store, clock)
    clock.sleep(20)
    place = store.standing.place(last, now=clock.now(), slots=2)
    assert place and (place.position, place.eta_s) == (1, 30.0 / 2 + 50)
    assert store.standing.place(job, now=clock.now(), slots=1) is None


def test_a_job_whose_baseline_is_recorded_again_waits_for_it_however_it_came_back(
    store: Store, clock: FakeClock
) -> None:
    store.jobs.add([new("base"), new("q", variant=2, after="base")], now=clock.now())
    base = claim(store, clock)
    assert base and store.leases.finish(base.id, "w", now=clock.now())
    waits = claim(store, clock)
    assert waits and waits.key == "q"
    store.jobs.redo("base", reason="its file is gone", now=clock.now())
    assert fail(store, clock, waits) == "todo"
    clock.sleep(60)
    again = claim(store, clock)
    assert again and again.key == "base"
    clock.sleep(60)
    assert claim(store, clock) is None
    assert store.leases.finish(again.id, "w", now=clock.now())
    assert (claim(store, clock) or again).key == "q"


def test_a_job_that_cannot_be_read_holds_up_nobody(store: Store, clock: FakeClock) -> None:
    store.jobs.add([new("a"), new("b", variant=2), new("c", variant=2)], now=clock.now())
    store.db.conn.execute("UPDATE jobs SET protocol = '{}' WHERE key = 'a'")
    store.db.conn.execute("UPDATE jobs SET need = '{\"pages\": 1}' WHERE key = 'b'")
    assert claim(store, clock) is None
    found = claim(store, clock)
    assert found and found.key == "b" and found.need is None
    assert store.jobs.counts() == {"failed": 1, "leased": 1, "todo": 1}


def test_a_living_worker_keeps_its_job_when_the_clock_is_set_forward_but_not_for_ever(
    store: Store, clock: FakeClock
) -> None:
    store.jobs.add([new("a")], now=clock.now())
    job = claim(store, clock)
    assert job
    clock.sleep(30 * 86_400)

    def taken() -> Job | None:
        return store.leases.claim("other", now=clock.now(), lease=LEASE, alive=lambda _: True)

    assert taken() is None
    assert store.leases.heartbeat(job.id, "w", now=clock.now(), lease=LEASE)
    clock.sleep(LEASE + 1)
    assert taken() is None
    clock.sleep(4 * LEASE)
    # It lives, and nothing is heard of it.
    assert taken()


def test_what_was_queued_while_the_clock_was_ahead_does_not_wait_until_then(store: Store, clock: FakeClock) -> None:
    clock.sleep(365 * 86_400)
    store.jobs.add([new("ahead", owner="x")], now=clock.now())
    clock.sleep(-365 * 86_400)
    store.jobs.add([new("now", variant=2)], now=clock.now())
    clock.sleep(600)
    store.leases.release_gone(lambda _: None, now=clock.now())
    store.jobs.add([new("later", variant=2, owner="y")], now=clock.now())
    assert [job.key for job in store.jobs.all()] == ["now", "ahead", "later"]
