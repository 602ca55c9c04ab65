"""What a section has folded away: every statistic of each file, and what their headers hold. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from bot.publish.markdown import code, escape, link
from bot.publish.memory import inspection_of
from bot.publish.spread import Spread
from bot.publish.table import OVERLAP, Table, unbroken
from bot.publish.verdict import CONTEXT
from core.dataset import DatasetRow
from core.format import percent, significant, size, with_interval
from core.inspection import Group, Imatrix, Inspection, TypeShare
from core.verdict import Z95

#: Groups of tensors that the audit shows, in words; norms and the like are always kept unquantized.
_GROUPS: dict[Group, str] = {
    "embeddings": "embeddings",
    "output": "output",
    "attention": "attention",
    "ffn_up": "ffn up",
    "ffn_gate": "ffn gate",
    "ffn_down": "ffn down",
    "experts_up": "experts up",
    "experts_gate": "experts gate",
    "experts_down": "experts down",
    "experts_other": "shared experts",
    "ssm": "ssm",
}
#: A type with less of a group's weights than this is not named.
_LEAST_SHARE = 0.005
#: Labels that a line names.
_MOST_LABELS = 40
_ONCE = ("Tokens", "Measured")

_Cell = Callable[[DatasetRow], str | None]


def page_of(row: DatasetRow, leaderboard_url: str) -> str:
    """The measurement's page on the leaderboard."""
    joint = "&" if "?" in leaderboard_url else "?"
    return f"{leaderboard_url}{joint}row={quote(row.id)}" if leaderboard_url else ""


def statistics(rows: Sequence[DatasetRow], *, leaderboard_url: str, dataset_url: str = "") -> Table | None:
    """What the main table has no room for; None where nothing of it is known.

    Args:
        dataset_url: under which the results dataset shows its files.
    """
    stored = {row.id: _stored(row.quality_json) for row in rows}

    def figure(name: str, digits: int = 3) -> _Cell:
        return lambda row: None if (value := getattr(row, name)) is None else significant(value, digits)

    def kld(name: str) -> _Cell:
        return lambda row: None if (value := stored[row.id].get("kld", {}).get(name)) is None else significant(value)

    columns: list[tuple[str, _Cell]] = [
        ("Median KLD", figure("kld_median")),
        ("90 %", kld("p90")),
        ("99 %", figure("kld_p99")),
        ("99.9 % (95 % interval)", _tail),
        ("Max", figure("kld_max")),
        ("PPL", lambda r: None if r.ppl is None else with_interval(r.ppl, Z95 * (r.ppl_stderr or 0.0), most=4)),
        ("Cor(ln PPL)", lambda r: None if r.ppl_cor is None else percent(r.ppl_cor, 2)),
        ("Mean Δp", lambda r: _signed(stored[r.id].get("delta_p", {}).get("mean"))),
        ("RMS Δp", lambda r: None if r.delta_p_rms is None else percent(r.delta_p_rms, 2)),
        ("Tokens", lambda r: None if r.n_tokens is None else f"{r.n_tokens:,}"),
        (f"Needs at {CONTEXT:,}", _needs),
        ("Measured", lambda r: r.measured_at.strftime("%Y-%m-%d") if r.measured_at else None),
        ("Raw", lambda r: _raw(r, dataset_url) if dataset_url else None),
    ]
    shown = [(title, [cell(row) for row in rows]) for title, cell in columns]
    shown = [(title, cells) for title, cells in shown if any(cell is not None for cell in cells)]
    # What is the same for all stands in the method.
    shown = [(title, cells) for title, cells in shown if title not in _ONCE or len({*cells} - {None}) > 1]
    if all(title in _ONCE for title, _ in shown):
        return None
    names = [link(row.label, page_of(row, leaderboard_url)) for row in rows]
    return _table(names, shown, align="--:")


def _table(names: Sequence[Markup], shown: Sequence[tuple[str, Sequence[str | None]]], *, align: str) -> Table:
    columns = [{"title": Markup("Quant"), "align": Markup("---")}]
    columns += [{"title": Markup(title), "align": Markup(align)} for title, _ in shown]
    lines = [[name, *(unbroken(cells[at]) for _, cells in shown)] for at, name in enumerate(names)]
    return Table(columns, lines)


def _tail(row: DatasetRow) -> str | None:
    found = Spread(row).tail
    return None if found is None else f"{significant(max(found.low, 0.0))} to {significant(found.high)}"


