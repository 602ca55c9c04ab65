"""What crosses in the bucket: baselines and corpora there, what a Job made back, each compared with its sha256."""

from __future__ import annotations

import json
import logging
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bot.hub.jobs_api import JobsApi
from bot.queue.places import fallback_path
from bot.queue.runners.base import Task
from bot.queue.runners.hf_jobs_plan import BASELINE, CORPUS, END, Kept, job_prefix, kept_prefix, run_of
from bot.store import Store
from bot.store.db import immediate
from core.canonical import sha256_file, storage_error
from core.contract import BaselineResult, BaselineSpec, QualityResult, QualitySpec, Result, SpeedSpec
from core.errors import (
    BaselineGoneError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
    JobProtocolError,
    QuantcardError,
    StorageError,
)
from core.frame import MAX_LINE, Ended, Output

logger = logging.getLogger(__name__)

#: Runs by when they ended, whose folders in the bucket are still to be removed.
_LEFT = "hf-jobs:left"
_KEPT_S = 3600.0
_HEAD = re.compile(r"head-[0-9a-f]{16}\.gguf")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
#: Pauses (seconds) while what a Job wrote is not to be seen in the bucket yet.
_LATE = (1.0, 3.0, 9.0)
#: Bytes that stay free on our disk.
_SPARE = 1 << 30


