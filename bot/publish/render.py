"""Renders sections, pull bodies and the dataset card: strict, sandboxed, every string escaped unless made here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from bot.publish.flag_list import file_link, flag_list
from bot.publish.markdown import code, escape, link
from bot.publish.method import (
    Machines,
    command_block,
    corpus_words,
    imported_words,
    method,
    reference_name,
    speed_cell,
    speed_legend,
)
from core.dataset import SCHEMA_VERSION, DatasetRow
from core.format import percent, significant, size, with_interval
from core.verdict import Z95, Candidate, closest, pareto, picks, sentence, tied

#: Characters of a label that are shown; only a file name without a known label is longer.
_MAX_LABEL = 60
#: Characters of a dispute that are shown: all that is kept of one.
_MAX_DISPUTE = 500


def _load(name: str) -> str:
    return files("templates").joinpath(name).read_text(encoding="utf-8")


def _finalize(value: Any) -> Any:
    """Escape every string that a template prints and that was not made safe by our own functions."""
    return escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FunctionLoader(_load),
        undefined=StrictUndefined,
        finalize=_finalize,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


_ENVIRONMENT = _environment()


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


def distinct_labels(rows: Sequence[DatasetRow]) -> list[DatasetRow]:
    """Rows whose labels tell them apart: where two files share one, the file's stem or its whole path stands in."""
    names = [row.label for row in rows]
    for longer in (lambda row: PurePosixPath(row.variant).stem, lambda row: row.variant, lambda row: row.id):
        names = [name if names.count(name) == 1 else longer(row) for name, row in zip(names, rows, strict=True)]
    names = [
        name if len(name) <= _MAX_LABEL else f"{name[:_MAX_LABEL]}… {row.id[:6]}"
        for row, name in zip(rows, names, strict=True)
    ]
    return [row.model_copy(update={"label": name}) for row, name in zip(rows, names, strict=True)]


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


def render_section(
    rows: Sequence[DatasetRow], *, endpoint: str, project_url: str, leaderboard_url: str, only: Collection[str] = ()
) -> str:
    """The section of a repo's card from its rows (all of one repo), largest file first; ``only``: see :func:`table`."""
    ordered = sorted(distinct_labels(rows), key=lambda row: (-row.size_bytes, row.variant))
    ranking = rank(ordered)
    by_label = {row.label: row for row in ordered}
    n_prompt = next((row.n_prompt for row in ordered if row.n_prompt), 512)
    n_gen = next((row.n_gen for row in ordered if row.n_gen), 128)
    first = next((row for row, c in ranking.ranked if not c.is_reference), ordered[0])
    machines = Machines(ordered)
    columns, cells = table(ordered, ranking, machines, endpoint=endpoint, n_prompt=n_prompt, n_gen=n_gen, only=only)
    disputed = next((row.disputed for row in ordered if row.disputed), None)
    return fill(
        "section.md.j2",
        verdict=Markup(_verdict(ranking, ordered)),
        disputed=escape(disputed, most=_MAX_DISPUTE) if disputed else None,
        picks=[
            {
                "purpose": pick.purpose,
                "file": file_link(by_label[pick.label], endpoint),
                "size": Markup(size(by_label[pick.label].size_bytes)),
                "because": pick.because,
            }
            for pick in picks(ranking.candidates)
        ],
        columns=columns,
        rows=cells,
        n_prompt=n_prompt,
        n_gen=n_gen,
        has_quality=any(row.kld_mean is not None for row in ordered),
        has_speed=any(row.tg_ts is not None or row.pp_ts is not None for row in ordered),
        legend=Markup(_legend(ordered, ranking, machines)),
        method=method(first, ordered, machines),
        command=command_block(first.command),
        corpus=corpus_words(first, endpoint),
        flags=flag_list(ordered, endpoint),
        bot=link("quantcard", project_url),
        leaderboard=link("All measurements", leaderboard_url) if leaderboard_url else None,
    )


