"""Jobs on an existing Ray cluster, through its Jobs API; the bot and all nodes see the data folder at one path.

A task's id is its submission id, so that a run is found again after our restart and never started twice. Its result
comes as a framed line in the job's log and, as logs go with their node, in a file that only the job's parent writes.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bot.hub.door import HubDoor
from bot.queue.runners.base import FETCHING, QUEUED, JobStopped, Runner, Stop, Task
from bot.queue.runners.ray_cluster import Node, asked_of, capacity_of, largest, nodes_of
from bot.queue.runners.shared_files import ended_in, result_of, sweep, told
from bot.settings import Settings
from core.contract import ProgressEvent, Result
from core.errors import (
    JobProtocolError,
    MachineLostError,
    MeasurementDiedError,
    QuantcardError,
    RunnerUnavailableError,
    SettingsError,
)
from core.frame import Ended, read_line
from core.need import Capacity
from core.remote_task import VARIABLE

logger = logging.getLogger(__name__)

#: -P: a folder called "jobs" where Ray happens to start us is not ours. exec: no shell stays between Ray and us.
ENTRYPOINT = "exec python -P -m jobs.remote"
_POLL_S = 1.0
#: Seconds of silence of a cluster after which a job that ran there counts as lost.
_PATIENCE_S = 600.0
#: Seconds for which a job that was told to end may take its time.
_STOPPING_S = 8.0
_NODES_S = 60.0
_TIMEOUT = (5.0, 20.0)
_TICK = 0.1
_TERMINAL = ("STOPPED", "SUCCEEDED", "FAILED")
#: Ray's reasons for which a job never began.
_NEVER_BEGAN = (
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    "RUNTIME_ENV_SETUP_FAILURE",
)


class _NoAnswer(Exception):
    """The cluster did not answer, or not with what was asked."""


class RayRunner:
    """Measures on a Ray cluster.

    Args:
        address: of the dashboard, as in ``http://head:8265``.
        slots: tasks at once.
        folder: for result lines, on a filesystem that every node sees at the same path, as all that specs name.
        resource: the custom resource that counts a node's memory in GB; empty: Ray's own ``memory``.
        unsafe: measure also on nodes that have no sandbox.

    Raises:
        SettingsError: Ray is not installed.
    """

    name = "ray"
    local_files = True

    def __init__(self, address: str, *, slots: int, folder: Path, resource: str = "", unsafe: bool = False) -> None:
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("The runner 'ray' needs Ray; install it: pip install 'quantcard[ray]'.")
        self.slots = slots
        self._address, self._folder, self._resource, self._unsafe = address, folder, resource, unsafe
        self._nodes: list[Node] = []
        self._asked_nodes = -math.inf
        self._lock = threading.Lock()
        sweep(folder)

    def capacity(self) -> Capacity:
        """Of the largest node; nothing is known before the cluster has answered for the first time."""
        self._look_at_nodes()
        return capacity_of(largest(self._nodes))

    def run(self, task: Task, *, report: Callable[[ProgressEvent], None], stop: Stop) -> Result:
        """See :class:`bot.queue.runners.base.Runner`."""
        client = self._client()
        try:
            if self._details(client, task.id) is None:
                if stop.is_set():
                    raise JobStopped
                self._submit(client, task)
            ended = self._follow(client, task, report, stop)
        except _NoAnswer as error:
            raise RunnerUnavailableError(f"The Ray cluster gives no answer: {error}") from None
        except JobStopped:
            if stop.reason not in ("shutdown", "lost"):
                self._cancel(client, task)
            raise
        except QuantcardError:
            # Also where its log can't be believed: whatever still runs is not waited for.
            self._cancel(client, task)
            raise
        return result_of(ended)

    def _submit(self, client: Any, task: Task) -> None:
        ask = asked_of(task, self._fresh_nodes(client))
        # At least some of it, so that the job goes to a node that declares it.
        resources = {self._resource: max(1, math.ceil(ask.memory / 1e9))} if self._resource else None
        value = told(task, end=self._end_file(task), unsafe=self._unsafe)
        try:
            client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=task.id,
                runtime_env={"env_vars": {VARIABLE: value}},
                metadata={"quantcard": task.spec.kind},
                entrypoint_num_cpus=ask.num_cpus,
                entrypoint_num_gpus=ask.num_gpus or None,
                entrypoint_memory=None if resources or not ask.memory else ask.memory,
                entrypoint_resources=resources,
            )
        except Exception as error:
            # It may be there all the same: an answer was lost, or another of us was quicker.
            if self._details(client, task.id) is None:
                raise RunnerUnavailableError(f"The Ray cluster did not take the job: {_said(error)}") from None

    def _end_file(self, task: Task) -> Path:
        return self._folder / f"{task.id}.end"

    def _follow(self, client: Any, task: Task, report: Callable[[ProgressEvent], None], stop: Stop) -> Ended:
        """Read the job's log until its result line, or until it ended without one."""
        log = _Log(task.nonce)
        heard = time.monotonic()
        started = False
        while True:
            try:
                details = self._details(client, task.id)
                heard = time.monotonic()
            except _NoAnswer as error:
                if time.monotonic() - heard > _PATIENCE_S:
                    raise MachineLostError(f"The Ray cluster has not answered for long: {error}") from None
                self._wait(stop)
                continue
            if details is None:
                raise MachineLostError("The Ray cluster no longer knows the job: it was started anew.")
            status = str(details.status)
            if status == "PENDING":
                report(ProgressEvent(stage=QUEUED, done=0, total=0, note="waits for a place on the Ray cluster"))
            elif not started:
                started = True
                report(ProgressEvent(stage=FETCHING, done=0, total=0))
            if status != "PENDING":
                for event in log.new(self._log_of(client, task.id), whole=status in _TERMINAL):
                    if isinstance(event, Ended):
                        return event
                    report(event)
            if status in _TERMINAL:
                return self._ended_without_line(details, status, log, task)
            self._wait(stop)

    def _ended_without_line(self, details: Any, status: str, log: _Log, task: Task) -> Ended:
        """The end that the file tells where the log does not; else why there is none.

        Raises:
            QuantcardError: the kind of end.
        """
        if (found := ended_in(self._end_file(task), task)) is not None:
            return found
        kind, message = str(details.error_type or ""), str(details.message or "")
        if "low on memory" in message or "OutOfMemory" in message:
            raise MeasurementDiedError("The measurement died: its node ran out of memory.")
        if kind in _NEVER_BEGAN:
            raise RunnerUnavailableError(f"The Ray cluster could not start the job: {_said(message)}")
        if kind.startswith("JOB_SUPERVISOR_ACTOR"):
            raise MachineLostError(f"The node went away under the job: {_said(message)}")
        if status == "STOPPED":
            raise MachineLostError("The job was stopped on the Ray cluster, by somebody else.")
        code = details.driver_exit_code
        words = log.last_words()
        if status == "FAILED" and code in (-9, 137):
            raise MeasurementDiedError("The measurement died: SIGKILL (out of memory?).")
        if status == "FAILED" and "No module named" in words:
            raise RunnerUnavailableError(f"quantcard is not installed on the Ray cluster's nodes: {words}")
        raise JobProtocolError(
            f"The job ended on the Ray cluster ({status}, code {code}) without a result. Last words: {words or 'none'}."
        )

    def _wait(self, stop: Stop) -> None:
        until = time.monotonic() + _POLL_S
        while True:
            if stop.is_set():
                raise JobStopped
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(_TICK, left))

    def _cancel(self, client: Any, task: Task) -> None:
        """End the job if it is there and still runs, and see it ended, within a few seconds."""
        until = time.monotonic() + _STOPPING_S
        asked = False
        while time.monotonic() < until:
            try:
                details = self._details(client, task.id)
                # One that still waits for its place is ended by Ray when it gets it.
                if details is None or str(details.status) in (*_TERMINAL, *(["PENDING"] if asked else [])):
                    return
                if not asked:
                    client.stop_job(task.id)
                    asked = True
            except Exception as error:
                logger.debug("Ending %s on the Ray cluster: %s", task.id, error)
            time.sleep(3 * _TICK)
        logger.warning("The Ray job %s was told to end, and has not yet.", task.id)

    def _client(self) -> Any:
        """A client of the Jobs API.

        Raises:
            RunnerUnavailableError: the cluster does not answer.
        """
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            """Ray's own waits for an answer for ever."""

            def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
                return super()._do_request(method, endpoint, **{"timeout": _TIMEOUT, **given})

        try:
            return Client(self._address)
        except Exception as error:
            raise RunnerUnavailableError(f"The Ray cluster at {self._address} can't be used: {_said(error)}") from None

    def _details(self, client: Any, task_id: str) -> Any:
        """What Ray knows of a job; None where it knows none of this id.

        Raises:
            _NoAnswer: it does not say.
        """
        try:
            return client.get_job_info(task_id)
        except Exception as error:
            if "status code 404" in str(error):
                return None
            raise _NoAnswer(_said(error)) from None

    def _log_of(self, client: Any, task_id: str) -> str:
        """The job's log so far; empty where its node is gone."""
        try:
            return str(client.get_job_logs(task_id))
        except Exception as error:
            logger.debug("The log of %s: %s", task_id, error)
            return ""

    def _fresh_nodes(self, client: Any) -> list[Node]:
        with suppress(_NoAnswer):
            self._nodes = nodes_of(self._node_states(client), self._resource)
            self._asked_nodes = time.monotonic()
        return self._nodes

    def _node_states(self, client: Any) -> list[dict[str, Any]]:
        try:
            answer = client._do_request("GET", "/api/v0/nodes?limit=10000&detail=1").json()
            return list(answer["data"]["result"]["result"])
        except Exception as error:
            raise _NoAnswer(_said(error)) from None

    def _look_at_nodes(self) -> None:
        """Ask for the nodes again, in a thread, where what is known is old."""
        with self._lock:
            if time.monotonic() - self._asked_nodes < _NODES_S:
                return
            self._asked_nodes = time.monotonic()

        def look() -> None:
            with suppress(QuantcardError):
                self._fresh_nodes(self._client())

        threading.Thread(target=look, name="ray-nodes", daemon=True).start()


