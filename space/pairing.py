"""Two variants side by side: paired on the same tokens where both files of them are there, else by their intervals."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

from core import pairs, unpaired
from core.errors import InputError, QuantcardError, TokenFileError
from core.token_file import TokenFile, read_tokens
from space.data import Results
from space.rows import environments, variant_row
from space.shapes import Compared, Gap, VariantRow
from space.snapshot import Snapshot
from space.sources import Published
from space.text import clean

log = logging.getLogger(__name__)

#: Comparisons kept; each is some kilobytes.
_KEPT = 256
#: Tokens of a file at most: some 16 bytes each, unpacked twice that.
_MAX_TOKENS = 4_000_000


class Pairing:
    """Compares variants of what is shown; pairs one couple at a time, which takes a second and some memory."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._one_at_a_time = threading.Lock()
        self._known: OrderedDict[tuple[str, ...], Compared] = OrderedDict()

    def compare(self, a: str, b: str) -> Compared:
        """A against B, by their ids.

        Raises:
            InputError: one of them is not there, or both are the same.
        """
        if a == b:
            raise InputError("Choose two different files to compare.")
        now, published = self._results.snapshot, self._results.published
        one, other = self._record(now, a), self._record(now, b)
        key = (published.revision if published else "", a, b)
        if (found := self._known.get(key)) is not None:
            return found
        with self._one_at_a_time:
            found, final = self._compare(now, published, one, other)
            if final:
                self._known[key] = found
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return found

    def _record(self, now: Snapshot, id: str) -> dict[str, Any]:
        found = now.query("SELECT * FROM measurements WHERE id = ?", [id[:64]])
        names = [column[0] for column in found.description]
        row = found.fetchone()
        if row is None:
            raise InputError("One of the two files is not there; it may have been withdrawn or renamed.")
        return dict(zip(names, row, strict=True))

    def _compare(
        self, now: Snapshot, published: Published | None, a: dict[str, Any], b: dict[str, Any]
    ) -> tuple[Compared, bool]:
        """The comparison, and whether it will be the same the next time."""
        classes = environments(now)
        sides = variant_row(a, classes), variant_row(b, classes)
        if why := _incomparable(a, b):
            return _told(sides, "incomparable", why, []), True
        notes = []
        if published is not None and a["tokens_path"] and b["tokens_path"]:
            try:
                paired = self._paired(sides, a, b, lambda path: self._tokens(published, path))
                return paired, True
            except QuantcardError as refused:
                notes.append(f"They could not be paired on the same tokens: {refused}")
            except Exception:
                log.exception("pairing %s with %s failed", a["id"], b["id"])
                notes.append("They could not be paired on the same tokens: a file could not be read.")
        else:
            notes.append("Not paired: the figures of single tokens are not there for both.")
        return _by_intervals(sides, a, b, notes), not (a["tokens_path"] and b["tokens_path"])

    def _tokens(self, published: Published, path: str) -> TokenFile:
        file = self._results.source.beside(published, path)
        try:
            return read_tokens(file)
        except TokenFileError as wrong:
            # Its sentence names the file by its place on this machine.
            raise InputError(f"{file.name} is not a per-token file that can be read here.") from wrong

    def _paired(
        self, sides: tuple[VariantRow, VariantRow], a: dict[str, Any], b: dict[str, Any], read: Callable[[str], Any]
    ) -> Compared:
        if max(a["n_tokens"] or 0, b["n_tokens"] or 0) > _MAX_TOKENS:
            raise InputError("They hold too many tokens for this page; 'quantcard compare' does it.")
        found = pairs.compare(read(a["tokens_path"]), read(b["tokens_path"]))
        figures: list[tuple[Literal["kld_mean", "ln_ppl", "same_top"], pairs.Difference]] = [
            ("kld_mean", found.kld_mean),
            ("ln_ppl", found.ln_ppl),
            ("same_top", found.same_top),
        ]
        gaps = [
            Gap(
                name=name,
                a=one.a,
                b=one.b,
                difference=one.difference,
                low=one.interval.low if one.interval else None,
                high=one.interval.high if one.interval else None,
                p_value=one.p_value,
                measurable=one.measurable,
            )
            for name, one in figures
        ]
        return Compared(
            a=sides[0],
            b=sides[1],
            how="paired",
            sentence=clean(pairs.sentence(found), limit=2000),
            gaps=gaps,
            n_chunks=found.n_chunks,
            n_tokens=found.n_tokens,
            notes=[clean(note, limit=1000) for note in found.notes],
        )


def _incomparable(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Why two figures are not of the same kind; None where they are."""
    for one in (a, b):
        if one["kld_mean"] is None:
            name = clean(one["variant"])
            return f"{name} has no quality figures: {clean(one['reason'] or 'it was not measured')}"
    if a["model"] != b["model"]:
        return "They are of different base models, so that their KLDs are against different originals."
    if a["protocol_fingerprint"] != b["protocol_fingerprint"]:
        return "They were measured under different protocols, so that their figures are not the same quantity."
    if a["reference_key"] != b["reference_key"]:
        return "They were measured against different references, so that their figures are not the same quantity."
    return None


def _by_intervals(
    sides: tuple[VariantRow, VariantRow], a: dict[str, Any], b: dict[str, Any], notes: list[str]
) -> Compared:
    kld = unpaired.gap(a["kld_mean"], a["kld_stderr"], b["kld_mean"], b["kld_stderr"])
    gaps = [_gap("kld_mean", kld)]
    if a["same_top"] is not None and b["same_top"] is not None:
        gaps.append(
            _gap("same_top", unpaired.gap(a["same_top"], a["same_top_stderr"], b["same_top"], b["same_top_stderr"]))
        )
    if a["environment_fingerprint"] != b["environment_fingerprint"]:
        notes.append("They were measured in different environments: part of the difference may come from there.")
    if any(one["quality_imported"] for one in (a, b)):
        notes.append("Figures that were imported were measured elsewhere.")
    return _told(sides, "intervals", unpaired.sentence(*_names(a, b), kld), gaps, notes)


def _gap(name: Any, found: unpaired.Gap) -> Gap:
    return Gap(
        name=name,
        a=found.a,
        b=found.b,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        measurable=found.measurable,
    )


def _names(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, str]:
    one, other = (clean(row["variant"], limit=120) for row in (a, b))
    if one == other:
        one, other = (f"{clean(row['owner'], limit=60)}'s {clean(row['label'], limit=60)}" for row in (a, b))
    return (one, other) if one != other else (f"{one} (A)", f"{other} (B)")


def _told(
    sides: tuple[VariantRow, VariantRow], how: Any, sentence: str, gaps: list[Gap], notes: list[str] | None = None
) -> Compared:
    return Compared(
        a=sides[0],
        b=sides[1],
        how=how,
        sentence=sentence,
        gaps=gaps,
        n_chunks=None,
        n_tokens=None,
        notes=[clean(note, limit=1000) for note in notes or []],
    )