def render_pull_body(
    rows: Sequence[DatasetRow],
    *,
    key: str,
    endpoint: str,
    leaderboard_url: str,
    project_url: str = "",
    operator: str = "",
    beside: Sequence[str] = (),
) -> str:
    """The first comment of our pull; its last line is how the pull is found again.

    Args:
        operator: who runs the bot.
        beside: what the pull changes besides the section, in words of ours.
    """
    rows = distinct_labels(rows)
    by_label = {row.label: row for row in rows}
    found = [c for c in rank(rows).candidates if not c.is_reference]
    chosen: list[tuple[str, Candidate]] = []
    if (best := closest(found)) and len(found) > 1:
        near = next((pick for pick in picks(found) if pick.purpose == "practically the original"), None)
        chosen.append(("smallest", min(found, key=lambda c: (c.size_bytes, c.kld))))
        if near:
            chosen.append((near.purpose, next(c for c in found if c.label == near.label)))
        chosen.append(("closest", best))
    columns = [
        {
            "title": Markup(", ".join(title for title, other in chosen if other is c)),
            "file": Markup(f"{file_link(by_label[c.label], endpoint)}, {size(c.size_bytes)}"),
            "kld": Markup(with_interval(c.kld, Z95 * c.kld_stderr)),
        }
        for c in dict.fromkeys(c for _, c in chosen)
    ]
    reference = next((row for row in rows if row.reference_variant), None)
    quants = [row for row in rows if not row.is_reference]
    first = next((row for row in rows if row.command and not row.is_reference), rows[0])
    return fill(
        "pull-body.md.j2",
        protocol=code(rows[0].protocol_name),
        command=command_block(None if first.is_reference else first.command),
        corpus=corpus_words(first, endpoint),
        n_files=sum(row.kld_mean is not None or row.tg_ts is not None for row in quants),
        n_left=sum(row.kld_mean is None and row.tg_ts is None for row in quants),
        imported=imported_words(quants),
        has_speed=any(row.tg_ts is not None or row.pp_ts is not None for row in rows),
        reference=reference_name(reference, own="your ")
        if reference and any(r.kld_mean is not None for r in rows)
        else None,
        columns=columns,
        flags=flag_list(rows, endpoint)[:5],
        leaderboard=link("All measurements", leaderboard_url) if leaderboard_url else None,
        bot=link("quantcard", project_url),
        operator=operator,
        beside=Markup(" and ".join(beside)),
        key=Markup(key),
    )


def render_dataset_card(n_rows: int) -> str:
    """The README of the results dataset."""
    columns = [
        {"name": Markup(name), "meaning": field.description or name.replace("_", " ")}
        for name, field in DatasetRow.model_fields.items()
    ]
    return fill("dataset-card.md.j2", n_rows=n_rows, schema_version=SCHEMA_VERSION, columns=columns)


def fill(name: str, **context: Any) -> str:
    """A template with its values; every string that is no Markup is escaped."""
    return _ENVIRONMENT.get_template(name).render(**context)


def _verdict(ranking: Ranking, rows: Sequence[DatasetRow]) -> str:
    """The verdict with escaped labels; without a reference it says so instead."""
    if all(c.is_reference for c in ranking.candidates):
        if any(row.quality_imported for row in rows):
            return "Quality was measured elsewhere only and imported; no file is recommended on that."
        reason = next((row.reason for row in rows if row.reason and row.state in ("measured", "no-reference")), None)
        if reason:
            return f"Quality could not be measured here, only speed. {escape(reason)}"
        if any(row.state == "waiting" for row in rows):
            return "The measurements of this repo have not ended yet."
    return sentence([replace(c, label=str(escape(c.label))) for c in ranking.candidates])


_Cell = Callable[[DatasetRow], str | None]


def table(
    rows: Sequence[DatasetRow],
    ranking: Ranking,
    machines: Machines,
    *,
    endpoint: str,
    n_prompt: int,
    n_gen: int,
    only: Collection[str] = (),
) -> tuple[list[dict[str, Markup]], list[list[Markup]]]:
    """(columns with title and alignment, cells): a column nobody has a figure for is left out.

    ``only``: the columns that are wanted, as ``.quantcard.yml`` names them (first in each line below); empty: all.
    """
    figures: list[tuple[str, str, _Cell]] = [
        ("bpw", "bpw", lambda r: None if r.bpw is None else f"{r.bpw:.2f}"),
        ("size", "Size", lambda r: size(r.size_bytes)),
        ("kld", "Mean KLD", lambda r: _interval(r.kld_mean, r.kld_stderr)),
        ("kld-99.9", "99.9 % KLD", lambda r: None if r.kld_p99_9 is None else significant(_floored(r.kld_p99_9, r))),
        ("same-top", "Same top p", lambda r: None if r.same_top is None else percent(r.same_top)),
        ("ppl-ratio", "PPL ratio", lambda r: _interval(r.ppl_ratio, r.ppl_ratio_stderr, most=4)),
        ("pp", f"pp{n_prompt} t/s", lambda r: speed_cell(r, prompt=True)),
        ("tg", f"tg{n_gen} t/s", lambda r: speed_cell(r, prompt=False)),
        ("memory", "Memory", _memory),
    ]
    front = _front(ranking)
    notes = [_notes(row, row.id in front, ranking, machines) for row in rows]
    shown = [(title, [cell(row) for row in rows]) for name, title, cell in figures if not only or name in only]
    shown = [(title, cells) for title, cells in shown if any(cell is not None for cell in cells)]
    columns = [{"title": Markup("Quant"), "align": Markup("---")}]
    columns += [{"title": Markup(title), "align": Markup("--:")} for title, _ in shown]
    if any(notes):
        columns.append({"title": Markup(""), "align": Markup("---")})
    lines = [
        [
            file_link(row, endpoint),
            *(Markup(cells[at] or "–") for _, cells in shown),
            *([Markup(note)] if any(notes) else []),
        ]
        for at, (row, note) in enumerate(zip(rows, notes, strict=True))
    ]
    return columns, lines


