"""Jobs: what was asked for, how far it is, and the threads that run it for real on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .disk import now, random_id, read_json, stamp, write_json
from .errors import NotFound
from .job_faults import JobFaults
from .job_sandbox import Mount, command_line

SCHEDULING, RUNNING, COMPLETED, ERROR, CANCELED = "SCHEDULING", "RUNNING", "COMPLETED", "ERROR", "CANCELED"
ENDED = (COMPLETED, ERROR, CANCELED, "DELETED")
DEFAULT_TIMEOUT_S = 30 * 60
_MAX_LINE = 8 << 20
_MAX_LOG = 256 << 20
#: Seconds after a Job's end in which its last lines may still arrive.
_LAST_LINES_S = 5.0

#: Puts a Job's volumes into a folder of its own; raises where one can't be had.
Prepare = Callable[[Path], list[Mount]]


class VolumeError(Exception):
    """A volume can't be mounted; the message is the Job's."""


@dataclass
class Job:
    """One Job; `asked` is what the caller sent, without the values of secrets."""

    id: str
    owner: str
    path: Path
    asked: dict[str, Any]
    created: float
    stage: str = SCHEDULING
    message: str | None = None
    started: float | None = None
    finished: float | None = None
    server: int = field(default_factory=os.getpid)
    #: Set when it is to end; `_why` says as what.
    ending: threading.Event = field(default_factory=threading.Event, repr=False)
    why: tuple[str, str | None] = (CANCELED, None)

    @property
    def log(self) -> Path:
        """Its lines, as the events that are sent."""
        return self.path / "log"

    def row(self, owner: dict[str, str]) -> dict[str, Any]:
        """As the API tells it."""
        until = self.finished or time.time()
        running = None if self.started is None else int(until - self.started)
        waited = None if self.started is None else int(self.started - self.created)
        return {
            "id": self.id,
            "createdAt": _stamp(self.created),
            "startedAt": _stamp(self.started),
            "finishedAt": _stamp(self.finished),
            **{name: self.asked.get(name) for name in ("dockerImage", "spaceId", "flavor", "labels", "volumes")},
            **{name: self.asked.get(name) for name in ("command", "arguments", "environment", "secrets")},
            "status": {"stage": self.stage, "message": self.message},
            "durations": {
                "schedulingSecs": waited, "runningSecs": running, "totalSecs": int(until - self.created),
            },
            "owner": owner,
            "initiator": {"type": owner["type"], "id": owner["id"], "name": owner["name"]},
            "timeout": self.asked.get("timeoutSeconds"),
        }  # fmt: skip


def _stamp(moment: float | None) -> str | None:
    return None if moment is None else stamp(datetime.fromtimestamp(moment, UTC))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()


class Jobs:
    """The `jobs/` folder, and what is running; all of it ends with :meth:`stop`, or with this process."""

    def __init__(self, root: Path, faults: JobFaults) -> None:
        self._root, self._faults = root, faults
        self._guard = threading.Lock()
        self._jobs: dict[tuple[str, str], Job] = {}
        self._threads: list[threading.Thread] = []
        self.stopping = threading.Event()
        for path in sorted((root / "jobs").glob("*/*/job.json")):
            self._load(path)

    def _load(self, path: Path) -> None:
        data = read_json(path)
        job = Job(path=path.parent, **data)
        if job.stage not in ENDED and not _alive(job.server):
            job.stage, job.message, job.finished = ERROR, "The server that ran it was stopped", time.time()
            self._write(job)
            shutil.rmtree(job.path / "volumes", ignore_errors=True)
        self._jobs[job.owner, job.id] = job

    def _write(self, job: Job) -> None:
        names = ("id", "owner", "asked", "created", "stage", "message", "started", "finished", "server")
        write_json(job.path / "job.json", {name: getattr(job, name) for name in names}, mode=0o600)

    def get(self, owner: str, job_id: str) -> Job:
        """One Job; 404 where there is none."""
        with self._guard:
            job = self._jobs.get((owner, job_id))
        if job is None:
            raise NotFound("Job not found")
        return job

    def of(self, owner: str) -> list[Job]:
        """An owner's Jobs, newest first."""
        with self._guard:
            found = [job for (name, _), job in self._jobs.items() if name == owner]
        return sorted(found, key=lambda job: (job.created, job.id), reverse=True)

    def start(self, owner: str, asked: dict[str, Any], secrets: dict[str, str], prepare: Prepare) -> Job:
        """Take a Job on; a thread of its own runs it."""
        job_id = random_id()
        job = Job(job_id, owner, self._root / "jobs" / owner / job_id, asked, time.time())
        job.path.mkdir(parents=True)
        job.log.touch(mode=0o600)
        self._write(job)
        hangs = self._faults.take_hang()
        # A thread for each: a child that is to end with its parent ends with the thread that made it.
        thread = threading.Thread(target=self._run, args=(job, secrets, prepare, hangs), name=f"job-{job_id}")
        thread.daemon = True
        with self._guard:
            self._jobs[owner, job_id] = job
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()
        return job

    def cancel(self, job: Job) -> None:
        """End a Job; harmless when it has ended."""
        self._end(job, CANCELED, None)

    def preempt(self, job_id: str, message: str = "The node was reclaimed") -> None:
        """Take the machine away under a Job, for tests."""
        self._end(next(job for job in list(self._jobs.values()) if job.id == job_id), ERROR, message)

    def _end(self, job: Job, stage: str, message: str | None) -> None:
        with self._guard:
            if job.ending.is_set():
                return
            job.why = (stage, message)
            job.ending.set()

    def stop(self) -> None:
        """End everything that runs."""
        self.stopping.set()
        with self._guard:
            jobs, threads = list(self._jobs.values()), list(self._threads)
        for job in jobs:
            if job.stage not in ENDED and job.server == os.getpid():
                self._end(job, ERROR, "The server was stopped")
        for thread in threads:
            thread.join(timeout=10)

    # in the Job's thread

    def _run(self, job: Job, secrets: dict[str, str], prepare: Prepare, hangs: bool) -> None:
        stage, message = ERROR, "Internal error"
        try:
            if hangs:
                job.ending.wait()
            if job.ending.is_set():
                stage, message = job.why[0], job.why[1] or ""
                return
            stage, message = self._process(job, secrets, prepare)
        except VolumeError as error:
            message = f"A volume can't be mounted: {error}"
        finally:
            shutil.rmtree(job.path / "volumes", ignore_errors=True)
            job.finished = time.time()
            job.message, job.stage = message or None, stage
            with suppress(OSError):  # the folder may be gone by now
                self._write(job)

    def _process(self, job: Job, secrets: dict[str, str], prepare: Prepare) -> tuple[str, str]:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            return ERROR, "bubblewrap (bwrap) is not installed on the machine that localhub runs on"
        mounts = prepare(job.path / "volumes")
        environment = {**job.asked["environment"], **secrets, "JOB_ID": job.id}
        command = [*job.asked["command"], *job.asked["arguments"]]
        line = command_line(bwrap, command, mounts=mounts, environment=environment, hub_root=self._root)
        job.started = time.time()
        job.stage = RUNNING
        self._write(job)
        with job.log.open("a", encoding="utf-8") as log:
            _note(log, f"===== Job started at {now()} =====")
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            reader = threading.Thread(target=_drain, args=(process, log), daemon=True)
            reader.start()
            try:
                timed_out = not self._wait(job, process)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
                reader.join(timeout=_LAST_LINES_S)
        if job.ending.is_set():
            return job.why[0], job.why[1] or ""
        if timed_out:
            return ERROR, "Job timeout"
        if code == 0:
            return COMPLETED, ""
        return ERROR, f"Job failed with exit code: {code if code > 0 else 128 - code}. Reason: Error"

    def _wait(self, job: Job, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end; False where the time ran out."""
        end = time.monotonic() + job.asked["timeoutSeconds"]
        while process.poll() is None and not job.ending.wait(0.02):
            if time.monotonic() > end:
                return False
        return True


def _note(log: Any, text: str) -> None:
    log.write(json.dumps({"data": text, "timestamp": now()}) + "\n")
    log.flush()


def _drain(process: subprocess.Popen[bytes], log: Any) -> None:
    """Keep what the Job says, up to a limit; the rest is read and dropped, so that the Job does not stand still."""
    assert process.stdout is not None
    kept = 0
    with process.stdout as pipe, suppress(ValueError):
        while line := pipe.readline(_MAX_LINE):
            kept += len(line)
            if kept <= _MAX_LOG:
                _note(log, line.decode("utf-8", "replace").rstrip("\r\n"))


def events(job: Job, offset: int) -> tuple[list[str], int]:
    """The log's whole lines from a byte offset on, and where they end."""
    with job.log.open("rb") as file:
        file.seek(offset)
        data = file.read(4 << 20)
        if b"\n" not in data and len(data) == 4 << 20:
            data += file.readline()
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), offset + len(whole)


def matching(jobs: list[Job], *, stages: list[str], labels: list[str]) -> Iterator[Job]:
    """Those in one of these stages (all, where none is named) that have all of these labels (`key=value`)."""
    wanted = [label.partition("=")[::2] for label in labels]
    for job in jobs:
        has = job.asked.get("labels") or {}
        if (not stages or job.stage in stages) and all(has.get(key) == value for key, value in wanted):
            yield job
