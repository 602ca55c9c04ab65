"""One whole cycle: poll, plan, measure until the queue is empty, publish, export. Wiring only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from bot.clock import Clock, moment_of
from bot.hub.budget import Urgency, urgency
from bot.hub.door import HubDoor
from bot.intake.proof import prove_references
from bot.intake.templates import audit_templates
from bot.intake.view import View, view
from bot.intake.watch import PollReport, poll
from bot.publish.export import export, left_over
from bot.publish.fragments import links_of
from bot.publish.lease import Lease, LeaseLostError
from bot.publish.manners import Decision
from bot.publish.outcome import Outcome, note_outcome, refused
from bot.publish.pulls import publish_repo
from bot.publish.rows import current_rows, settled
from bot.publish.told import told_rows
from bot.publish.writes import limited
from bot.queue.needs import memory_ratios
from bot.queue.plan import plan
from bot.queue.pool import Pool
from bot.queue.runners.registry import runners_of
from bot.queue.worker import JobEvent, alive, worker_name
from bot.settings import Settings
from bot.store import Store
from bot.store.db import immediate
from bot.store.switch import paused
from core import turns
from core.audit import AUDIT_VERSION
from core.canonical import fingerprint
from core.dataset import DatasetRow
from core.errors import (
    HubAuthError,
    HubConflictError,
    HubError,
    HubRateLimitError,
    HubUnreachableError,
    QuantcardError,
    StorageError,
)
from core.patience import NO_ANSWER_S, Patience
from core.retry import retry_class

logger = logging.getLogger(__name__)


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
        pause: asked between jobs; true ends the work step early, for polling and publishing what is done.
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
        pause: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pause = pause
        self.store, self.hub, self.settings, self.clock = store, hub, settings, clock
        self._tell_job, self._tell, self.stop = tell_job, tell, stop
        self.protocol = settings.protocol_in_force()

    def run(self, *, poll: bool = True, work: bool = True) -> CycleReport:
        """Run every step once.

        Args:
            poll: read lists; else only what is marked as changed is looked into.
            work: measure until the queue is empty; else somebody else does.
        """
        report = CycleReport()
        if self.settings.hf_token:
            self.hub.whoami()
        report.poll = self.poll(listings=poll)
        if not self.stop.is_set():
            self._guard(report, "references", self._prove)
        if not self.stop.is_set():
            report.queued = self.plan()
        if work:
            self.work(report)
        if not self.stop.is_set():
            self.publish(report)
        return report

    def poll(self, *, listings: bool = True) -> PollReport:
        """Look for changes on the Hub."""
        self._tell("Looking for new and changed GGUFs …" if listings else "Looking into what changed …")
        report = poll(
            self.store,
            self.hub,
            now=self.clock.now(),
            stop=self.stop,
            listings=listings,
            sweep_interval=self.settings.sweep_interval_s,
        )
        self._tell(f"{report.seen} repos seen, {len(report.changed)} new or changed.")
        if not self.store.repos.any() and not report.errors:
            self._tell("Nobody who is followed has a public GGUF repo; 'quantcard follows' lists them.")
        return report

    def _prove(self) -> None:
        """Prove a few files equal to their base models, where that gives somebody a reference."""
        settings = self.settings
        proofs = prove_references(
            self.store,
            self.hub,
            now=self.clock.now(),
            limit=settings.proofs_per_cycle,
            trusted=settings.trusted_owners,
        )
        for proof in proofs:
            self._tell(f"{proof.reference_key[:12]} beside {proof.base_model}: {proof.verdict}. {proof.detail}")

    def plan(self) -> int:
        """Queue what is not measured yet in repos that changed; returns the number of new jobs."""
        self._notice_other_rules()
        seen = view(self.store, trusted=self.settings.trusted_owners)
        added = 0
        self.store.watching.want_plan_of_sharers()
        for repo_id in self.store.watching.to_plan():
            with immediate(self.store.db):
                # First, in the same breath: what is wanted meanwhile by another process is not wiped out.
                self.store.watching.planned(repo_id)
                now = self.clock.now()
                jobs = plan(
                    seen.of(repo_id),
                    self.protocol,
                    urgency=self._urgency(repo_id, now),
                    ratios=partial(memory_ratios, self.store),
                )
                added += self.store.jobs.add(jobs, now=now)
        if withdrawn := self.store.jobs.withdraw_outdated():
            self._tell(f"{withdrawn} jobs of files that were replaced or removed were withdrawn.")
        self._tell(f"{added} new jobs queued.")
        return added

    def _urgency(self, repo_id: str, now: float) -> turns.Urgency:
        repo = self.store.repos.repo(repo_id)
        changed = moment_of(repo.last_modified) if repo and repo.last_modified else None
        return turns.urgency_of(asked=repo is not None and repo.source == "request", modified=changed, now=now)

    def _notice_other_rules(self) -> None:
        """Plan and publish everything anew where the protocol in force or the trusted owners are others."""
        if self.store.results.get("audit") != str(AUDIT_VERSION):
            self.store.watching.audit_again(AUDIT_VERSION, now=self.clock.now())
            self.store.results.put("audit", str(AUDIT_VERSION))
        rules = fingerprint([self.protocol.fingerprint, sorted(self.settings.trusted_owners)])
        if self.store.results.get("rules") != rules:
            self.store.watching.want_plan_of_all()
            self.store.publishing.touch_all(now=self.clock.now())
            self.store.results.put("rules", rules)

    def work(self, report: CycleReport) -> None:
        """Run jobs until none is left that may start soon."""

        def tell(event: JobEvent) -> None:
            report.jobs_done += event.state == "done"
            report.jobs_dead += event.state in ("failed", "dead")
            what = f"{event.job.kind} of {event.variant.name}"
            if event.state == "done":
                report.errors = [known for known in report.errors if known[0] != what]
            if event.cause and retry_class(event.cause) == "later":
                self._note(report, what, event.cause)
            self._tell_job(event)

        try:
            runners = runners_of(self.settings, self.hub)
        except QuantcardError as error:
            # What is measured already is published all the same.
            report.errors.append(("measuring", error))
            return
        before = self._given_up()
        Pool(
            self.store,
            self.hub,
            self.settings,
            self.clock,
            runners,
            tell_job=tell,
            tell=self._tell,
            stop=self.stop,
            pause=self._pause,
        ).run()
        report.jobs_dead = max(report.jobs_dead, self._given_up() - before)

    def _given_up(self) -> int:
        counts = self.store.jobs.counts()
        return counts.get("failed", 0) + counts.get("dead", 0)

    def publish(self, report: CycleReport) -> None:
        """Bring cards and the dataset up to date; one process at a time, or a repo could get two pulls."""
        lease = Lease(self.store, self.clock, owner=worker_name(), alive=alive)
        if self._take(lease):
            with lease.publishing():
                self._publish(report, lease)

    def _take(self, lease: Lease) -> bool:
        """Wait for our turn; False when we are stopped before it comes."""
        told = False
        while not lease.take():
            if self.stop.is_set():
                return False
            if not told:
                told = True
                self._tell("Another quantcard publishes from this database; waiting for it …")
            self.clock.sleep(0.5)
        return True

    def _publish(self, report: CycleReport, lease: Lease) -> None:
        seen = view(self.store, trusted=self.settings.trusted_owners)
        publishing, patience = self.settings.publish, Patience()
        if publishing and not self.settings.hf_token and not self.hub.dry_run:
            publishing = False
            said = "No token, so nothing is published: set HF_TOKEN to the bot's token, or QUANTCARD_PUBLISH=false."
            report.errors.append(("publishing", HubAuthError(said)))
        for repo_id in self._due_cards():
            # Kept until the export was made: what came of these cards is told in the dataset too.
            self.store.results.put("export", "due")
            if not publishing or self.stop.is_set():
                break
            error = self._guard(report, repo_id, partial(self._publish_repo, report, seen, repo_id, lease))
            if isinstance(error, LeaseLostError):
                return
            if isinstance(error, HubUnreachableError):
                # Of a Hub that is away, the others would fare no better, and each would take its time.
                self._put_off(repo_id, error)
                publishing = not patience.failed()
            elif isinstance(error, HubAuthError):
                # Most likely our token; once it may write, nothing should have to wait.
                publishing = not patience.failed()
            else:
                patience.well()
                publishing = not isinstance(error, HubRateLimitError)
        # The dataset is ours, so that quiet hours are no matter; a pause is, and what the Hub told us to wait.
        now = self.clock.now()
        silent = not self.hub.dry_run and (paused(self.store) or limited(self.store, now=now))
        hub = self.hub if publishing and not silent and not self.stop.is_set() else None
        if self.store.results.get("export") == "done":
            return

        def export_rows() -> None:
            rows = [*told_rows(self.store, seen, self.protocol)]
            made = export(
                self.store,
                hub,
                rows,
                data=self.settings.data,
                dataset=self.settings.dataset,
                links=links_of(self.settings),
            )
            report.exported = made and not self.hub.dry_run
            if self.hub.dry_run or (self.settings.dataset and hub is None):
                return
            if not left_over(self.store, self.hub.endpoint, self.settings.dataset):
                self.store.results.put("export", "done")

        self._guard(report, self.settings.dataset or "the export", export_rows)

    def _put_off(self, repo_id: str, error: HubUnreachableError) -> None:
        """One card that the Hub fails at must not be the first of the next cycle too."""
        if not self.hub.dry_run:
            now, repo = self.clock.now(), self.store.repos.repo(repo_id)
            outcome = refused(self.store, repo_id, error, now=now, first=NO_ANSWER_S)
            touched = self.store.publishing.touches(repo_id)
            note_outcome(self.store, outcome, sha=repo.sha if repo else None, now=now, touched=touched)

    def _due_cards(self) -> Iterator[str]:
        """The repos whose cards are to be decided, each once; one that ends may let others go on."""
        taken: set[str] = set()
        while more := [one for one in self.store.publishing.due(now=self.clock.now()) if one not in taken]:
            taken.update(more)
            yield from more

    def _publish_repo(self, report: CycleReport, seen: View, repo_id: str, lease: Lease) -> None:
        """Decide about one repo's card, and when to do so again."""
        lease.keep()
        now, touched = self.clock.now(), self.store.publishing.touches(repo_id)
        repo = self.store.repos.repo(repo_id)
        rows: list[DatasetRow] = []
        if repo is None or repo.source != "follow" or self.store.repos.follow_of(repo_id) is None:
            outcome = Outcome(repo_id, Decision("nothing", "It is not followed."))
        elif repo.state not in ("live", "gated"):
            outcome = Outcome(repo_id, Decision("nothing", repo.note or f"It is {repo.state}."))
        else:
            ended = settled(self.store, seen, self.protocol, repo_id)
            rows = current_rows(self.store, seen, self.protocol, repo_id=repo_id)
            told = any(row.kld_mean is not None or row.tg_ts is not None for row in rows)
            if ended and told:
                self._guard(report, f"the chat templates of {repo_id}", partial(self._learn_templates, seen, repo_id))
                rows = current_rows(self.store, seen, self.protocol, repo_id=repo_id)
            # Until its measurements have ended nothing is told, but its owners are heard.
            try:
                outcome = publish_repo(self.store, self.hub, self.settings, repo, rows, now=now, settled=ended)
            except (HubAuthError, HubUnreachableError, HubRateLimitError, HubConflictError, StorageError):
                raise
            except HubError as error:
                # It would be refused again: it is asked again later, and ever later.
                report.errors.append((repo_id, error))
                outcome = refused(self.store, repo_id, error, now=now)
            if (ended and told) or outcome.decision.action in ("open", "update"):
                report.outcomes.append(outcome)
        if self.hub.dry_run:
            return
        sha = repo.sha if repo else None
        note_outcome(self.store, outcome, sha=sha, now=now, touched=touched)

    def _learn_templates(self, seen: View, repo_id: str) -> None:
        """Learn the base model's chat template, so that the card can say how the files' differ from it."""
        with urgency(Urgency.LOOK):
            audit_templates(self.store, self.hub, repo_id, seen.base(repo_id).id, now=self.clock.now())

    def rows(self) -> list[DatasetRow]:
        """Every row of the results dataset: current variants, and measured ones that were replaced."""
        seen = view(self.store, trusted=self.settings.trusted_owners)
        return [*told_rows(self.store, seen, self.protocol)]

    def _guard(self, report: CycleReport, what: str, step: Callable[[], None]) -> QuantcardError | None:
        """Run a step; its error is noted and returned, and does not stop the others."""
        try:
            step()
        except QuantcardError as error:
            report.errors.append((what, error))
            return error
        except Exception as error:
            # One repo's surprise must not keep the others from being published.
            logger.exception("Publishing %s failed", what)
            report.errors.append((what, QuantcardError(f"An internal error ({type(error).__name__}); see the log.")))
        return None

    def _note(self, report: CycleReport, what: str, error: QuantcardError) -> None:
        """Note a job's error once, however often it was tried."""
        if not any(known == what and str(error) == str(other) for known, other in report.errors):
            report.errors.append((what, error))
