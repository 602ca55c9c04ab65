"""Which files a spec names, with what stands beside them, and which it writes. Looks at names only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.contract import (
    BaselineSpec,
    BaselineToolSpec,
    QualityManySpec,
    QualitySpec,
    QuantizeSpec,
    SpeedSpec,
)
from core.gguf_files import shard_names

Spec = BaselineSpec | BaselineToolSpec | QualityManySpec | QualitySpec | QuantizeSpec | SpeedSpec


def model_files(path: Path) -> list[Path]:
    """A model's file, or all shards of it."""
    return [path.with_name(name) for name in shard_names(path.name)]


def baseline_files(path: Path) -> list[Path]:
    """A baseline's file, its companion, and the output heads beside it (a states baseline names one of them)."""
    heads = sorted(path.parent.glob("head-*.gguf")) if path.parent.is_dir() else []
    return [path, path.with_name(path.name + ".json"), *heads]


def reads_of(spec: Spec) -> list[Path]:
    """Every file that a job may have to read; some of them need not be there."""
    match spec:
        case BaselineSpec():
            return [*model_files(Path(spec.reference)), Path(spec.corpus)]
        case QualitySpec():
            return [*model_files(Path(spec.model)), *baseline_files(Path(spec.baseline))]
        case QualityManySpec():
            models = [file for model in spec.models for file in model_files(Path(model))]
            return [*models, *baseline_files(Path(spec.baseline))]
        case BaselineToolSpec():
            return [*baseline_files(Path(spec.path)), *(model_files(Path(spec.reference)) if spec.reference else [])]
        case SpeedSpec() | QuantizeSpec():
            return model_files(Path(spec.model))


def outputs_of(spec: Spec) -> list[Path]:
    """Every file that a job makes under a name of ours; more may come beside them."""
    return [Path(value) for _, value in _outputs(spec)]


def writes_of(spec: Spec) -> list[Path]:
    """The folders that a job writes to."""
    return list(dict.fromkeys(path.absolute().parent for path in outputs_of(spec)))


def with_outputs(spec: Spec, moved: dict[str, str]) -> Spec:
    """The spec with outputs under other names."""
    changed: dict[str, Any] = {name: moved.get(value, value) for name, value in _outputs(spec) if name != "tokens_out"}
    found = getattr(spec, "tokens_out", None)
    if isinstance(found, list):
        changed["tokens_out"] = [moved.get(value, value) for value in found]
    elif found is not None:
        changed["tokens_out"] = moved.get(found, found)
    return spec.model_copy(update=changed)


def _outputs(spec: Spec) -> Iterator[tuple[str, str]]:
    for name in ("out", "checkpoint", "tokens_out"):
        found = getattr(spec, name, None)
        for value in found if isinstance(found, list) else [found]:
            if value is not None:
                yield name, value