class Files:
    """The bucket's part of a task.

    Args:
        folder: for downloads; made where it is not there.
        open_store: a connection of its own for each use.
    """

    def __init__(self, api: JobsApi, folder: Path, open_store: Callable[[], Store]) -> None:
        self._api, self._folder, self._store = api, folder, open_store
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int, int], str] = {}

    def brought_there(self, task: Task) -> dict[str, Kept]:
        """Put what the task reads into the bucket, where it is not there yet, and make its folder.

        Raises:
            BaselineGoneError: the baseline's file is gone.
            StorageError: a file of ours can't be read.
        """
        spec, found = task.spec, {}
        if isinstance(spec, QualitySpec):
            path = Path(spec.baseline)
            if not path.is_file():
                raise BaselineGoneError(f"The baseline {path.name} is gone; it is recorded again.")
            # It has a folder of its own, with its checksums and its head.
            beside = sorted(one for one in path.parent.iterdir() if one.is_file() and _NAME.fullmatch(one.name))
            found[BASELINE] = self._kept("baselines", path.parent.name, beside)
        if isinstance(spec, BaselineSpec):
            path = Path(spec.corpus)
            found[CORPUS] = self._kept("corpora", path.stem, [path])
        # A folder that holds nothing can't be mounted.
        self._api.upload({f"{job_prefix(run_of(task))}/.keep": b"\n"})
        return found

    def _kept(self, kind: str, name: str, paths: list[Path]) -> Kept:
        try:
            files = [Output(path=one.name, size=one.stat().st_size, sha256=self._sha256(one)) for one in paths]
        except OSError as error:
            raise storage_error(paths[0], error) from error
        kept = kept_prefix(kind, name, files)
        there = self._api.files(f"{kept.prefix}/")
        missing = {
            f"{kept.prefix}/{file.path}": path
            for file, path in zip(files, paths, strict=True)
            if there.get(f"{kept.prefix}/{file.path}") != file.size
        }
        if missing:
            self._api.upload(missing)
            self._forget_older(kind, kept)
        return kept

    def _forget_older(self, kind: str, kept: Kept) -> None:
        """Of a baseline that was recorded anew the old one is not needed any more."""
        stem = kept.prefix.rpartition("-")[0]
        old = [path for path in self._api.files(f"{stem}-") if not path.startswith(f"{kept.prefix}/")]
        # Another one's name may go on with a dash.
        whole = re.compile(re.escape(stem) + r"-[0-9a-f]{16}/")
        try:
            self._api.delete([path for path in old if whole.match(path)] if kind == "baselines" else [])
        except QuantcardError as error:
            logger.info("%s", error)

    def _sha256(self, path: Path) -> str:
        about = path.stat()
        key = (str(path), about.st_size, about.st_mtime_ns)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = sha256_file(path)
            with self._lock:
                self._known[key] = known
        return known

    def brought_back(self, task: Task, ended: Ended, result: Result) -> Result:
        """Fetch what the Job made, compare it, and put it where the spec wants it; the result with paths of here.

        Doing it twice changes nothing.

        Raises:
            JobProtocolError: something is not there, or not what the result says.
            StorageError: there is no room for it.
        """
        wanted = [one for one in ended.outputs if _is_expected(task.spec, one.path)]
        found = _of_here(task.spec, result, {one.path: one for one in wanted})
        if not wanted:
            return found
        into = _written_in(task.spec)
        missing = [one for one in wanted if not _is(into / one.path, one)]
        folder = self._folder / task.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            total = sum(one.size for one in missing)
            if shutil.disk_usage(folder).free < total + _SPARE:
                raise StorageError(
                    f"What the Job made takes {total / 1e9:.1f} GB, more than the disk has. Free some space."
                )
            self._fetched(task, missing, folder)
            into.mkdir(parents=True, exist_ok=True)
            # The file that others stand beside comes last, and has the shortest name.
            for one in sorted(missing, key=lambda one: len(one.path), reverse=True):
                if not _is(folder / one.path, one):
                    raise JobProtocolError(f"{one.path} in the bucket is not the file that the Job's result speaks of.")
                (folder / one.path).replace(into / one.path)
        except OSError as error:
            raise storage_error(folder, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def _fetched(self, task: Task, outputs: list[Output], folder: Path) -> None:
        for pause in (*_LATE, None):
            try:
                self._api.download([(f"{job_prefix(run_of(task))}/{one.path}", folder / one.path) for one in outputs])
                return
            except HubNotFoundError as error:
                if pause is None:
                    raise JobProtocolError(
                        "The Job reported success, but what it wrote is not in the bucket."
                    ) from error
                time.sleep(pause)

    def end_line(self, task: Task) -> str | None:
        """The result line as it lies in the bucket, if it does.

        Raises:
            HubUnreachableError, HubRateLimitError: nobody knows.
        """
        path = f"{job_prefix(run_of(task))}/{END}"
        folder = self._folder / task.id
        try:
            if not 0 < self._api.files(path).get(path, 0) <= MAX_LINE:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / END
            self._api.download([(path, target)])
            return target.read_text("ascii", "replace")
        except (HubUnreachableError, HubRateLimitError):
            raise
        except (QuantcardError, OSError) as error:
            logger.info("%s: no result line in the bucket (%s)", task.id, error)
            return None

    def clean(self, task: Task) -> None:
        """Remove a task's folders, here and in the bucket; what can't be removed is not worth an error."""
        shutil.rmtree(self._folder / task.id, ignore_errors=True)
        self._clean(run_of(task))

    def clean_later(self, task: Task, *, now: float) -> None:
        """Remove a task's folder in the bucket once its result is certainly stored: until then it may be asked for."""
        self._note(lambda left: {**left, run_of(task): now})

    def clean_old(self, *, now: float) -> None:
        """Remove what :meth:`clean_later` was told of a while ago."""
        with self._store() as store:
            left = json.loads(store.results.get(_LEFT) or "{}")
        done = [run for run, at in left.items() if now - at > _KEPT_S and self._clean(run)]
        if done:
            self._note(lambda left: {run: at for run, at in left.items() if run not in done})

    def _clean(self, run: str) -> bool:
        try:
            self._api.delete(list(self._api.files(f"{job_prefix(run)}/")))
        except QuantcardError as error:
            logger.info("%s: %s", run, error)
            return False
        return True

    def _note(self, change: Callable[[dict[str, float]], dict[str, float]]) -> None:
        with self._store() as store, immediate(store.db):
            store.results.put(_LEFT, json.dumps(change(json.loads(store.results.get(_LEFT) or "{}"))))


def sweep(folder: Path, *, older_than_s: float = 7 * 24 * 3600.0) -> None:
    """Remove what unfinished downloads left behind."""
    for path in folder.glob("*"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > older_than_s:
                shutil.rmtree(path, ignore_errors=True)


def _is_expected(spec: BaselineSpec | QualitySpec | SpeedSpec, name: str) -> bool:
    """Whether a file of this name may be fetched; a job that read a stranger's file may have left any."""
    if _NAME.fullmatch(name) is None:
        return False
    if isinstance(spec, BaselineSpec):
        made = (Path(spec.out), fallback_path(Path(spec.out)))
        return any(name in (path.name, f"{path.name}.json") for path in made) or _HEAD.fullmatch(name) is not None
    return isinstance(spec, QualitySpec) and spec.tokens_out is not None and name == Path(spec.tokens_out).name


def _written_in(spec: BaselineSpec | QualitySpec | SpeedSpec) -> Path:
    """The folder that a spec which expects files wants them in."""
    written = spec.out if isinstance(spec, BaselineSpec) else spec.tokens_out if isinstance(spec, QualitySpec) else None
    assert written is not None
    return Path(written).parent


def _of_here(spec: BaselineSpec | QualitySpec | SpeedSpec, result: Result, told: dict[str, Output]) -> Result:
    """The result with paths of this machine.

    Raises:
        JobProtocolError: it speaks of a file that is not among what the job left.
    """
    if isinstance(result, BaselineResult) and isinstance(spec, BaselineSpec):
        out = Path(spec.out)
        path = out if result.format == spec.format else fallback_path(out)
        output = told.get(path.name)
        if output is None or (output.sha256, output.size) != (result.sha256, result.size_bytes):
            raise JobProtocolError("The Job's result speaks of a baseline that is not among what it wrote.")
        head = path.with_name(Path(result.head_path).name) if result.head_path else None
        if head is not None and head.name not in told:
            raise JobProtocolError("The Job's result speaks of a head that is not among what it wrote.")
        return result.model_copy(update={"path": str(path), "head_path": str(head) if head else None})
    if isinstance(result, QualityResult) and isinstance(spec, QualitySpec) and result.tokens_sha256:
        output = told.get(Path(spec.tokens_out).name) if spec.tokens_out else None
        if output is None or output.sha256 != result.tokens_sha256:
            raise JobProtocolError("The Job's result speaks of a per-token file that is not among what it wrote.")
        return result.model_copy(update={"tokens_path": spec.tokens_out})
    return result


def _is(path: Path, output: Output) -> bool:
    """Whether a file is the one that was told of."""
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_size == output.size and sha256_file(path) == output.sha256
