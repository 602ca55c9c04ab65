"""The section's main table: a line for each file, the columns that its owner wants, and the notes behind it. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from bot.publish.flag_list import file_link
from bot.publish.markdown import code, escape
from bot.publish.method import Machines, reference_name, speed_cell, speed_legend
from bot.publish.ranking import Ranking
from bot.publish.spread import Spread
from bot.publish.verdict import Figure, Pairs, sign
from core.dataset import DatasetRow
from core.format import percent, significant, size, with_interval
from core.verdict import Z95, pareto

#: Equal smaller files that a note names.
_MOST_EQUAL = 3
#: Tasks that get a column; more would make no readable table.
MAX_TASKS = 8
#: Characters of a task's name in a column's head.
_MAX_TASK = 24

#: The flag of an imatrix made from the text that is measured on.
OVERLAP = "imatrix-overlap"
_STATES = {"failed": "could not be measured", "stale": "outdated", "retracted": "retracted"}

_Cell = Callable[[DatasetRow], str | None]
_Column = tuple[str, str, _Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns with title and alignment, the lines' cells, and what is too long for one: ``file`` and ``detail``."""

    columns: list[dict[str, Markup]]
    rows: list[list[Markup]]
    remarks: list[dict[str, Markup]] = field(default_factory=list)

    @property
    def markdown(self) -> Markup:
        """The table as Markdown, without a newline at its end."""
        head = [[column[name] for column in self.columns] for name in ("title", "align")]
        lines = [f"| {' | '.join(head[0])} |", f"|{'|'.join(head[1])}|"]
        return Markup("\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in self.rows)]))


def table(
    rows: Sequence[DatasetRow],
    ranking: Ranking,
    machines: Machines,
    *,
    endpoint: str,
    n_prompt: int,
    n_gen: int,
    only: Collection[str] = (),
    equals: Mapping[str, Sequence[DatasetRow]],
) -> Table:
    """The table of a repo's rows in their order; a column nobody has a figure for is left out.

    ``only``: the columns that are wanted, as ``.quantcard.yml`` names them (first in each line below); empty: all.
    ``equals``: see :func:`equals_of`.
    """
    figures: list[_Column] = [
        ("bpw", "bpw", lambda r: None if r.bpw is None else f"{r.bpw:.2f}"),
        ("size", "Size", lambda r: size(r.size_bytes)),
        ("kld", "Mean KLD", lambda r: _interval(Spread(r).kld, r.kld_mean)),
        (
            "kld-99.9",
            "99.9\u00a0% KLD",
            lambda r: None if r.kld_p99_9 is None else significant(_floored(r.kld_p99_9, r)),
        ),
        ("same-top", "Same top p", lambda r: _share(Spread(r).top)),
        ("ppl-ratio", "PPL ratio", lambda r: _interval(Spread(r).ppl_ratio, r.ppl_ratio, most=4)),
        ("pp", f"pp{n_prompt} t/s", lambda r: speed_cell(r, prompt=True)),
        ("tg", f"tg{n_gen} t/s", lambda r: speed_cell(r, prompt=False)),
        ("memory", "Memory", _memory),
        *_task_columns(rows),
    ]
    front = front_of(ranking)
    notes = [_notes(row, ranking, machines, equals.get(row.id, ())) for row in rows]
    remarks = [
        {"file": escape(row.label, most=80), "detail": Markup("; ".join(told))}
        for row in rows
        if (told := _remarks(row, ranking))
    ]
    shown = [(title, [cell(row) for row in rows]) for name, title, cell in figures if not only or name in only]
    shown = [(title, cells) for title, cells in shown if any(cell is not None for cell in cells)]
    columns = [{"title": Markup("Quant"), "align": Markup("---")}]
    columns += [{"title": Markup(title), "align": Markup("--:")} for title, _ in shown]
    if any(notes):
        columns.append({"title": Markup("Notes"), "align": Markup("---")})
    lines = [
        [
            Markup(f"{file_link(row, endpoint)}{' ◆' if row.id in front else ''}"),
            *(unbroken(cells[at]) for _, cells in shown),
            *([Markup(note)] if any(notes) else []),
        ]
        for at, (row, note) in enumerate(zip(rows, notes, strict=True))
    ]
    return Table(columns, lines, remarks)


def unbroken(cell: str | None) -> Markup:
    """A figure's cell that breaks before ± or + only, so that it stays readable in a narrow column."""
    text = (cell or "–").replace(" ", "\u00a0")
    return Markup(text.replace("\u00a0±", " ±").replace("\u00a0+", " +"))


def tasks_of(row: DatasetRow) -> dict[str, tuple[float, float]]:
    """Scores of tasks by name, with half of their 95 % interval, as fractions; what can't be read is none."""
    try:
        found = json.loads(row.tasks_json) if row.tasks_json else []
        told = {str(one["task"]): (float(one["score"]), Z95 * float(one.get("stderr") or 0.0)) for one in found}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {name: both for name, both in told.items() if all(math.isfinite(value) for value in both)}


def _task_columns(rows: Sequence[DatasetRow]) -> list[_Column]:
    names = list(dict.fromkeys(name for row in rows for name in tasks_of(row)))[:MAX_TASKS]

    def cell(name: str) -> _Cell:
        def told(row: DatasetRow) -> str | None:
            found = tasks_of(row).get(name)
            return None if found is None else _percents(*found)

        return told

    return [("tasks", escape(name, most=_MAX_TASK), cell(name)) for name in names]


def front_of(ranking: Ranking) -> set[str]:
    """The rows that no other file beats; none where that is true of them all, so that it would tell nothing."""
    quants = [
        (row.id, yes)
        for (row, c), yes in zip(ranking.ranked, pareto(ranking.candidates), strict=True)
        if not c.is_reference
    ]
    return {row_id for row_id, yes in quants if yes} if not all(yes for _, yes in quants) else set()


def _interval(found: Figure | None, value: float | None, *, most: int = 5) -> str | None:
    if found is None:
        return None if value is None else significant(value)
    return with_interval(found.value, found.half, most=most)


def _share(found: Figure | None) -> str | None:
    """A fraction in percent; an interval may not leave 0 to 100 %."""
    return None if found is None else _percents(found.value, found.half)


def _percents(value: float, half: float) -> str:
    digits = 2 if 0 < half < 0.0005 else 1
    return f"{percent(value, digits).removesuffix(' %')} ± {100 * half:.{digits}f} %" if half > 0 else percent(value)


def _floored(value: float, row: DatasetRow) -> float:
    """Rounding makes a reference's own KLD negative here and there; on a card it is 0."""
    return max(value, 0.0) if row.is_reference else value


def _tail(row: DatasetRow) -> str | None:
    return None if row.kld_p99_9 is None else significant(_floored(row.kld_p99_9, row))


def _memory(row: DatasetRow) -> str | None:
    if row.peak_memory_bytes is None:
        return None
    return size(row.peak_memory_bytes) + (f" + {size(row.peak_vram_bytes)} VRAM" if row.peak_vram_bytes else "")


def equals_of(ranking: Ranking, pairs: Pairs) -> dict[str, list[DatasetRow]]:
    """Of each ranked file (by row id) the smaller ones whose mean KLD can't be told from its own; the largest first."""
    known = [(row, kld) for row, c in ranking.ranked if not c.is_reference and (kld := Spread(row).kld)]

    def equal(row: DatasetRow, own: Figure, other: DatasetRow, theirs: Figure) -> bool:
        paired = pairs(row.id, other.id)
        return (sign(own, theirs) if paired is None else paired) == 0

    return {
        row.id: [r for r, k in known if r.size_bytes < row.size_bytes and equal(row, own, r, k)] for row, own in known
    }


def _notes(row: DatasetRow, ranking: Ranking, machines: Machines, equals: Sequence[DatasetRow]) -> str:
    notes = []
    if row.is_reference:
        notes.append("reference")
    if machine := machines.mark(row):
        notes.append(machine)
    if equals:
        named = ", ".join(str(escape(one.label, most=80)) for one in equals[:_MOST_EQUAL])
        more = len(equals) - _MOST_EQUAL
        notes.append(f"≈ {named}" + (f" and {more} more" if more > 0 else ""))
    if row.id in ranking.apart or row.quality_imported:
        notes.append("not\u00a0ranked")
    if row.n_files > 1:
        notes.append(f"{row.n_files} files")
    if row.state in _STATES:
        notes.append("failed" if row.state == "failed" else _STATES[row.state])
    elif row.state == "waiting":
        notes.append("only its speed was measured" if row.tg_ts is not None else "not measured yet")
    elif row.state == "no-reference" and ranking.ranked:
        notes.append("no reference")
    if _remarks(row, ranking):
        notes.append("see\u00a0below")
    return " · ".join(notes)


def _remarks(row: DatasetRow, ranking: Ranking) -> list[str]:
    """What is to be said of a row besides its figures; nothing where the verdict says it of all files."""
    found = [ranking.apart[row.id]] if row.id in ranking.apart else []
    if row.quality_imported:
        found.append(f"quality imported ({escape(row.quality_imported)}), so not ranked here")
    if row.speed_imported:
        found.append(f"speed imported ({escape(row.speed_imported)})")
    if any(one.get("code") == OVERLAP for one in json.loads(row.flags)):
        found.append("its imatrix was made from the text that is measured here, so its figures may flatter")
    if row.state in _STATES or (row.state == "no-reference" and ranking.ranked):
        found.append(_STATES.get(row.state, "no reference") + (f". {escape(row.reason)}" if row.reason else ""))
    elif row.reason and row.kld_mean is not None and row.state != "waiting":
        found.append(str(escape(row.reason)))
    return found


def legend(
    rows: Sequence[DatasetRow],
    ranking: Ranking,
    machines: Machines,
    equals: Mapping[str, Sequence[DatasetRow]],
) -> str:
    """What the table's marks mean, what the original is, and what the speeds may be compared with."""
    parts = []
    if front_of(ranking):
        parts.append("◆: no other file of this size or smaller has a lower mean KLD.")
    if any(equals.values()):
        parts.append("≈: its mean KLD can't be told from that of the smaller file named.")
    if ranking.ranked:
        parts.append("± is a 95 % interval for KLD, same top p and PPL ratio.")
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
