"""Records of the database as the shapes that views get: strings shortened, times zoned, intervals worked out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from core.dataset import DatasetRow
from core.picks import Hardware, Option
from core.verdict import Z95
from space.shapes import FlagNote, Measurement, ModelRow, Owner, Point, Value, VariantRow
from space.snapshot import Snapshot
from space.text import clean

Record = Mapping[str, Any]
#: Characters of a string in a row of a table; and of one on a measurement's own page.
_SHORT, _LONG = 200, 2000
#: A JSON column that is longer is not parsed: no result of ours is.
_MAX_JSON = 100_000
_FLAGS = 8


def environments(now: Snapshot) -> Mapping[str, Hardware]:
    """What class of hardware each environment is."""
    return now.remembered("hardware", lambda: {key: hardware_of(text) for key, text in now.environments.items()})


def hardware_of(environment_json: str) -> Hardware:
    """The class that an environment's devices tell."""
    found = parsed(environment_json) or {}
    backend = str(found.get("backend", "")).lower()
    if "metal" in backend or "mtl" in backend or "apple" in str(found.get("gpu") or "").lower():
        return "apple"
    if found.get("n_gpu_layers") == 0 or not (
        found.get("gpu") or any(w in backend for w in ("cuda", "vulkan", "rocm"))
    ):
        return "cpu"
    return "gpu"


def variant_row(record: Record, classes: Mapping[str, Hardware]) -> VariantRow:
    """A record of ``measurements`` as tables show it."""
    environment = record["environment_fingerprint"]
    told: dict[str, Any] = {name: record[name] for name in _AS_IT_IS}
    told |= {name: _text(record[name]) for name in _TEXTS}
    return VariantRow(
        **told,
        kld_mean=value(record["kld_mean"], record["kld_stderr"]),
        same_top=value(record["same_top"], record["same_top_stderr"]),
        ppl_ratio=value(record["ppl_ratio"], record["ppl_ratio_stderr"]),
        flags=flags(record["flags"]),
        apart=bool(record["pool"]),
        protocol=record["protocol_fingerprint"][:64],
        environment=environment[:16] if environment else None,
        hardware=classes.get(environment) if environment else None,
        has_tokens=record["tokens_path"] is not None,
        measured_at=_zoned(record["measured_at"]),
    )


_AS_IT_IS = (
    "id", "state", "is_reference", "reference_kind", "size_bytes", "bpw", "kld_p99_9", "n_prompt", "n_gen", "pp_ts",
    "pp_ts_stddev", "tg_ts", "tg_ts_stddev", "peak_memory_bytes", "peak_vram_bytes", "memory_8k_bytes", "on_front",
    "tied_id", "ranked",
)  # fmt: skip
_TEXTS = (
    "model", "repo_id", "owner", "variant", "label", "reason", "disputed", "tied_with", "quality_imported",
    "speed_imported", "protocol_name",
)  # fmt: skip


def value(figure: float | None, stderr: float | None) -> Value | None:
    """A figure with its 95 % interval."""
    if figure is None:
        return None
    if stderr is None or not math.isfinite(stderr):
        return Value(value=figure)
    return Value(value=figure, stderr=stderr, low=figure - Z95 * stderr, high=figure + Z95 * stderr)


def flags(text: str) -> list[FlagNote]:
    """The audit's findings."""
    found = parsed(f'{{"flags":{text[:_MAX_JSON]}}}') or {}
    listed = found.get("flags")
    if not isinstance(listed, list):
        return []
    notes = [flag for flag in listed[:_FLAGS] if isinstance(flag, dict)]
    return [FlagNote(code=clean(f.get("code", ""), limit=60), detail=clean(f.get("detail", ""))) for f in notes]


def model_row(record: Record) -> ModelRow:
    """A record of ``models``."""
    texts = ("model", "architecture", "closest_label", "closest_owner", "near_label", "near_owner")
    told: dict[str, Any] = {name: record[name] for name in ModelRow.model_fields}
    told |= {name: _text(record[name]) for name in texts}
    return ModelRow(**{**told, "measured_at": _zoned(record["measured_at"])})


def owner_row(record: Record) -> Owner:
    """An uploader's record."""
    return Owner(**{**record, "owner": _text(record["owner"]), "measured_at": _zoned(record["measured_at"])})


def point(record: Record) -> Point:
    """A record of ``measurements`` as a plot draws it."""
    environment = record["environment_fingerprint"]
    return Point(
        id=record["id"],
        name=clean(record["label"], limit=60),
        owner=clean(record["owner"], limit=60),
        size_bytes=record["size_bytes"],
        kld=record["kld_mean"],
        kld_stderr=record["kld_stderr"],
        kld_p99_9=record["kld_p99_9"],
        tg=record["tg_ts"] if record["speed_imported"] is None else None,
        environment=environment[:16] if environment else None,
        on_front=record["on_front"],
        on_speed_front=record["on_speed_front"],
        group=record["number"],
    )


def option(record: Record, classes: Mapping[str, Hardware], wanted: Hardware) -> Option:
    """A record of ``measurements`` as a pick weighs it; its speed only where it was measured on such hardware."""
    here = classes.get(record["environment_fingerprint"] or "")
    timed = record["speed_imported"] is None and wanted in ("any", here)
    return Option(
        id=record["id"],
        name=f"{clean(record['owner'], limit=60)} {clean(record['label'], limit=60)}",
        size_bytes=record["size_bytes"],
        kld=record["kld_mean"],
        kld_stderr=record["kld_stderr"] or 0.0,
        kld_p99_9=record["kld_p99_9"],
        same_top=record["same_top"] or 0.0,
        memory_8k=record["memory_8k_bytes"],
        kv_bytes_per_token=record["kv_bytes_per_token"],
        n_ctx_train=record["n_ctx_train"],
        tg=record["tg_ts"] if timed else None,
    )


def measurement(record: Record, classes: Mapping[str, Hardware], url: Callable[[str], str | None]) -> Measurement:
    """A record with its long columns: all that is known of it."""
    columns = {name: record.get(name) for name in DatasetRow.model_fields if not name.endswith("_json")}
    columns["measured_at"] = _zoned(columns["measured_at"])
    tasks = parsed(f'{{"tasks":{record.get("tasks_json") or "null"}}}') or {}
    return Measurement(
        variant=variant_row(record, classes),
        row={name: clean(one, limit=_LONG) if isinstance(one, str) else one for name, one in columns.items()},
        quality=parsed(record.get("quality_json")),
        speed=parsed(record.get("speed_json")),
        tasks=tasks["tasks"] if isinstance(tasks.get("tasks"), list) else None,
        inspection=parsed(record.get("inspection_json")),
        protocol=parsed(record.get("protocol_json")),
        environment=parsed(record.get("environment_json")),
        command=(record.get("command") or "")[:_LONG] or None,
        raw_url=url(record["raw_path"]) if record["raw_path"] else None,
        tokens_url=url(record["tokens_path"]) if record["tokens_path"] else None,
    )


def parsed(text: str | None) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or another version wrote something else."""
    if not text or len(text) > _MAX_JSON:
        return None
    try:
        # A NaN is no JSON, and no browser reads it.
        found = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(text: str | None) -> str | None:
    return text if text is None or len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _zoned(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at
