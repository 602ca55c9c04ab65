"""Which Job a task becomes: hardware, time and money, what is mounted where, what the parent inside is told. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bot.hub.jobs_api import Flavor, JobRequest, Mount
from bot.queue.runners.base import Stages, Task
from core.canonical import fingerprint
from core.contract import BaselineSpec, Machine, QualitySpec, SpeedSpec
from core.errors import RunnerUnavailableError, SettingsError, TooLargeError
from core.frame import Output
from core.need import Capacity, Need, Placement
from core.placing import place
from core.remote_task import VARIABLE, InputFile, OutputFolder, RemoteTask, TaskLimits, packed

#: -P: a folder called "jobs" where the container happens to start is not ours.
COMMAND = ("python", "-P", "-m", "jobs.remote")
MODEL, BASELINE, CORPUS, OUT, WORK = "/model", "/baseline", "/corpus", "/out", "/tmp/quantcard-work"
#: The name of the file in which the result line also lies, should the log be lost.
END = "end"
_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
#: Seconds that a Job may take beside measuring: reading the model once to compare it, and copying what it made.
_BESIDE_S = 900
#: Bytes a second that a Job reads of its mounted model, and tokens a second, for a guess at its length.
_READ_RATE = 200e6
_START_S = 90.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The hardware for a task, and how the model is laid on it."""

    flavor: Flavor
    placement: Placement


@dataclass(frozen=True, slots=True)
class Kept:
    """Files of ours that a Job reads, as they lie in the bucket: a folder, named by what is in it."""

    prefix: str
    files: tuple[Output, ...]


def checked_image(image: str, endpoint: str) -> str:
    """The image, if it can't change under us.

    Raises:
        SettingsError: there is none, or it is not pinned by its digest, on a Hub that others can reach.
    """
    host = urlsplit(endpoint).hostname or ""
    if not image:
        raise SettingsError(
            "The runner 'hf-jobs' needs an image (QUANTCARD_HF_JOBS_IMAGE): build the Dockerfile's target 'cuda', push "
            "it, and give its name with the digest, as in owner/quantcard@sha256:…"
        )
    if not _DIGEST.fullmatch(image) and host not in ("localhost", "127.0.0.1", "::1"):
        raise SettingsError(
            f"The image {image[:200]!r} (QUANTCARD_HF_JOBS_IMAGE) can change under its name. Give it with its digest, "
            "as in owner/quantcard@sha256:… ('docker push' prints it)."
        )
    return image


def usable(flavors: Sequence[Flavor], allowed: Sequence[str]) -> list[Flavor]:
    """Those that may be used: the allowed ones, or where none is named all that have a GPU."""
    if allowed:
        return [flavor for flavor in flavors if flavor.name in allowed]
    return [flavor for flavor in flavors if flavor.vram]


def capacity_of(flavor: Flavor) -> Capacity:
    """What a flavor's machine has."""
    return Capacity(memory=flavor.memory, vram=flavor.vram, disk=flavor.disk)


def largest(flavors: Sequence[Flavor]) -> Capacity:
    """What the largest of them has; nothing is known where there is none."""
    if not flavors:
        return Capacity(None)
    return capacity_of(max(flavors, key=lambda flavor: (flavor.memory + sum(flavor.vram), flavor.name)))


def choose(need: Need, flavors: Sequence[Flavor]) -> Choice:
    """The cheapest flavor that holds the whole model on its GPUs; else a part of it there; else in main memory.

    A CPU is by far the cheapest an hour and by far the dearest a model, so that it comes last.

    Raises:
        RunnerUnavailableError: there is no hardware to choose from.
        TooLargeError: it fits none.
    """
    if not flavors:
        raise RunnerUnavailableError(
            "Hugging Face Jobs offers none of the hardware that may be used (QUANTCARD_HF_JOBS_FLAVORS)."
        )
    fitting: list[tuple[int, float, str, Choice]] = []
    for flavor in flavors:
        placement = place(need, capacity_of(flavor))
        if isinstance(placement, Placement):
            part = 0 if placement.n_gpu_layers == -1 else 1 if placement.n_gpu_layers > 0 else 2
            fitting.append((part, flavor.usd_per_minute, flavor.name, Choice(flavor, placement)))
    if not fitting:
        most = max(flavors, key=lambda one: one.memory + sum(one.vram))
        raise TooLargeError(
            f"It needs {need.memory / 1e9:.0f} GB, more than {most.name}, the largest hardware that may be used "
            "(QUANTCARD_HF_JOBS_FLAVORS)."
        )
    return min(fitting)[3]


def time_limit(stages: Stages, *, most: float) -> int:
    """Seconds after which the Hub ends a Job: what measuring may take and something beside, ``most`` at most."""
    return max(60, int(min(stages.measuring + _BESIDE_S, most)))


