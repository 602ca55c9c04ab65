"""Chaos: the real service over small real jobs, killed (-9) again and again; then judged from outside.

A Hub in a folder holds many small variants of the demo's model, each a file of its own. ``quantcard serve`` measures
and publishes them with two jobs at once, and all the while the service, its children or both are killed: at random
moments, and at those in which queues are known to lose jobs (:mod:`benchmarks.chaos_world`). What is left in the end
is held against the same run without kills by :mod:`benchmarks.chaos_judge`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.chaos_judge import difference
from benchmarks.chaos_world import Plan, Told, World
from benchmarks.setting import say
from benchmarks.table import Row, Target

FULL = Plan(kills=210, variants=252, repos=12, waves=4)
QUICK = Plan(kills=20, variants=24, repos=3, waves=2, limit_s=1200.0)
_NONE = Target("none", 0)


def chaos_title(plan: Plan) -> str:
    """What stands above the table."""
    return f"chaos: {plan.kills} kills (-9) over {plan.jobs} jobs, seed {plan.seed}"


def measure_chaos(folder: Path, plan: Plan) -> list[Row]:
    """The run without kills, the one with them, and what became of it.

    Raises:
        BenchError: it came to no end.
    """
    calm = Plan(0, len(plan.labels), 1, 1, plan.labels, plan.seed, limit_s=min(plan.limit_s, 600.0))
    say(f"{plan.kills} kills over {plan.jobs} jobs, seed {plan.seed}, and a run without kills beside it …")
    with ThreadPoolExecutor(1) as beside:
        undisturbed = beside.submit(World(folder / "calm", calm).play)
        told = World(folder / "chaos", plan).play()
        return [*_rows(plan, undisturbed.result(), told)]


def _rows(plan: Plan, calm: Told, told: Told) -> Iterator[Row]:
    found, kills = told.verdict, sum(told.kills.values())

    def none(what: str, wrong: list[str], of: int) -> Row:
        return Row(what, f"{len(wrong)} of {of:,}", "0", target=_NONE, value=len(wrong), samples={"which": wrong[:20]})

    yield Row("kills", f"{kills}", target=Target(f"≥ {plan.kills}", float("inf"), plan.kills), value=kills)
    for kind, n in sorted(told.kills.items()):
        yield Row(f"– {kind}", f"{n}")
    yield Row("– of the children killed", _told(told.victims))
    called_for = Target(f"{plan.jobs:,}", plan.jobs, plan.jobs)
    yield Row("jobs", f"{found.jobs:,}", f"{plan.jobs:,} called for", target=called_for, value=found.jobs)
    yield Row("– ended as", _told(found.states))
    yield Row("– given up, all their tries killed", f"{len(found.given_up)}", samples={"which": found.given_up})
    yield none("not ended exactly once", found.not_once, found.jobs)
    yield none("given up without that", found.given_up_wrongly, found.jobs)
    yield none("measured twice, or ended without a measurement", found.measurements, found.jobs)
    different = difference(calm.verdict, found)
    yield none("figures and baselines that differ from the undisturbed run's", different, found.compared)
    yield none("processes left", found.processes, len(told.starts))
    yield none("files left", found.files, found.n_files)
    yield none("what the database's own check says", found.database, 1)
    yield none("repos without exactly one pull", found.pulls, plan.repos)
    yield Row("runs of a job", _told({f"{n}×": times for n, times in sorted(found.runs.items())}))
    yield Row("– ended by a kill of the service", f"{found.lost:,}")
    yield Row("– ended by a kill of a child", f"{found.died:,}")
    waits = [found.first_lease[pid] - at for pid, at in told.starts if pid in found.first_lease]
    yield Row("starts of the service", f"{len(told.starts)}, {len(waits)} of them came to take a job")
    if waits:
        yield Row(
            "– start to first job taken, median", f"{statistics.median(waits):.1f} s", f"longest: {max(waits):.1f} s"
        )
    yield Row("a child outlived its service by, at most", f"{told.outlived:.2f} s")
    yield Row("time", f"{told.seconds:.0f} s", f"undisturbed, {calm.verdict.jobs} jobs: {calm.seconds:.0f} s")


def _told(counted: Mapping[str, int] | Counter[str]) -> str:
    return ", ".join(f"{n} {what}" for what, n in counted.items()) or "none"
