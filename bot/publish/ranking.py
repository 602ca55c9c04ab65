"""Which rows of a repo may be compared with one another, and under which names. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bot.publish.markdown import code
from core.dataset import DatasetRow
from core.verdict import Candidate

#: Characters of a label that are shown; only a file name without a known label is longer.
_MAX_LABEL = 60
_OLDER = " (older)"


def candidate(row: DatasetRow) -> Candidate | None:
    """A row as a candidate for picks, or None while no KLD was measured here."""
    if row.state != "measured" or row.kld_mean is None or row.quality_imported:
        return None
    return Candidate(
        label=row.label,
        size_bytes=row.size_bytes,
        kld=row.kld_mean,
        kld_stderr=row.kld_stderr or 0.0,
        same_top=row.same_top or 0.0,
        is_reference=row.is_reference,
    )


def _is_older(row: DatasetRow, current: Collection[str]) -> bool:
    """Whether a row is of a file that another one of its name has replaced, and not marked so yet."""
    return row.state == "stale" and row.variant in current and not row.label.endswith(_OLDER)


def distinct_labels(rows: Sequence[DatasetRow]) -> list[DatasetRow]:
    """Rows whose labels tell them apart: where two files share one, the file's stem or its whole path stands in."""
    current = {row.variant for row in rows if row.state != "stale"}
    names = [f"{row.label}{_OLDER}" if _is_older(row, current) else row.label for row in rows]
    for longer in (lambda row: PurePosixPath(row.variant).stem, lambda row: row.variant, lambda row: row.id):
        names = [name if names.count(name) == 1 else longer(row) for name, row in zip(names, rows, strict=True)]
    names = [
        name if len(name) <= _MAX_LABEL else f"{name[:_MAX_LABEL]}… {row.id[:6]}"
        for row, name in zip(rows, names, strict=True)
    ]
    return [row.model_copy(update={"label": name}) for row, name in zip(rows, names, strict=True)]


def in_order(rows: Sequence[DatasetRow]) -> list[DatasetRow]:
    """Rows as sections and figures list them: the largest file first, with labels that tell them apart."""
    return sorted(distinct_labels(rows), key=lambda row: (-row.size_bytes, row.variant, row.state == "stale", row.id))


@dataclass(frozen=True, slots=True)
class Ranking:
    """The rows that may be ranked together, as candidates; ``apart`` says of the other measured rows why not."""

    ranked: list[tuple[DatasetRow, Candidate]]
    apart: dict[str, str]

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates alone."""
        return [found for _, found in self.ranked]


def rank(rows: Sequence[DatasetRow]) -> Ranking:
    """Sort out what may be compared: one protocol and reference, one environment or one whose control run is good.

    A control run is the reference against its own baseline there; good is below a tenth of the smallest KLD compared.
    """
    measured = [(row, found) for row in rows if (found := candidate(row))]
    planes = Counter((row.protocol_fingerprint, row.reference_key) for row, c in measured if not c.is_reference)
    places = Counter(row.environment_fingerprint for row, c in measured if not c.is_reference)
    if not planes:
        return Ranking(measured, {})
    plane, place = planes.most_common(1)[0][0], places.most_common(1)[0][0]
    least = min((c.kld for _, c in measured if not c.is_reference), default=0.0)
    good = {
        row.environment_fingerprint
        for row, c in measured
        if c.is_reference and row.reference_key == plane[1] and abs(c.kld) < least / 10
    }
    ranked, apart = [], {}
    for row, found in measured:
        if (row.protocol_fingerprint, row.reference_key) != plane:
            apart[row.id] = f"measured against {code(row.reference_variant or 'another reference')}, so not ranked here"
        elif (
            row.environment_fingerprint != place and not found.is_reference and row.environment_fingerprint not in good
        ):
            apart[row.id] = "measured on another machine, so not ranked here"
        else:
            ranked.append((row, found))
    return Ranking(ranked, apart)
