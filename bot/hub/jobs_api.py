"""The door to Hugging Face Jobs and buckets, in our own types and with our own errors.

What writes is never asked twice: after a lost answer a second Job would be a second bill. Whoever starts one looks for
its label first, and again after an answer that was lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import JobHardwareInfo, JobInfo, Volume
from huggingface_hub.utils import disable_progress_bars

from bot.hub.base import HubBase
from core.errors import (
    HubAuthError,
    HubError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
    RunnerUnavailableError,
)

#: The labels by which a run is found again: its id, and which database's it is.
LABEL, OWNER_LABEL = "quantcard", "quantcard-of"
_ENDED = ("COMPLETED", "ERROR", "CANCELED", "DELETED")
_UNITS = {"second": 1 / 60, "minute": 1.0, "hour": 60.0}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?)?B?\s*", re.IGNORECASE)
_MAX_SAID = 300
_REFUSED = re.compile(r"HTTP status client error \((\d{3})")


@dataclass(frozen=True, slots=True)
class Flavor:
    """Hardware that a Job may ask for: bytes of memory, of each GPU's memory, of disk; USD for a minute."""

    name: str
    memory: int
    vram: tuple[int, ...]
    disk: int | None
    usd_per_minute: float


@dataclass(frozen=True, slots=True)
class Mount:
    """What a Job sees at ``at``: a model repo at a revision, or a folder of our bucket."""

    at: str
    kind: Literal["model", "bucket"]
    source: str
    revision: str | None = None
    path: str | None = None
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A Job to be started; ``owner`` tells bots apart that share a namespace. It gets no secrets and no token."""

    label: str
    owner: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    flavor: str
    timeout_s: int
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class HubJob:
    """A Job as the Hub tells it; ``waited_s`` and ``running_s`` are seconds, None where they have not begun."""

    id: str
    stage: str
    message: str
    flavor: str
    created_at: float
    waited_s: float | None
    running_s: float | None
    url: str

    @property
    def ended(self) -> bool:
        """Whether it will not run any further."""
        return self.stage in _ENDED

    @property
    def joinable(self) -> bool:
        """Whether its result may still come, or is there."""
        return not self.ended or self.stage == "COMPLETED"


class JobsApi(HubBase):
    """Jobs and the bucket of one namespace.

    Args:
        namespace: who pays; None: the token's own user.
        bucket: ``owner/name``; None: ``quantcard`` in the namespace. Made private where it is not there.
    """

    def __init__(
        self, *, endpoint: str, token: str | None, namespace: str | None = None, bucket: str | None = None
    ) -> None:
        super().__init__(endpoint=endpoint, token=token)
        # Xet, by which buckets are filled, shows bars of its own.
        disable_progress_bars()
        self._namespace, self._bucket = namespace or None, bucket or None
        self._made = False

    @property
    def namespace(self) -> str:
        """Whose Jobs these are."""
        # Asked for by ourselves: where the client asks, it forgets which Hub it belongs to.
        return self._namespace or self.whoami()

    @property
    def bucket(self) -> str:
        """The bucket's id."""
        return self._bucket or f"{self.namespace}/quantcard"

    # Jobs

    def hardware(self) -> list[Flavor]:
        """The flavors whose size and price the Hub tells."""
        found = self._ask("the hardware of Jobs", self._api.list_jobs_hardware)
        return [flavor for flavor in map(_flavor, found) if flavor is not None]

    def find(self, label: str, owner: str) -> list[HubJob]:
        """The Jobs that carry these labels, oldest first."""
        labels = {LABEL: label, OWNER_LABEL: owner}
        found = self._ask(
            "a Job by its label",
            lambda: list(self._api.list_jobs(labels=labels, namespace=self.namespace, timeout=30)),
        )
        return sorted((_job(one) for one in found), key=lambda job: (job.created_at, job.id))

    def start(self, request: JobRequest) -> HubJob:
        """Start a Job; never asked twice."""
        return _job(
            self._ask(
                f"a Job on {request.flavor}",
                lambda: self._api.run_job(
                    image=request.image,
                    command=list(request.command),
                    env=dict(request.environment),
                    secrets=None,
                    flavor=request.flavor,
                    timeout=request.timeout_s,
                    name=f"quantcard-{request.label}"[:63],
                    labels={LABEL: request.label, OWNER_LABEL: request.owner},
                    volumes=[_volume(mount) for mount in request.mounts],
                    namespace=self.namespace,
                ),
                again=False,
            )
        )

    def look(self, job_id: str) -> HubJob:
        """How far a Job is."""
        return _job(
            self._ask("the state of a Job", lambda: self._api.inspect_job(job_id=job_id, namespace=self.namespace))
        )

    def cancel(self, job_id: str) -> None:
        """End a Job; harmless where it has ended, so asked again after a passing fault."""
        self._ask("the end of a Job", lambda: self._api.cancel_job(job_id=job_id, namespace=self.namespace))

    def log(self, job_id: str, *, tail: int | None = None, limit: int) -> list[str]:
        """What a Job has said so far, or its last ``tail`` lines; at most ``limit`` characters of it."""

        def read() -> list[str]:
            lines, size = [], 0
            for text in self._api.fetch_job_logs(job_id=job_id, namespace=self.namespace, follow=False, tail=tail):
                size += len(text) + 1
                if size > limit:
                    break
                lines += str(text).split("\n")
            return lines

        return self._ask("the log of a Job", read)

    # the bucket

    def files(self, prefix: str) -> dict[str, int]:
        """Sizes of the bucket's files whose path begins with a prefix; empty where there is no bucket."""
        try:
            found = self._ask(
                f"the files of the bucket {self.bucket}",
                lambda: list(self._api.list_bucket_tree(self.bucket, prefix=prefix, recursive=True)),
            )
        except HubNotFoundError:
            return {}
        return {item.path: item.size for item in found if item.type == "file"}

    def upload(self, files: Mapping[str, Path | bytes]) -> None:
        """Put files into the bucket; one that is there already is replaced."""
        self._make()
        self._by_xet(
            f"an upload to the bucket {self.bucket}",
            lambda: self._api.batch_bucket_files(
                self.bucket, add=[(data if isinstance(data, bytes) else str(data), to) for to, data in files.items()]
            ),
        )

    def download(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files from the bucket.

        Raises:
            HubNotFoundError: one is not there.
        """
        self._by_xet(
            f"a download from the bucket {self.bucket}",
            lambda: self._api.download_bucket_files(self.bucket, list(files), raise_on_missing_files=True),
        )

    def delete(self, paths: Sequence[str]) -> None:
        """Take files out of the bucket; harmless for those that are gone."""
        if paths:
            self._ask(
                f"cleaning up the bucket {self.bucket}",
                lambda: self._api.batch_bucket_files(self.bucket, delete=list(paths)),
            )

    def _by_xet(self, doing: str, call: Callable[[], None]) -> None:
        """Run one call that moves bytes. Xet asks again by itself, for minutes, and has errors of its own."""
        try:
            self._ask(doing, call, again=False)
        except HubUnreachableError as error:
            if (cause := error.__cause__) is not None and (ours := _xet_error(cause, doing)) is not None:
                raise ours from cause
            raise
        except RuntimeError as error:
            raise _xet_error(error, doing) or HubUnreachableError(
                f"The Hub's storage failed at {doing}. Try again later."
            ) from error

    def _make(self) -> None:
        if not self._made:
            self._ask(
                f"the bucket {self.bucket}",
                lambda: self._api.create_bucket(self.bucket, private=True, exist_ok=True),
            )
            self._made = True


class DryRunJobsApi(JobsApi):
    """Looks, and starts and writes nothing."""

    dry_run = True

    def start(self, request: JobRequest) -> HubJob:
        """Refuse, since nothing is started in a dry run."""
        raise self._no(f"start a Job on {request.flavor}")

    def cancel(self, job_id: str) -> None:
        """Refuse."""
        raise self._no("end a Job")

    def upload(self, files: Mapping[str, Path | bytes]) -> None:
        """Refuse."""
        raise self._no(f"put {len(files)} files into the bucket {self._bucket or 'quantcard'}")

    def delete(self, paths: Sequence[str]) -> None:
        """Pass over."""

    @staticmethod
    def _no(doing: str) -> RunnerUnavailableError:
        return RunnerUnavailableError(f"Would {doing}, but this is a dry run. Measure locally, or run without it.")


def _xet_error(error: BaseException, doing: str) -> HubError | None:
    """Our error for a refusal that Xet tells of in words only; None where it tells of none."""
    found = _REFUSED.search(str(error)[:2000])
    if found is None:
        return None
    status = int(found.group(1))
    said = f"The Hub's storage refused {doing} (status {status})."
    if status in (401, 403):
        return HubAuthError(f"{said} Give HF_TOKEN write rights to the bucket.")
    if status == 404:
        return HubNotFoundError(said)
    return HubRateLimitError(f"{said} Try again in a few minutes.") if status in (408, 429) else HubError(said)


def _flavor(told: JobHardwareInfo) -> Flavor | None:
    """A flavor in bytes and USD; None where what is told of it is not understood."""
    memory, per = _bytes(told.ram), _UNITS.get(str(told.unit_label).lower())
    if memory is None or per is None or not isinstance(told.unit_cost_usd, int | float) or told.unit_cost_usd < 0:
        return None
    vram: tuple[int, ...] = ()
    if told.accelerator is not None:
        total, count = _bytes(told.accelerator.vram), str(told.accelerator.quantity)
        if total is None or not count.isdigit() or not 0 < int(count) <= 64:
            return None
        vram = (total // int(count),) * int(count)
    return Flavor(str(told.name), memory, vram, _bytes(told.ephemeral_storage), told.unit_cost_usd / per)


def _bytes(text: object) -> int | None:
    """'16 GB' in bytes; the Hub means 10**9 by GB, or less, so that this never promises too much."""
    match = _SIZE.fullmatch(str(text))
    if match is None or len(str(text)) > 40:
        return None
    unit = (match.group(2) or "").upper()
    base = 1024 if unit.endswith("I") else 1000
    return int(float(match.group(1)) * base ** (" KMGT".index(unit[0]) if unit else 0))


def _job(told: JobInfo) -> HubJob:
    durations = told.durations
    if not isinstance(told.id, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", told.id):
        raise HubError("The Hub told of a Job whose id is no id.")
    running: float | None = durations.running_secs if durations else None
    if running is None and told.started_at is not None and told.finished_at is not None:
        running = (told.finished_at - told.started_at).total_seconds()
    waited = durations.total_secs if durations and told.started_at is None else None
    return HubJob(
        id=told.id,
        stage=str(getattr(told.status.stage, "value", told.status.stage)),
        message=" ".join(str(told.status.message or "").split())[:_MAX_SAID],
        flavor=str(getattr(told.flavor, "value", told.flavor) or ""),
        created_at=told.created_at.timestamp() if told.created_at else 0.0,
        waited_s=waited,
        running_s=running,
        url=told.url,
    )


def _volume(mount: Mount) -> Volume:
    return Volume(
        type=mount.kind,
        source=mount.source,
        mount_path=mount.at,
        revision=mount.revision,
        # Repos are mounted read-only whatever is asked.
        read_only=mount.read_only if mount.kind == "bucket" else None,
        path=mount.path,
    )
