"""Prometheus' text format, version 0.0.4, of plain values. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: What the answer says that it is.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
Kind = Literal["gauge", "counter", "histogram"]

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; ``suffix`` is for histograms: ``_bucket``, ``_sum``, ``_count``."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name without the project's prefix, what it means, and its values."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]


def gauge(name: str, help: str, value: float | None) -> Family:
    """One value; None: it is not known, and nothing is told."""
    return Family(name, "gauge", help, () if value is None else (Sample(value),))


def counter(name: str, help: str, value: float) -> Family:
    """One value that only grows."""
    return Family(name, "counter", help, (Sample(value),))


def by_label(name: str, kind: Kind, help: str, labels: Sequence[str], values: Mapping[Any, float]) -> Family:
    """Values by their labels: the keys are tuples of label values, or one of them."""
    samples = []
    for key, value in sorted(values.items(), key=lambda item: str(item[0])):
        given = key if isinstance(key, tuple) else (key,)
        samples.append(Sample(value, tuple(zip(labels, map(str, given), strict=True))))
    return Family(name, kind, help, tuple(samples))


def histogram(
    name: str, help: str, label: str, bounds: Sequence[float], found: Mapping[str, tuple[Sequence[int], float]]
) -> Family:
    """A histogram by one label.

    Args:
        bounds: upper ends of the classes, growing.
        found: by label: how many are in each class (one more than bounds: the last is what is beyond), and the sum.
    """
    samples: list[Sample] = []
    for value, (classes, total) in sorted(found.items()):
        here = ((label, value),)
        so_far = 0
        for bound, number in zip((*bounds, math.inf), classes, strict=True):
            so_far += number
            samples.append(Sample(so_far, (*here, ("le", _number(bound))), "_bucket"))
        samples += [Sample(total, here, "_sum"), Sample(so_far, here, "_count")]
    return Family(name, "histogram", help, tuple(samples))


def render(families: Iterable[Family], *, prefix: str = "quantcard_") -> str:
    """The text; families without a value are left out, and names that begin with ``process_`` get no prefix.

    Raises:
        ValueError: a name or a label's name is none.
    """
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        name = family.name if family.name.startswith("process_") else f"{prefix}{family.name}"
        _checked(name)
        lines += [f"# HELP {name} {_help(family.help)}", f"# TYPE {name} {family.kind}"]
        lines += [f"{name}{one.suffix}{_labels(one.labels)} {_number(one.value)}" for one in family.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    told = ",".join(f'{_checked(name)}="{_value(value)}"' for name, value in labels)
    return f"{{{told}}}" if told else ""


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a metric or a label")
    return name


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _value(text: str) -> str:
    return _help(text).replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
