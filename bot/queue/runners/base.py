"""The runner protocol: everything a new place to measure has to do. docs/runners.md shows how to add one.

A runner gets a :class:`Task` whose spec names files of this machine, runs it wherever it likes, and has what the spec
writes lie at the spec's own paths when it returns the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.contract import BaselineSpec, ProgressEvent, QualitySpec, Result, SpeedSpec
from core.gguf_files import RepoFile
from core.need import Capacity, Need
from core.sandbox.child import JobStopped, Stop

__all__ = ["JobStopped", "ModelSource", "Runner", "Stages", "Stop", "Task"]

#: The stages with a deadline; what a runner reports under any other name is "measuring".
QUEUED, FETCHING, MEASURING, UPLOADING = "queued", "fetching", "measuring", "uploading"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a task's weights lie on the Hub; a runner elsewhere takes them from there."""

    repo_id: str
    revision: str
    #: In the order of the shards; each with its path in the repo, its size and its sha256.
    files: tuple[RepoFile, ...]


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds after which a task that is still in this stage is given up and tried again later."""

    queued: float
    fetching: float
    measuring: float
    uploading: float


@dataclass(frozen=True, slots=True)
class Task:
    """One try at one job.

    Args:
        id: the idempotency key ([a-z0-9-], up to 63 characters): the same as long as the same run may still be going
            on somewhere, also after our own restart; another one once a run has failed.
        nonce: what a result has to come with (32 hex digits); the same for the same ``id``. Never shown to the
            process that reads the model.
        spec: paths are of this machine. Where ``Runner.local_files`` is False, the model's path is where it would
            lie: it was not fetched.
        need: estimated from the header; None where it is not known.
    """

    id: str
    nonce: str
    spec: BaselineSpec | QualitySpec | SpeedSpec
    model: ModelSource
    need: Need | None
    stages: Stages


class Runner(Protocol):
    """A place to measure. Every method may be called from several threads at once."""

    #: As it stands in the settings, on cards and in events: "local", "hf-jobs", "ray".
    name: str
    #: How many tasks it takes at once.
    slots: int
    #: Whether a task's files have to be on this machine's disk before :meth:`run`.
    local_files: bool

    def capacity(self) -> Capacity:
        """What its largest machine has; asked before a job is claimed, so answered without waiting."""
        ...

    def run(self, task: Task, *, report: Callable[[ProgressEvent], None], stop: Stop) -> Result:
        """Run a task to its end; one with this id that is already under way is joined, never started twice.

        Args:
            report: called in this thread with every step; the stages "queued", "fetching" and "uploading" tell what
                is not yet, or no more, measuring.
            stop: asked often. When set: with ``stop.reason`` "shutdown" or "lost" (another worker has the job now,
                under the same id) what runs elsewhere is left running, to be joined; with any other reason it is
                cancelled. Either way :class:`JobStopped` follows.

        Raises:
            JobStopped: ``stop`` was set.
            MachineLostError: the machine went away under the job; it is tried again.
            RunnerUnavailableError: it can't start anything now (no quota, no answer); tried again later.
            QuantcardError: the job's own error.
        """
        ...
