"""Hugging Face Jobs: a Job for each task, found again by its label, its result read from its log.

No token goes along, so that a stranger's file never lies beside one. What is large crosses in a bucket of ours; the
model is mounted from its own repo.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, repeat
from typing import TypeVar

from bot.clock import Clock, SystemClock
from bot.hub.budget import Urgency, urgency
from bot.hub.door import HubDoor
from bot.hub.jobs_api import DryRunJobsApi, HubJob, JobsApi
from bot.queue.runners import hf_jobs_plan as plan
from bot.queue.runners.base import FETCHING, MEASURING, QUEUED, UPLOADING, JobStopped, Runner, Stop, Task
from bot.queue.runners.hf_jobs_end import by_itself, read_log, without_result
from bot.queue.runners.hf_jobs_files import Files, sweep
from bot.queue.runners.hf_jobs_hardware import Hardware
from bot.queue.runners.hf_jobs_money import Ledger, cost
from bot.queue.runners.patiently import patiently
from bot.settings import Settings
from bot.store import Store
from core.contract import ErrorEvent, ProgressEvent, Result
from core.errors import (
    HubError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
    MachineLostError,
    QuantcardError,
    RunnerUnavailableError,
)
from core.frame import Ended, error_of
from core.need import Capacity

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds between looks at a Job.
POLL_S = 10.0
#: Characters of a log that are read at most, and lines of it for a look at how far the Job is.
_MAX_LOG, _TAIL = 64 << 20, 40
#: Pauses (seconds) between reads of an ended Job's log: its last lines may come later than its end.
_LATE = (1.0, 2.0, 4.0)
#: Pauses before looks for a Job whose start was asked for and not answered.
_LOST = (0.5, 2.0, 5.0, 15.0)
#: Pauses while the Hub is away, and seconds after which it has been away for too long.
_AWAY = (3.0, 10.0, 30.0, 60.0)
_PATIENCE_S = 1800.0
_TICK = 0.1


class HfJobsRunner:
    """Measures on Hugging Face Jobs.

    Args:
        api: Jobs and the bucket of who pays.
        files: what crosses in the bucket.
        image: what a Job runs; :func:`bot.queue.runners.hf_jobs_plan.checked_image`.
        flavors: names of those that may be used; none: all that have a GPU.
        timeout_s: seconds that a Job may run at most; its cost at the worst.
        unsafe: measure also where a Job's container has no sandbox of its own.
        poll_s: seconds between looks at a Job.
    """

    name = "hf-jobs"
    local_files = False

    def __init__(
        self,
        api: JobsApi,
        *,
        files: Files,
        ledger: Ledger,
        clock: Clock,
        image: str,
        slots: int = 1,
        flavors: tuple[str, ...] = (),
        timeout_s: float = 7200.0,
        unsafe: bool = False,
        poll_s: float = POLL_S,
    ) -> None:
        self.slots = slots
        self._api, self._files, self._ledger, self._clock = api, files, ledger, clock
        self._image, self._timeout_s = image, timeout_s
        self._hardware = Hardware(api, flavors)
        self._unsafe, self._poll_s = unsafe, poll_s

    def capacity(self) -> Capacity:
        """Of the largest hardware that may be used; nothing is known before the Hub has told of it."""
        return plan.largest(self._hardware.at_once())

    def run(self, task: Task, *, report: Callable[[ProgressEvent], None], stop: Stop) -> Result:
        """See :class:`bot.queue.runners.base.Runner`."""
        with urgency(Urgency.MEASURE):
            self._quietly(lambda: self._files.clean_old(now=self._clock.now()))
            job = self._joined(task, stop) or self._started(task, report, stop)
            try:
                job = self._followed(task, job, report, stop)
                ended = self._end(task, job, stop)
                self._settle(task, job)
                if isinstance(ended.event, ErrorEvent):
                    raise error_of(ended.event)
                report(ProgressEvent(stage=UPLOADING, done=0, total=sum(one.size for one in ended.outputs)))
                made = ended.event.result
                result = self._insist(lambda: self._files.brought_back(task, ended, made), stop)
            except JobStopped:
                # Where our lease is another worker's by now, that one has joined this very Job.
                if stop.reason not in ("shutdown", "lost"):
                    self._given_up(task, job)
                raise
            except HubError as error:
                self._given_up(task, job)
                raise RunnerUnavailableError(str(error)) from error
            except QuantcardError:
                self._given_up(task, job)
                raise
            self._quietly(lambda: self._files.clean_later(task, now=self._clock.now()))
            return result

    # starting

    def _joined(self, task: Task, stop: Stop) -> HubJob | None:
        """The Job of this task that runs or is done.

        Raises:
            RunnerUnavailableError: the Hub does not say.
        """
        try:
            # Going on without an answer would start it a second time.
            job = self._insist(lambda: self._oldest(task), stop)
        except HubError as error:
            raise RunnerUnavailableError(str(error)) from error
        if job is not None:
            logger.info("%s: joined the Job %s (%s)", task.id, job.id, job.stage)
            self._ledger.started(plan.run_of(task), job.id, now=self._clock.now())
        return job

    def _oldest(self, task: Task) -> HubJob | None:
        """Of the Jobs with this task's label that run or are done the oldest; the others are ended."""
        found = [job for job in self._api.find(task.id, plan.owner_of(task)) if job.joinable]
        for extra in found[1:]:
            if not extra.ended:
                self._api.cancel(extra.id)
        return found[0] if found else None

    def _started(self, task: Task, report: Callable[[ProgressEvent], None], stop: Stop) -> HubJob:
        """Start a Job for a task that has none.

        Raises:
            RunnerUnavailableError: there is no hardware, no money or no quota for it now.
            TooLargeError: it fits no hardware.
        """
        need = plan.need_of(task)
        try:
            choice = plan.choose(need, self._hardware.known())
            limit = plan.time_limit(task.stages, most=self._timeout_s)
            price = choice.flavor.usd_per_minute
            guess = cost(price, plan.guess_seconds(need, limit=limit))
            told = f"{choice.flavor.name}, about {guess:.2f} USD, {cost(price, limit):.2f} at most"
            self._reserve(task, price, limit)
            logger.info("%s: %s", task.id, told)
        except HubError as error:
            raise RunnerUnavailableError(str(error)) from error
        try:
            inputs = patiently(lambda: self._files.brought_there(task), stop)
            request = plan.request(
                task,
                choice,
                image=self._image,
                bucket=self._api.bucket,
                inputs=inputs,
                timeout_s=limit,
                unsafe=self._unsafe,
            )
            if stop.is_set():
                raise JobStopped
            job = self._asked(task, request)
        except BaseException as error:
            if not isinstance(error, _Unanswered):
                self._ledger.settle(plan.run_of(task), seconds=None, now=self._clock.now())
            if isinstance(error, HubError | _Unanswered):
                raise RunnerUnavailableError(str(error)) from error
            raise
        self._ledger.started(plan.run_of(task), job.id, now=self._clock.now())
        report(ProgressEvent(stage=QUEUED, done=0, total=0, note=told))
        return job

    def _asked(self, task: Task, request: plan.JobRequest) -> HubJob:
        """Ask for the Job once. Where the answer is lost it is looked for, since it may have been started."""
        try:
            job = self._api.start(request)
        except HubUnreachableError as error:
            for pause in _LOST:
                time.sleep(pause)
                with suppress(HubError):
                    if found := self._oldest(task):
                        return found
            # Its money stays reserved: it may appear yet.
            raise _Unanswered(str(error)) from error
        # Another of us may have asked at the same moment: then both go on with the older one.
        with suppress(HubError):
            return self._oldest(task) or job
        return job

    def _reserve(self, task: Task, price: float, limit: int) -> None:
        """Put the worst case aside; where that is too much, first look at what has ended unseen."""
        now = self._clock.now()
        try:
            self._ledger.reserve(plan.run_of(task), usd_per_minute=price, worst_s=limit, now=now)
        except RunnerUnavailableError:
            if not self._settled(now):
                raise
            self._ledger.reserve(plan.run_of(task), usd_per_minute=price, worst_s=limit, now=now)

    def _settled(self, now: float) -> int:
        """Settle runs of which nobody saw the end (the bot was killed, then the job went elsewhere); how many."""
        count = 0
        for one in self._ledger.open(now):
            with suppress(HubError):
                jobs = self._api.find(*one.run.rsplit("-", 1))
                if jobs and all(job.ended for job in jobs):
                    self._ledger.settle(one.run, seconds=_seconds(jobs), now=now)
                    count += 1
                elif not jobs and now - one.at > 3600:
                    self._ledger.settle(one.run, seconds=None, now=now)
                    count += 1
        return count

    # following

    def _followed(self, task: Task, job: HubJob, report: Callable[[ProgressEvent], None], stop: Stop) -> HubJob:
        """The Job once it has ended.

        Raises:
            JobStopped: told to stop.
            RunnerUnavailableError: no machine came in time.
            MachineLostError: the Hub knows nothing of it any more.
        """
        while not job.ended:
            if stop.is_set():
                raise JobStopped
            if job.stage == "SCHEDULING":
                # By the Hub's own clock, so that a restart of ours does not begin the wait anew.
                if (job.waited_s or 0.0) > task.stages.queued:
                    raise RunnerUnavailableError(
                        f"Hugging Face Jobs had no {job.flavor} for it within {task.stages.queued:.0f} s."
                    )
                report(ProgressEvent(stage=QUEUED, done=0, total=0, note=f"waits for {job.flavor}"))
            else:
                report(self._step(task, job))
            self._wait(stop, self._poll_s)
            try:
                job = self._api.look(job.id)
            except HubNotFoundError:
                raise MachineLostError("Hugging Face Jobs no longer knows the Job.") from None
            except (HubUnreachableError, HubRateLimitError) as error:
                # It goes on without us; its stage's deadline is ours to keep.
                logger.warning("%s: %s", task.id, error)
        return job

    def _step(self, task: Task, job: HubJob) -> ProgressEvent:
        """How far a running Job is, by the last lines of its log."""
        try:
            said = read_log(self._api.log(job.id, tail=_TAIL, limit=_MAX_LOG), task.nonce)
        except HubError as error:
            logger.debug("%s: %s", task.id, error)
            return ProgressEvent(stage=MEASURING, done=0, total=0)
        return said.progress or ProgressEvent(stage=FETCHING, done=0, total=0)

    def _insist(self, work: Callable[[], T], stop: Stop) -> T:
        """What ``work`` gives, asked for again while the Hub is away: a Job's result is not given up for that.

        Raises:
            JobStopped: ``stop`` was set.
            HubError: the Hub says no, or was away for long.
        """
        until = time.monotonic() + _PATIENCE_S
        for pause in chain(_AWAY, repeat(_AWAY[-1])):
            try:
                return patiently(work, stop)
            except (HubUnreachableError, HubRateLimitError) as error:
                if time.monotonic() + pause > until:
                    raise
                logger.warning("%s", error)
                self._wait(stop, pause)
        raise AssertionError("unreachable")

    def _quietly(self, work: Callable[[], object]) -> None:
        """Do what a result must not be lost for."""
        try:
            work()
        except QuantcardError as error:
            logger.warning("%s", error)

    def _settle(self, task: Task, job: HubJob) -> None:
        # What could not be written down stays reserved, which is more.
        self._quietly(lambda: self._ledger.settle(plan.run_of(task), seconds=_seconds([job]), now=self._clock.now()))

    def _wait(self, stop: Stop, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if stop.is_set():
                raise JobStopped
            time.sleep(min(_TICK, left))

    def _end(self, task: Task, job: HubJob, stop: Stop) -> Ended:
        """How an ended Job ended, by its log; by the line in the bucket where the log has lost it.

        Raises:
            QuantcardError: there is no result.
        """
        words = ""
        for pause in (*_LATE, None) if by_itself(job) else (None,):
            try:
                # Read from its first line each time: a stream that broke off must not look like the whole.
                said = read_log(self._insist(lambda: self._api.log(job.id, limit=_MAX_LOG), stop), task.nonce)
            except HubNotFoundError:
                break
            if said.ended is not None:
                return said.ended
            words = said.words
            if pause is not None:
                self._wait(stop, pause)
        line = self._insist(lambda: self._files.end_line(task), stop)
        if line and (found := read_log([line], task.nonce).ended):
            return found
        raise without_result(job, words)

    def _given_up(self, task: Task, job: HubJob) -> None:
        """End a Job that nobody waits for, write down what it cost, and clear its folder."""
        try:
            self._api.cancel(job.id)
            for _ in range(20):
                job = self._api.look(job.id)
                if job.ended:
                    break
                time.sleep(0.25)
            self._settle(task, job)
        except QuantcardError as error:
            # The Hub ends it at its time limit, and until then its worst case stays reserved.
            logger.warning("The Job %s could not be ended: %s", job.id, error)
        self._files.clean(task)


def _seconds(jobs: list[HubJob]) -> float | None:
    """Seconds for which Jobs ran, told in whole ones; None: none of them ever began."""
    ran = [job.running_s + 1.0 for job in jobs if job.running_s is not None]
    return sum(ran) if ran else None


class _Unanswered(QuantcardError):
    """A Job was asked for, and nobody knows whether it was started."""


def hf_jobs_runner(settings: Settings, hub: HubDoor) -> Runner:
    """The runner that the settings describe.

    Raises:
        SettingsError: the image is not pinned.
    """
    image = plan.checked_image(settings.hf_jobs_image, settings.hf_endpoint)
    made = DryRunJobsApi if hub.dry_run else JobsApi
    api = made(
        endpoint=settings.hf_endpoint,
        token=settings.hf_token,
        namespace=settings.hf_jobs_namespace,
        bucket=settings.hf_jobs_bucket,
    )

    def store() -> Store:
        return Store(settings.db)

    folder = settings.data / "hf-jobs"
    sweep(folder)
    return HfJobsRunner(
        api,
        files=Files(api, folder, store),
        ledger=Ledger(store, limit_usd=settings.hf_jobs_monthly_usd),
        clock=SystemClock(),
        image=image,
        slots=settings.hf_jobs_slots,
        flavors=tuple(settings.hf_jobs_flavors),
        timeout_s=settings.hf_jobs_timeout_s,
        unsafe=settings.hf_jobs_container_only or settings.unsafe_no_sandbox,
        poll_s=settings.hf_jobs_poll_s,
    )
