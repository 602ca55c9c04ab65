"""The queue under load: 100,000 jobs, eight workers that take and end them; and that none is handed out twice.

Each worker is a process of its own with a connection of its own, as several machines' would be. Whoever has a job holds
a file that only one process can make; a second one that is handed the same job would fail to make it. Beside it stands
what the workers do with nothing but SQLite: the smallest table that hands out rows, with the same number of processes.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.children import ROOT
from benchmarks.setting import say
from benchmarks.table import BenchError, Row, Target

WORKERS = 8
JOBS, QUICK_JOBS = 100_000, 5_000
ATTEMPTS, QUICK_ATTEMPTS = 1_000_000, 20_000
#: Of the jobs that are handed out, how many are ended; the others are put back, so that the queue stays long.
_ENDED = 0.05
_LIMIT_S = 3600.0


def queue_title(jobs: int) -> str:
    """What stands above the table."""
    return f"queue: {jobs:,} jobs, {WORKERS} workers, each a process"


def measure_queue(folder: Path, *, jobs: int = JOBS, attempts: int = ATTEMPTS) -> list[Row]:
    """Fill a queue, have it worked on, and count."""
    held = folder / "held"
    held.mkdir()
    say(f"queueing {jobs:,} jobs …")
    begun = time.perf_counter()
    _fill(folder / "queue.db", jobs)
    filled = time.perf_counter() - begun
    say(f"{attempts:,} leases by {WORKERS} workers …")
    ours = _work(folder, "ours", attempts // WORKERS)
    say("the same with a bare table …")
    _fill_bare(folder / "bare.db", jobs)
    bare = _work(folder, "bare", min(attempts, 80_000) // WORKERS)
    return [*_rows(jobs, filled, ours, bare)]


def _rows(jobs: int, filled: float, ours: list[dict[str, Any]], bare: list[dict[str, Any]]) -> Iterator[Row]:
    times = sorted(took for one in ours for took in one["times"])
    peer = sorted(took for one in bare for took in one["times"])
    tried, twice = sum(one["attempts"] for one in ours), sum(one["twice"] for one in ours)
    median, mean, bare_mean = statistics.median(times), statistics.fmean(times), statistics.fmean(peer)
    yield Row("queueing them", f"{filled:.1f} s, {1e6 * filled / jobs:.0f} µs each")
    yield Row(
        "lease, median",
        f"{1e3 * median:.2f} ms",
        "5 ms",
        target=Target("≤ 5 ms", 5e-3),
        value=median,
    )
    slowest = ", ".join(f"{1e3 * times[int(q * (len(times) - 1))]:.1f} ms" for q in (0.95, 0.99, 1))
    yield Row("– 95 %, 99 %, longest", slowest)
    yield Row("– mean, beside a bare table", f"{1e3 * mean:.2f} ms", f"{1e3 * bare_mean:.2f} ms", mean / bare_mean)
    yield Row("– a second", f"{tried / max(one['seconds'] for one in ours):,.0f}")
    yield Row("handed out twice", f"{twice} of {tried:,}", "0", target=Target("none", 0), value=twice)


def _fill(db: Path, jobs: int) -> None:
    from bot.store import Store
    from bot.store.jobs import NewJob
    from core.gguf_files import RepoFile, VariantFiles
    from core.protocol import WIKITEXT2_TEST, Protocol

    protocol, owners = Protocol(corpus=WIKITEXT2_TEST), 50
    with Store(db) as store:
        for owner in range(owners):
            repo, now = f"owner-{owner}/r", time.time()
            store.repos.save_repo(
                repo, sha="1", last_modified=None, source="follow", note=None, base_model=None, config={}, now=now
            )
            names = [f"m-{number}" for number in range(jobs // owners)]
            files = [RepoFile(name, 1, f"{owner:02d}{name:>062}") for name in names]
            found = [(VariantFiles(file.path, (file,), 1), None, None) for file in files]
            store.repos.save_variants(repo, found, revision="1", now=now)
            new = [
                NewJob(f"{owner}-{one.id}", "speed", one.id, None, protocol, owner=f"owner-{owner}")
                for one in store.repos.variants(repo)
            ]
            store.jobs.add(new, now=now)


def _fill_bare(db: Path, jobs: int) -> None:
    with sqlite3.connect(db) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, worker TEXT)")
        connection.execute("CREATE INDEX ready ON jobs(id) WHERE state = 'todo'")
        connection.executemany("INSERT INTO jobs VALUES (?, 'todo', NULL)", ((n,) for n in range(jobs)))


def _work(folder: Path, which: str, attempts: int) -> list[dict[str, Any]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTCARD_", "HF_"))}
    command = [sys.executable, "-m", "benchmarks.queueing", which, str(folder), str(attempts)]
    workers = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, env={**kept, "PYTHONPATH": str(ROOT)}, text=True)
        for n in range(WORKERS)
    ]
    try:
        return [json.loads(worker.communicate(timeout=_LIMIT_S)[0].splitlines()[-1]) for worker in workers]
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise BenchError(f"A worker of the queue came to no good end ({type(error).__name__}).") from None
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _ours(folder: Path, attempts: int, seed: int) -> dict[str, Any]:
    """Take jobs, hold each for a moment by a file that nobody else can have made, and end it or put it back."""
    from bot.store import Store

    chance, times, twice = random.Random(seed), [], 0
    worker = f"w{seed}"
    with Store(folder / "queue.db") as store:
        begun = time.perf_counter()
        for _ in range(attempts):
            before = time.perf_counter()
            job = store.leases.claim(worker, now=time.time(), lease=600)
            times.append(time.perf_counter() - before)
            if job is None:
                continue
            mark = folder / "held" / str(job.id)
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                twice += 1
                continue
            mark.unlink()
            if chance.random() < _ENDED:
                store.leases.finish(job.id, worker, now=time.time())
            else:
                store.leases.release(job.id, worker, reason="put back", now=time.time())
        seconds = time.perf_counter() - begun
    return {"times": times, "twice": twice, "attempts": attempts, "seconds": seconds}


def _bare(folder: Path, attempts: int, seed: int) -> dict[str, Any]:
    connection = sqlite3.connect(folder / "bare.db", timeout=30, isolation_level=None)
    connection.execute("PRAGMA synchronous=NORMAL")
    times, begun = [], time.perf_counter()
    for _ in range(attempts):
        before = time.perf_counter()
        found = connection.execute(
            "UPDATE jobs SET state = 'running', worker = ? WHERE id = "
            "(SELECT id FROM jobs WHERE state = 'todo' ORDER BY id LIMIT 1) RETURNING id",
            (seed,),
        ).fetchall()
        times.append(time.perf_counter() - before)
        connection.executemany("UPDATE jobs SET state = 'todo' WHERE id = ?", found)
    return {"times": times, "twice": 0, "attempts": attempts, "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    made = {"ours": _ours, "bare": _bare}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(made))