def _front(ranking: Ranking) -> set[str]:
    """The rows that no other file beats; none where that is true of them all, so that it would tell nothing."""
    quants = [
        (row.id, yes)
        for (row, c), yes in zip(ranking.ranked, pareto(ranking.candidates), strict=True)
        if not c.is_reference
    ]
    return {row_id for row_id, yes in quants if yes} if not all(yes for _, yes in quants) else set()


def _interval(value: float | None, stderr: float | None, *, most: int = 5) -> str | None:
    return None if value is None else with_interval(value, Z95 * (stderr or 0), most=most)


def _floored(value: float, row: DatasetRow) -> float:
    """Rounding makes a reference's own KLD negative here and there; on a card it is 0."""
    return max(value, 0.0) if row.is_reference else value


def _memory(row: DatasetRow) -> str | None:
    if row.peak_memory_bytes is None:
        return None
    return size(row.peak_memory_bytes) + (f" + {size(row.peak_vram_bytes)} VRAM" if row.peak_vram_bytes else "")


def _equals(row: DatasetRow, ranking: Ranking) -> list[Candidate]:
    """The smaller files whose mean KLD can't be told from this one's."""
    own = next((c for other, c in ranking.ranked if other.id == row.id), None)
    if own is None or row.is_reference:
        return []
    return [c for _, c in ranking.ranked if not c.is_reference and c.size_bytes < own.size_bytes and tied(own, c)]


def _notes(row: DatasetRow, on_front: bool, ranking: Ranking, machines: Machines) -> str:
    notes = []
    if row.is_reference:
        notes.append("reference")
    elif on_front:
        notes.append("◆")
    if machine := machines.mark(row):
        notes.append(machine)
    if equals := _equals(row, ranking):
        notes.append("≈ " + ", ".join(str(escape(c.label, most=80)) for c in equals))
    if row.id in ranking.apart:
        notes.append(ranking.apart[row.id])
    if row.quality_imported:
        notes.append(f"quality imported ({escape(row.quality_imported)}), so not ranked here")
    if row.speed_imported:
        notes.append(f"speed imported ({escape(row.speed_imported)})")
    if row.n_files > 1:
        notes.append(f"{row.n_files} files")
    reason = f": {escape(row.reason)}" if row.reason else ""
    if row.state == "failed":
        notes.append(f"could not be measured{reason}")
    elif row.state == "waiting":
        notes.append("only its speed was measured" if row.tg_ts is not None else "not measured yet")
    elif row.state == "stale":
        notes.append(f"outdated{reason}")
    elif row.state == "no-reference" and ranking.ranked:
        notes.append(f"no reference{reason}")
    elif row.reason and row.kld_mean is not None:
        # Without a KLD the reason is the verdict's: there is no reference, for this file or any.
        notes.append(str(escape(row.reason)))
    return " · ".join(notes)


def _legend(rows: Sequence[DatasetRow], ranking: Ranking, machines: Machines) -> str:
    parts = []
    if _front(ranking):
        parts.append("◆: no other file of this size or smaller has a lower mean KLD.")
    if any(_equals(row, ranking) for row in rows):
        parts.append("≈: its mean KLD can't be told from that of the smaller file named.")
    if ranking.ranked:
        parts.append("± is a 95 % interval for KLD and PPL ratio.")
    if any(row.quality_imported or row.speed_imported for row in rows):
        parts.append("Imported: measured elsewhere and read from another tool's output.")
    reference = next((row for row in rows if row.reference_variant), None)
    if reference:
        floor = reference.noise_floor
        known = "" if floor is None else f"; measured against itself it has a mean KLD of {_floor(floor)} (noise floor)"
        parts.append(f"The original here is {reference_name(reference)}{known}.")
        if reference.reference_kind == "proven":
            parts.append(f"Its sampled weights are those of {code(str(reference.base_model))}.")
    if told := speed_legend(rows, machines):
        parts.append(told)
    return " ".join(parts)


def _floor(value: float) -> str:
    """A noise floor: its size matters, not its sign, and below a millionth it does not matter at all."""
    return significant(abs(value), 2) if abs(value) >= 1e-6 else "under 0.000001"