def ray_runner(settings: Settings, _hub: HubDoor) -> Runner:
    """The runner that the settings describe."""
    return RayRunner(
        settings.ray_address,
        slots=settings.ray_slots,
        folder=settings.data / "remote",
        resource=settings.ray_resource,
        unsafe=settings.unsafe_no_sandbox,
    )


class _Log:
    """A job's log as it grows: what is new in it, line by line."""

    def __init__(self, nonce: str) -> None:
        self._nonce, self._read, self._words = nonce, 0, ""

    def new(self, text: str, *, whole: bool) -> Iterator[ProgressEvent | Ended]:
        """The events of the lines that were not read yet; the last one counts once it is ended or ``whole``.

        Raises:
            JobProtocolError: a result line is not this job's.
        """
        end = len(text) if whole else text.rfind("\n") + 1
        lines = text[self._read : end].split("\n") if end > self._read else []
        self._read = max(self._read, end)
        for line in lines:
            event = read_line(line, self._nonce)
            if event is not None:
                yield event
            elif line.strip():
                self._words = line

    def last_words(self) -> str:
        """The last line that is not ours."""
        return _said(self._words)


def _said(text: object) -> str:
    """What the cluster said, on one line of at most 300 characters; of a traceback the last line."""
    lines = [line.strip() for line in str(text)[:20_000].splitlines() if line.strip()]
    said = lines[0] if lines else type(text).__name__
    if "Traceback" in said and len(lines) > 1:
        said = lines[-1]
    return " ".join(said.split())[:300]
