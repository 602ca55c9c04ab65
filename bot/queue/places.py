"""Where the worker keeps what jobs make: baselines, per-token sidecars, unfinished work. All under the data folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from core.contract import BaselineFormat
from core.protocol import Protocol

#: Seconds after which what an interrupted job left is no longer waited for.
_UNFINISHED_S = 7 * 24 * 3600.0
_SUFFIX: dict[BaselineFormat, str] = {"states": ".gguf", "logits": ".kld"}


def baseline_name(reference_key: str, protocol: Protocol) -> str:
    """What the folder of a baseline, and the file in it, are called."""
    return f"{reference_key[:16]}-{protocol.fingerprint[:16]}"


def baseline_path(data: Path, reference_key: str, protocol: Protocol, kind: BaselineFormat) -> Path:
    """The baseline of a reference under a protocol: in a folder of its own, with all that stands beside it."""
    name = baseline_name(reference_key, protocol)
    return data / "baselines" / name / f"{name}{_SUFFIX[kind]}"


def fallback_path(out: Path) -> Path:
    """Where a recording puts full logits when states were asked for and can't be had."""
    return out.with_suffix(_SUFFIX["logits"])


def tokens_path(data: Path, variant_key: str, protocol: Protocol) -> Path:
    """The per-token sidecar of a variant under a protocol."""
    return data / "tokens" / f"{variant_key[:16]}-{protocol.fingerprint[:16]}.parquet"


def work_folder(data: Path, job_key: str) -> Path:
    """All that a job's process may write: what it makes, and what it has finished so far."""
    return data / "work" / job_key[:32]


def drop_work(data: Path, job_key: str) -> None:
    """Remove what a job that ended left."""
    shutil.rmtree(work_folder(data, job_key), ignore_errors=True)


def evict_unfinished(data: Path, *, keep: Collection[str] = (), older_than_s: float = _UNFINISHED_S) -> None:
    """Remove what jobs that were never taken up again left behind.

    Args:
        keep: keys of open jobs.
    """
    kept = {work_folder(data, key).name for key in keep}
    for path in (data / "work").glob("*"):
        with suppress(OSError):
            if path.name not in kept and time.time() - path.lstat().st_mtime > older_than_s:
                shutil.rmtree(path)
    # What an earlier quantcard left.
    for path in [*(data / "checkpoints").glob("*.checkpoint"), *(data / "baselines").glob(".*")]:
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