def guess_seconds(need: Need, *, limit: int) -> float:
    """About how long a Job will run: start, the model read twice, and a minute of measuring for each 4 GB of it."""
    return min(_START_S + 2 * need.weights / _READ_RATE + 60 * (1 + need.weights / 4e9), float(limit))


def kept_prefix(kind: str, name: str, files: Sequence[Output]) -> Kept:
    """Where files of ours lie in the bucket: what they hold is in the name, so that nothing there ever changes."""
    rows = sorted((file.path, file.size, file.sha256) for file in files)
    digest = fingerprint([list(row) for row in rows])[:16]
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:60]
    return Kept(f"{kind}/{stem}-{digest}", tuple(sorted(files, key=lambda file: file.path)))


def owner_of(task: Task) -> str:
    """Which database's a task is, for labels: two bots that share a namespace may have tasks of one id."""
    return hashlib.sha256(task.nonce.encode()).hexdigest()[:12]


def run_of(task: Task) -> str:
    """A task's name among all that share the bucket."""
    return f"{task.id}-{owner_of(task)}"


def job_prefix(run: str) -> str:
    """Where a run's Job writes in the bucket."""
    return f"jobs/{run}"


def need_of(task: Task) -> Need:
    """What a task takes; where nobody knows its header, by the size of its files."""
    if task.need is not None:
        return task.need
    size = sum(file.size for file in task.model.files)
    rest = max(1 << 30, size // 10)
    return Need(weights=size, kv_cache=rest, logits=rest, compute=rest, baseline=rest, disk=size, n_layers=0)


def remote_spec(
    spec: BaselineSpec | QualitySpec | SpeedSpec, model: str, *, n_gpu_layers: int
) -> BaselineSpec | QualitySpec | SpeedSpec:
    """The spec with the paths that the Job sees; no checkpoint, as nothing of an ended Job's disk is left."""
    machine = Machine(n_threads=0, n_gpu_layers=n_gpu_layers)
    change: dict[str, object] = {"machine": machine}
    if isinstance(spec, BaselineSpec):
        change |= {
            "reference": model,
            "corpus": f"{CORPUS}/{Path(spec.corpus).name}",
            "out": f"{WORK}/{Path(spec.out).name}",
        }
    else:
        change["model"] = model
    if isinstance(spec, QualitySpec):
        change |= {
            "baseline": f"{BASELINE}/{Path(spec.baseline).name}",
            "tokens_out": f"{WORK}/{Path(spec.tokens_out).name}" if spec.tokens_out else None,
            "checkpoint": None,
        }
    return spec.model_copy(update=change)


def request(
    task: Task, choice: Choice, *, image: str, bucket: str, inputs: dict[str, Kept], timeout_s: int, unsafe: bool
) -> JobRequest:
    """The Job of a task.

    Args:
        inputs: what lies in the bucket for it, by where it is mounted (``BASELINE``, ``CORPUS``).
        unsafe: measure also where the container has no sandbox.

    Raises:
        RunnerUnavailableError: the task has too many files to be told of.
    """
    source, placement = task.model, choice.placement
    mounts = [Mount(MODEL, "model", source.repo_id, revision=source.revision)]
    mounts += [Mount(at, "bucket", bucket, path=kept.prefix) for at, kept in inputs.items()]
    files = [
        InputFile(path=f"{MODEL}/{file.path}", size=file.size, sha256=file.sha256)
        for file in source.files
        if file.sha256
    ]
    for at, kept in inputs.items():
        files += [InputFile(path=f"{at}/{file.path}", size=file.size, sha256=file.sha256) for file in kept.files]
    mounts.append(Mount(OUT, "bucket", bucket, path=job_prefix(run_of(task)), read_only=False))
    told = RemoteTask(
        nonce=task.nonce,
        spec=remote_spec(task.spec, f"{MODEL}/{source.files[0].path}", n_gpu_layers=placement.n_gpu_layers),
        model_files=files,
        outputs=OutputFolder(path=WORK, to=OUT),
        end=f"{OUT}/{END}",
        limits=TaskLimits(seconds=float(min(task.stages.measuring, timeout_s))),
        unsafe=unsafe,
    )
    try:
        environment = {VARIABLE: packed(told)}
    except ValueError as error:
        raise RunnerUnavailableError(f"The Job can't be told what to measure: {error}.") from None
    return JobRequest(
        label=task.id,
        owner=owner_of(task),
        image=image,
        command=COMMAND,
        environment=environment,
        flavor=choice.flavor.name,
        timeout_s=timeout_s,
        mounts=tuple(mounts),
    )
