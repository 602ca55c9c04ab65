"""One whole cycle: poll, plan, measure until the queue is empty, publish, export. Wiring only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bot.clock import Clock
from bot.hub.door import HubDoor
from bot.intake.watch import PollReport, poll
from bot.publish.export import export
from bot.publish.pulls import Outcome, publish_repo
from bot.publish.rows import current_rows, settled, stale_rows, view
from bot.queue.plan import plan
from bot.queue.worker import JobEvent, Worker
from bot.settings import Settings
from bot.store import Store
from bot.store.repos import Repo
from core.dataset import DatasetRow
from core.errors import HubError, QuantcardError

logger = logging.getLogger(__name__)

#: A waiting retry due within this many seconds is waited for by ``run --once``.
PATIENCE = 60.0


@dataclass
class CycleReport:
    """What one cycle did."""

    poll: PollReport = field(default_factory=PollReport)
    queued: int = 0
    jobs_done: int = 0
    jobs_dead: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    exported: bool = False
    errors: list[tuple[str, QuantcardError]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if all went well, 4 if the Hub refused or failed somewhere, 5 if a job died in this cycle."""
        if self.poll.errors or self.errors:
            return max(error.exit_code for _, error in [*self.poll.errors, *self.errors])
        return 5 if self.jobs_dead else 0


class Cycle:
    """The steps of a cycle over one store, Hub and settings.

    Args:
        tell_job: called with every job event.
        tell: called with a sentence at every step.
        stop: when set, the cycle ends after putting the running job back.
    """

    def __init__(
        self,
        store: Store,
        hub: HubDoor,
        settings: Settings,
        clock: Clock,
        *,
        tell_job: Callable[[JobEvent], None],
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.store, self.hub, self.settings, self.clock = store, hub, settings, clock
        self._tell_job, self._tell, self.stop = tell_job, tell, stop
        self.protocol = settings.protocol()

    def run(self) -> CycleReport:
        """Run every step once."""
        report = CycleReport()
        if self.settings.hf_token:
            self.hub.whoami()
        report.poll = self.poll()
        report.queued = self.plan()
        self.work(report)
        if not self.stop.is_set():
            self.publish(report)
        return report

    def poll(self) -> PollReport:
        """Look for changes on the Hub."""
        self._tell("Looking for new and changed GGUFs …")
        report = poll(self.store, self.hub, now=self.clock.now())
        self._tell(f"{report.seen} repos seen, {len(report.changed)} new or changed.")
        return report

    def plan(self) -> int:
        """Queue what is not measured yet; returns the number of new jobs."""
        seen = view(self.store, trusted=self.settings.trusted_owners)
        added = self.store.jobs.add(plan(seen.choices, self.protocol), now=self.clock.now())
        self._tell(f"{added} new jobs queued.")
        return added

    def work(self, report: CycleReport) -> None:
        """Run jobs until none is left that may start within :data:`PATIENCE`."""

        def tell(event: JobEvent) -> None:
            report.jobs_done += event.state == "done"
            report.jobs_dead += event.state == "dead"
            self._tell_job(event)

        worker = Worker(self.store, self.hub, self.settings, self.clock, tell=tell, stop=self.stop)
        before = self.store.jobs.counts().get("dead", 0)
        while not self.stop.is_set():
            if worker.run_one():
                continue
            due = self.store.jobs.next_start()
            wait = (due or 0) - self.clock.now()
            if due is None or wait > PATIENCE or wait <= 0:
                break
            self._tell(f"Waiting {wait:.0f} s to try a failed job again …")
            self.clock.sleep(min(wait, 1.0))
        report.jobs_dead = max(report.jobs_dead, self.store.jobs.counts().get("dead", 0) - before)

    def publish(self, report: CycleReport) -> None:
        """Bring cards and the dataset up to date."""
        seen = view(self.store, trusted=self.settings.trusted_owners)
        if self.settings.publish:
            for repo in seen.repos.values():
                if repo.source != "follow" or self.store.repos.follow_of(repo.id) is None:
                    continue
                rows = current_rows(self.store, seen, self.protocol, repo_id=repo.id)
                told = any(row.kld_mean is not None or row.tg_ts is not None for row in rows)
                if not told or not settled(self.store, seen, self.protocol, repo.id):
                    continue
                self._guard(report, repo.id, partial(self._publish_repo, report, repo, rows))
        hub = self.hub if self.settings.publish else None
        rows = self.rows()

        def export_rows() -> None:
            report.exported = export(self.store, hub, rows, data=self.settings.data, dataset=self.settings.dataset)

        self._guard(report, self.settings.dataset or "the export", export_rows)

    def _publish_repo(self, report: CycleReport, repo: Repo, rows: list[DatasetRow]) -> None:
        outcome = publish_repo(self.store, self.hub, self.settings, repo, rows, now=self.clock.now())
        report.outcomes.append(outcome)

    def rows(self) -> list[DatasetRow]:
        """Every row of the results dataset: current variants, and measured ones that were replaced."""
        seen = view(self.store, trusted=self.settings.trusted_owners)
        return current_rows(self.store, seen, self.protocol) + stale_rows(self.store, seen, self.protocol)

    def _guard(self, report: CycleReport, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except HubError as error:
            report.errors.append((what, error))
