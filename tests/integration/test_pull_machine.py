"""Whatever happens: at most one open pull a repo, no byte outside the markers, nothing after a no.

A state machine against a hub on localhost: owners and strangers act between and in the middle of cycles, requests fail
or lose their answers, the bot is killed at any line, its database is lost. Which promises are checked after each cycle
stands in ``machine_judge``. For a long search, some hours say::

    MACHINE_EXAMPLES=5000 MACHINE_STEPS=30 python -m pytest tests/integration/test_pull_machine.py

What it finds is printed as a list of steps, which ``play`` in ``test_pull_sequences`` runs again.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from machine_people import CONFIGS, EDITS, SAYINGS, Deed
from machine_play import KINDS, PLACES, Dry, Faulty, Killed, Meanwhile, Play, Run
from machine_world import LABELS, MARKS, Measuring, quick

EXAMPLES, STEPS = int(os.environ.get("MACHINE_EXAMPLES", "20")), int(os.environ.get("MACHINE_STEPS", "12"))

_repos = st.sampled_from((0, 0, 1, 2, 2, 3))
_labels = st.tuples(st.sampled_from(LABELS), st.sampled_from(MARKS[1:]))
_files = st.one_of(
    st.builds(Deed, st.just("upload"), _repos, _labels),
    st.builds(Deed, st.just("upload"), _repos, st.just(("F16", 0))),
    st.builds(Deed, st.just("remove"), _repos, st.sampled_from(("F16", *LABELS))),
)
_cards = st.one_of(
    st.builds(Deed, st.just("edit"), _repos, st.sampled_from(sorted(EDITS))),
    st.builds(Deed, st.just("configure"), _repos, st.sampled_from(sorted(CONFIGS))),
)
_words = st.builds(
    Deed, st.sampled_from(("say", "say", "say", "shout", "rant")), _repos, st.sampled_from(sorted(SAYINGS))
)
_ends = st.builds(Deed, st.sampled_from(("merge", "merge", "close", "close", "reopen", "reopen older", "push")), _repos)
_odd = st.one_of(
    st.builds(Deed, st.just("hide"), _repos, st.sampled_from(("first", "last"))),
    st.builds(Deed, st.just("rename"), _repos),
    st.builds(Deed, st.just("discussions"), _repos, st.booleans()),
    st.builds(Deed, st.just("picture"), _repos, st.booleans()),
)
_deeds = st.one_of(_files, _cards, _words, _ends, _odd)
_runs: st.SearchStrategy[Run] = st.one_of(
    st.sampled_from((Run(), Run(), Run(), Dry())),
    st.builds(Faulty, st.sampled_from(KINDS), st.sampled_from(sorted(PLACES)), st.integers(0, 12),
              st.sampled_from((1, 1, 2, 1000))),
    st.builds(Killed, st.integers(1, 2400), st.just("publishing"), st.booleans()),
    st.builds(Killed, st.integers(1, 4000), st.just("anywhere"), st.booleans()),
    st.builds(Meanwhile, st.integers(0, 20), _deeds),
    st.builds(Meanwhile, st.integers(0, 3), _ends, st.just("writes")),
)  # fmt: skip
#: An open pull is looked at again after an hour.
_hours = st.sampled_from((0, 2, 2, 25))


class Machine(RuleBasedStateMachine):
    """Steps of :class:`Play`, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="quantcard-play-"))
        self._stack = ExitStack()
        self._measuring = Measuring()
        self._stack.enter_context(quick(self._measuring))
        self._play = self._stack.enter_context(Play(self._folder, self._measuring))
        self._broken = False

    def teardown(self) -> None:
        """Let everything come to rest, unless something was found already."""
        try:
            if not self._broken:
                self._play.rest()
        finally:
            self._stack.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    @initialize(run=_runs)
    def first_cycle(self, run: Run) -> None:
        self._do(lambda: self._play.step([], 0, run))

    @rule(deeds=st.lists(_files, min_size=1, max_size=2), hours=_hours, run=_runs)
    def files_change(self, deeds: list[Deed], hours: float, run: Run) -> None:
        self._do(lambda: self._play.step(deeds, hours, run))

    @rule(deeds=st.lists(_cards, min_size=1, max_size=2), hours=_hours, run=_runs)
    def cards_change(self, deeds: list[Deed], hours: float, run: Run) -> None:
        self._do(lambda: self._play.step(deeds, hours, run))

    @rule(deeds=st.lists(_words, min_size=1, max_size=2), hours=_hours, run=_runs)
    def people_talk(self, deeds: list[Deed], hours: float, run: Run) -> None:
        self._do(lambda: self._play.step(deeds, hours, run))

    @rule(deeds=st.lists(_ends, min_size=1, max_size=2), hours=_hours, run=_runs)
    def pulls_end(self, deeds: list[Deed], hours: float, run: Run) -> None:
        self._do(lambda: self._play.step(deeds, hours, run))

    @rule(deeds=st.lists(_deeds, min_size=1, max_size=4), hours=_hours, run=_runs)
    def much_happens(self, deeds: list[Deed], hours: float, run: Run) -> None:
        self._do(lambda: self._play.step(deeds, hours, run))

    @rule(deeds=st.lists(_deeds, max_size=2), run=_runs)
    def database_lost(self, deeds: list[Deed], run: Run) -> None:
        self._do(lambda: self._play.step(deeds, 0, run, lost=True))

    @rule(deeds=st.lists(_deeds, max_size=2))
    def paused_cycle(self, deeds: list[Deed]) -> None:
        self._do(lambda: self._play.step(deeds, 2, Run(), paused=True))

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException:
            self._broken = True
            raise


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")
@pytest.mark.timeout(0 if "MACHINE_EXAMPLES" in os.environ else 400)
def test_whatever_happens_the_bot_keeps_its_manners() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