def _signed(value: Any) -> str | None:
    if not isinstance(value, (int, float)):
        return None
    return percent(value, 2).replace("-", "−") if value <= 0 else f"+{percent(value, 2)}"


def _needs(row: DatasetRow) -> str | None:
    return None if row.memory_8k_bytes is None else size(row.memory_8k_bytes)


def _raw(row: DatasetRow, dataset_url: str) -> str | None:
    """Links to the results as stored and to the per-token figures."""
    files = [(name, path) for name, path in (("results", row.raw_path), ("tokens", row.tokens_path)) if path]
    return ", ".join(link(name, f"{dataset_url}/{quote(path)}") for name, path in files) or None


def _stored(text: str | None) -> dict[str, Any]:
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def tensor_types(rows: Sequence[DatasetRow]) -> Table | None:
    """Which types each file keeps its tensors in, by group; groups that go alike in every file share a column."""
    known = [(row, found) for row in rows if (found := inspection_of(row)) is not None]
    by_cells: dict[tuple[str | None, ...], list[str]] = {}
    for group, words in _GROUPS.items():
        cells = tuple(_types(found.groups.get(group)) for _, found in known)
        if any(cells):
            by_cells.setdefault(cells, []).append(words)
    if not by_cells:
        return None
    columns = [(", ".join(_shortened(words)), cells) for cells, words in by_cells.items()]
    return _table([escape(row.label, most=80) for row, _ in known], columns, align="---")


def _shortened(words: Sequence[str]) -> list[str]:
    """``ffn up, gate, down`` rather than the first word each time."""
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        head, _, rest = word.partition(" ")
        found.append(rest if rest and before.partition(" ")[0] == head else word)
    return found


def _types(shares: dict[str, TypeShare] | None) -> str | None:
    """``Q4_K``, or ``Q4_K 75 % + Q6_K 25 %``, the most first, by weights."""
    total = sum(share.params for share in shares.values()) if shares else 0
    if not shares or not total:
        return None
    named = sorted(((share.params / total, name) for name, share in shares.items()), key=lambda one: (-one[0], one[1]))
    named = [one for one in named if one[0] >= _LEAST_SHARE] or named[:1]
    if len(named) == 1:
        return str(escape(named[0][1]))
    return " + ".join(f"{escape(name)} {percent(share, 0)}" for share, name in named)


def provenance(rows: Sequence[DatasetRow]) -> list[Markup]:
    """The imatrix and the chat template of all files, each thing said once with the files that it is true of."""
    known = [(row, found) for row in rows if (found := inspection_of(row)) is not None]
    if not known:
        return []
    n_all = len(known)
    lines = [
        f"{_imatrix(one)}: {_named(having, n_all)}." for one, having in _grouped(known, lambda found: found.imatrix)
    ]
    if any(found.imatrix for _, found in known):
        flagged = [row for row, _ in known if any(one.get("code") == OVERLAP for one in json.loads(row.flags))]
        lines.append(
            f"Made from the text that is measured here, by its name: {_named(flagged, n_all)}."
            if flagged
            else "None is made from the text that is measured here, as far as names tell."
        )
    for sha256, having in _grouped(known, lambda found: found.chat_template_sha256):
        what = "No chat template" if sha256 is None else f"Chat template {code(sha256[:12])}"
        lines.append(f"{what}: {_named(having, n_all)}.")
    return [Markup(line) for line in lines]


def _grouped(
    known: Sequence[tuple[DatasetRow, Inspection]], key: Callable[[Inspection], Any]
) -> list[tuple[Any, list[DatasetRow]]]:
    groups: dict[Any, list[DatasetRow]] = {}
    for row, found in known:
        groups.setdefault(key(found), []).append(row)
    return list(groups.items())


def _imatrix(found: Imatrix | None) -> str:
    if found is None:
        return "No imatrix named"
    parts = [
        *([f"from {code(found.dataset)}"] if found.dataset else []),
        *([f"{found.chunks:,} chunks"] if found.chunks else []),
        *([f"{found.entries:,} entries"] if found.entries else []),
    ]
    file = f" {code(found.file)}" if found.file else ""
    return f"Imatrix{file}" + (f" ({', '.join(parts)})" if parts else "")


def _named(rows: Sequence[DatasetRow], n_all: int) -> str:
    if len(rows) == n_all and n_all > 1:
        return "all files"
    labels = ", ".join(str(escape(row.label, most=80)) for row in rows[:_MOST_LABELS])
    return labels + (f" and {len(rows) - _MOST_LABELS} more" if len(rows) > _MOST_LABELS else "")
