"""One play of the pull machine: steps over one world, each judged, and the rest at the end."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from machine_judge import Broken, Judge
from machine_people import Deed, Ground, People, usual
from machine_world import HOUR, REPOS, Measuring, Scope, World, impatient, kill_at, kill_in

from bot.cycle import CycleReport
from bot.publish import drawing
from bot.store import Store
from bot.store.switch import pause, resume
from core.errors import QuantcardError
from localhub.faults import Fault, Plan

#: What may happen to a request.
FAULTS: dict[str, Fault] = {
    "lost": Fault(drop="after"),
    "cut": Fault(drop="before"),
    "slow": Fault(delay=0.5),
    "500": Fault(status=500),
    "503": Fault(status=503, headers={"Retry-After": "1"}),
    "429": Fault(status=429, headers={"Retry-After": "1"}),
    "429 budget": Fault(status=429, headers={"RateLimit": '"api";r=0;t=120'}),
    "412": Fault(status=412),
    "403": Fault(status=403),
    "404": Fault(status=404),
}
KINDS = ("lost", *FAULTS)
#: To which requests.
PLACES = {
    "any": r"",
    "writes": r"^POST .*/(commit/|comment|status|edit)",
    "commit": r"^POST .*/commit/",
    "plots": r"/preupload/|/objects/batch|/lfs-upload/|/info/lfs/verify",
    "discussions": r"/discussions",
    "repos": r"^GET /api/models",
}
_WRITES = re.compile(r"^(POST|PUT|DELETE|PATCH) (?!.*/(preupload|paths-info|validate-yaml)\b)")


@dataclass(frozen=True)
class Run:
    """A cycle to which nothing happens."""


@dataclass(frozen=True)
class Faulty(Run):
    """A cycle in which the requests from the ``nth`` on that go ``where``, ``times`` of them, meet a fault."""

    kind: str
    where: str
    nth: int
    times: int = 1


@dataclass(frozen=True)
class Killed(Run):
    """A cycle whose process dies before a line."""

    line: int
    scope: Scope
    interrupt: bool = False


@dataclass(frozen=True)
class KilledIn(Run):
    """A cycle whose process dies where it calls a function."""

    function: str


@dataclass(frozen=True)
class Dry(Run):
    """A cycle of ``--dry-run``."""


@dataclass(frozen=True)
class Meanwhile(Run):
    """A cycle in which a person does something right before the ``nth`` request that goes ``where`` is answered."""

    nth: int
    deed: Deed
    where: str = "any"


class Play:
    """A world with its people and its judge."""

    def __init__(self, folder: Path, measuring: Measuring) -> None:
        self.world, self.measuring = World(folder), measuring
        # A bot that is to be killed is a fork: what it would load to draw is there already.
        drawing._library()
        self.ground = Ground(self.world.root)
        self.people, self.judge = People(self.ground), Judge(self.ground)

    def __enter__(self) -> Self:
        for _ in usual(self.people):
            pass
        self.world.follow_all()
        self.world.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.world.__exit__(kind, error, trace)

    def step(
        self, deeds: Sequence[Deed], hours: float, run: Run, *, lost: bool = False, paused: bool = False
    ) -> CycleReport | None:
        """People act, time passes, a cycle runs, and what it did is judged. What is measured anew is another figure.

        Args:
            lost: the database is lost first.
            paused: writing is paused during the cycle.
        """
        world = self.world
        self.measuring.series += 1
        for deed in deeds:
            self.people.do(deed)
        world.pass_time(hours * HOUR)
        if lost:
            world.lose_database()
            self.judge.lost = True
        with Store(world.db) as store:
            if paused:
                pause(store, reason="a look", now=world.clock.now())
            self.judge.before(store=store)
        world.faults.requests.clear()
        report = self._run(run)
        quiet = "writing is paused" if paused else "it is a dry run" if isinstance(run, Dry) else None
        if quiet and (written := self.written()):
            raise Broken(f"{written} though {quiet}")
        undisturbed = type(run) is Run and report is not None
        self.judge.after(report, now=world.clock.now(), paused=quiet is not None, undisturbed=undisturbed)
        if paused:
            with Store(world.db) as store:
                resume(store)
        return report

    def _run(self, run: Run) -> CycleReport | None:
        world = self.world
        match run:
            case Killed():
                world.die(partial(kill_at, run.line, run.scope, interrupt=run.interrupt))
                return None
            case KilledIn():
                assert world.die(partial(kill_in, run.function)), f"{run.function} was not called"
                return None
            case Faulty():
                world.faults.plan(_plan(run))
            case Meanwhile():
                world.faults.plan(self._meanwhile(run))
        slow = isinstance(run, Faulty) and run.kind == "slow"
        try:
            with impatient(0.25) if slow else nullcontext():
                return world.cycle(dry_run=isinstance(run, Dry))
        except QuantcardError:
            return None
        finally:
            world.faults.clear()
            if slow:
                time.sleep(0.6)  # until what was asked for has been done

    def _meanwhile(self, run: Meanwhile) -> Plan:
        nth = _nth(run.where)

        def decide(method: str, path: str) -> None:
            if nth(method, path) == run.nth:
                self.people.do(run.deed)

        return decide

    def written(self) -> list[str]:
        """The requests of the last cycle that write, but for those to repos whose discussions are off."""
        asked = [f"{request.method} {request.path}" for request in self.world.faults.requests.all()]
        refused = [repo_id for repo_id in REPOS if self.judge.discussions_off(repo_id)]
        return [one for one in asked if _WRITES.search(one) and not any(repo_id in one for repo_id in refused)]

    def rest(self, *, cycles: int = 10) -> None:
        """Nothing happens any more: within some quiet cycles, a day apart, all is as it should be and stays so."""
        world, n_silent = self.world, 0
        for _ in range(cycles):
            report = self.step([], 25, Run())
            n_silent = 0 if self.written() else n_silent + 1
            if n_silent == 2:
                break
        else:
            assert report is not None
            raise Broken(f"still writing: {self.written()}, {[(o.repo_id, o.decision) for o in report.outcomes]}")
        with Store(world.db) as store:
            self.judge.at_rest(store, world.settings().protocol_in_force().fingerprint)


def _plan(run: Faulty) -> Plan:
    nth = _nth(run.where)

    def decide(method: str, path: str) -> Fault | None:
        return FAULTS[run.kind] if 0 <= nth(method, path) - run.nth < run.times else None

    return decide


def _nth(where: str) -> Callable[[str, str], int]:
    """Counts the requests that go there, from 0; a large negative number for others."""
    pattern, seen = re.compile(PLACES[where]), itertools.count()
    return lambda method, path: next(seen) if pattern.search(f"{method} {path}") else -(10**9)
