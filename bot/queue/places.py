"""Where the worker keeps what jobs make: baselines, per-token sidecars, checkpoints. All under the data folder."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from core.contract import BaselineFormat
from core.protocol import Protocol

#: Seconds after which what an interrupted job left is no longer waited for.
_UNFINISHED_S = 7 * 24 * 3600.0
_SUFFIX: dict[BaselineFormat, str] = {"states": ".gguf", "logits": ".kld"}


def baseline_path(data: Path, reference_key: str, protocol: Protocol, kind: BaselineFormat) -> Path:
    """The baseline of a reference under a protocol."""
    return data / "baselines" / f"{reference_key[:16]}-{protocol.fingerprint[:16]}{_SUFFIX[kind]}"


def fallback_path(out: Path) -> Path:
    """Where a recording puts full logits when states were asked for and can't be had."""
    return out.with_suffix(_SUFFIX["logits"])


def tokens_path(data: Path, variant_key: str, protocol: Protocol) -> Path:
    """The per-token sidecar of a variant under a protocol."""
    return data / "tokens" / f"{variant_key[:16]}-{protocol.fingerprint[:16]}.parquet"


def checkpoint_path(data: Path, job_key: str) -> Path:
    """What a measurement has finished so far."""
    return data / "checkpoints" / f"{job_key[:32]}.checkpoint"


def evict_unfinished(data: Path, *, older_than_s: float = _UNFINISHED_S) -> None:
    """Remove what jobs that were never taken up again left behind."""
    found = [*(data / "checkpoints").glob("*.checkpoint"), *(data / "baselines").glob(".*")]
    for path in found:
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
