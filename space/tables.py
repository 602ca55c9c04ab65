"""Rows as the table people see: an HTML table with every foreign string escaped. Pure."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.dataset import DatasetRow, QueueRow
from space.data import Entry, json_object
from space.text import NONE, ago, clean, esc, interval, percent, repo_link, significant, size, speed

_STATE_NOTES = {
    "stale": ("stale", "the file was replaced since: these are the old file's figures"),
    "waiting": ("waiting", "not measured yet"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its heading, the name it is sorted by, and its cell (HTML) for an entry."""

    heading: str
    sort: str | None
    title: str
    cell: Callable[[Entry], str]
    numeric: bool = True
    style: str = ""


def marks(environments: Iterable[str]) -> dict[str, str]:
    """A letter for each environment, in the order given: A, B, … Z, A2, …"""
    letters = string.ascii_uppercase
    return {
        fingerprint: letters[i % 26] + (str(i // 26 + 1) if i >= 26 else "")
        for i, fingerprint in enumerate(environments)
    }


def failure(row: DatasetRow) -> tuple[str, str]:
    """Why a failed row has no figures: a word for the table and the sentence behind it."""
    reason = row.reason or "measuring it failed"
    word = "INVALID" if any(w in reason.lower() for w in ("invalid", "nan", "non-finite", "infinit")) else "failed"
    return word, reason


def flags(row: DatasetRow) -> list[tuple[str, str]]:
    """The audit's flags as (code, detail)."""
    found = json_object(f'{{"flags": {row.flags}}}').get("flags", [])
    if not isinstance(found, list):
        return []
    return [(str(f.get("code", "")), str(f.get("detail", ""))) for f in found if isinstance(f, dict)]


def imports(row: DatasetRow) -> str:
    """Which of a row's figures were measured elsewhere, as a sentence; empty where none was."""
    tools = [("quality", row.quality_imported), ("speed", row.speed_imported)]
    read = [f"{what} was measured elsewhere and read from {clean(tool)}" for what, tool in tools if tool]
    return f"its {' and '.join(read)}" + (": not ranked" if row.quality_imported else "") if read else ""


def _badge(kind: str, text: str, title: str = "") -> str:
    return f'<span class="qc-badge qc-{kind}" title="{esc(title)}">{esc(text)}</span>'


def notes(entry: Entry) -> str:
    """What is to be said of a row beside its figures: front, tie, state, reference, flags (HTML)."""
    row = entry.row
    found = []
    if entry.on_front:
        found.append(_badge("front", "◆", "on the Pareto front: no file of this size or smaller has a lower KLD"))
    if entry.tied_with:
        found.append(_badge("tie", "=", f"mean KLD can't be told from that of {clean(entry.tied_with)} (95 %)"))
    if row.is_reference:
        found.append(_badge("reference", "reference", "measured against its own baseline: the noise floor"))
    if row.reference_kind == "q8_0" and row.kld_mean is not None and not row.is_reference:
        found.append(_badge("apart", "vs Q8_0", "its reference is itself quantized: figures against it flatter"))
    if imported := imports(row):
        found.append(_badge("imported", "imported", imported))
    if entry.apart and not row.quality_imported:
        found.append(_badge("apart", "≠ env", "its environment's noise floor is too high to rank it with others"))
    if row.state == "failed":
        word, reason = failure(row)
        found.append(_badge("failed", word, reason))
        found.append(_sub(reason.removeprefix(f"{word}: "), reason))
    elif row.state == "retracted":
        found.append(_badge("failed", "retracted", row.reason or "its figures were withdrawn"))
    elif row.state in _STATE_NOTES:
        found.append(_badge(row.state, *_STATE_NOTES[row.state]))
    elif row.kld_mean is None and row.reference_repo is None:
        found.append(_badge("waiting", "no reference", row.reason or "no reference that can be trusted is known"))
    if row.disputed:
        found.append(_badge("flag", "disputed", f"its owner says: {clean(row.disputed)}"))
    found += [_badge("flag", code, detail) for code, detail in flags(row)[:3]]
    return " ".join(found)


def memory(row: DatasetRow) -> str:
    """Peak memory of the run: VRAM where a GPU ran it."""
    if row.peak_vram_bytes is not None:
        return f"{size(row.peak_vram_bytes)} VRAM"
    return f"{size(row.peak_memory_bytes)} RAM" if row.peak_memory_bytes is not None else NONE


def dimmed(shown: str) -> str:
    """A figure as HTML, its interval dimmer than itself."""
    value, sign, half = shown.partition(" ± ")
    return f'{esc(value)}<span class="qc-pm"> ± {esc(half)}</span>' if sign else esc(value)


def _sub(text: str, title: str | None = None, style: str = "") -> str:
    return f'<span class="qc-sub {style}" title="{esc(title or text)}">{esc(text, limit=80)}</span>'


def columns(hub_url: str, environment_marks: Mapping[str, str], *, with_model: bool) -> list[Column]:
    """The leaderboard's columns."""

    def quant(entry: Entry) -> str:
        row = entry.row
        link = f'<a href="?row={esc(row.id)}" data-row="{esc(row.id)}" title="{esc(row.variant)}">'
        return f"{link}{esc(row.label, limit=60)}</a>{_sub(row.owner, row.repo_id, 'qc-phone')}"

    def where(entry: Entry) -> str:
        model = _sub(entry.row.base_model or "base model unknown") if with_model else ""
        return repo_link(entry.row.repo_id, hub_url) + model

    def same_top(entry: Entry) -> str:
        row = entry.row
        if row.same_top is None:
            return NONE
        return dimmed(interval(row.same_top, row.same_top_stderr, scale=100, decimals=1 if row.same_top < 0.995 else 2))

    def rate(value: float | None, stddev: float | None) -> str:
        title = f"± {speed(stddev)} standard deviation" if stddev else ""
        return f'<span title="{esc(title)}">{speed(value)}</span>'

    def bits(entry: Entry) -> str:
        return f"{entry.row.bpw:.2f}" if entry.row.bpw is not None else NONE

    def environment(entry: Entry) -> str:
        mark = environment_marks.get(entry.row.environment_fingerprint or "")
        return f'<span class="qc-env">{esc(mark)}</span>' if mark else NONE

    return [
        Column("Quant", "label", "Quantization; opens all figures", quant, numeric=False),
        Column(
            "Notes", None, "◆ Pareto front, = tied with the next closer file", notes, numeric=False, style="qc-notes"
        ),
        Column("Repo", "repo", "Where the file is", where, numeric=False, style="qc-wide"),
        Column("bpw", "bpw", "Bits per weight", bits, style="qc-wide"),
        Column("Size", "size", "File size, decimal units", lambda e: size(e.row.size_bytes)),
        Column(
            "Mean KLD",
            "kld_mean",
            "Mean KL divergence from the reference, nats; ± 95 %",
            lambda e: dimmed(interval(e.row.kld_mean, e.row.kld_stderr)),
        ),
        Column(
            "99.9 % KLD",
            "kld_p99_9",
            "One token in a thousand is further off than this",
            lambda e: significant(e.row.kld_p99_9),
        ),
        Column("Same top p, %", "same_top", "How often both pick the same top token; ± 95 %", same_top),
        Column(
            "PPL ratio",
            "ppl_ratio",
            "Perplexity over the reference's; ± 95 %",
            lambda e: (
                dimmed(interval(e.row.ppl_ratio, e.row.ppl_ratio_stderr, decimals=4))
                if e.row.ppl_ratio is not None
                else NONE
            ),
        ),
        Column(
            "pp t/s",
            "pp",
            "Prompt tokens per second: compare within one environment only",
            lambda e: rate(e.row.pp_ts, e.row.pp_ts_stddev),
        ),
        Column(
            "tg t/s",
            "tg",
            "Generated tokens per second: compare within one environment only",
            lambda e: rate(e.row.tg_ts, e.row.tg_ts_stddev),
        ),
        Column("Memory", "memory", "Peak memory of the speed run", lambda e: memory(e.row)),
        Column("Env", None, "The environment that measured: see below", environment, numeric=False),
    ]


def leaderboard(
    entries: Sequence[Entry],
    *,
    hub_url: str,
    environments: Mapping[str, Mapping[str, Any]],
    sort: str,
    descending: bool,
    with_model: bool,
) -> str:
    """The table (HTML); below it, what its marks mean."""
    marked = marks(environments)
    shown = columns(hub_url, marked, with_model=with_model)
    head = "".join(_heading(c, sort, descending) for c in shown)
    body = "".join(
        f'<tr class="qc-{esc(e.row.state)}{" qc-ref" if e.row.is_reference else ""}">'
        + "".join(f'<td class="{"n" if c.numeric else "t"} {c.style}">{c.cell(e)}</td>' for c in shown)
        + "</tr>"
        for e in entries
    )
    return (
        f'<div class="qc-scroll" tabindex="0" role="region" aria-label="Results"><table class="qc-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{_legend(entries, marked, environments)}"
    )


def _heading(column: Column, sort: str, descending: bool) -> str:
    kind = ("n" if column.numeric else "t") + f" {column.style}"
    if column.sort is None:
        return f'<th class="{kind}" title="{esc(column.title)}">{column.heading}</th>'
    active = column.sort == sort
    order = ("descending" if descending else "ascending") if active else "none"
    arrow = (" ▾" if descending else " ▴") if active else ""
    return (
        f'<th class="{kind}" aria-sort="{order}"><button type="button" data-sort="{column.sort}" '
        f'title="{esc(column.title)}">{column.heading}{arrow}</button></th>'
    )


def describe_environment(known: Mapping[str, Any]) -> str:
    """An environment in one line (plain text)."""
    parts = [known.get(k) for k in ("gpu", "cpu", "backend", "llama_cpp")]
    if known.get("gpu"):
        parts[1] = None  # with a GPU the processor is not what people compare by
    return " · ".join(clean(p, limit=80) for p in parts if p) or "not described"


def _legend(entries: Sequence[Entry], marked: Mapping[str, str], environments: Mapping[str, Mapping[str, Any]]) -> str:
    used = {e.row.environment_fingerprint for e in entries}
    here = [(mark, fingerprint) for fingerprint, mark in marked.items() if fingerprint in used]
    lines = "".join(
        f'<li><span class="qc-env">{esc(mark)}</span> {esc(describe_environment(environments[f]), limit=240)}</li>'
        for mark, f in here
    )
    several = (
        f" Speeds and memory of these {len(here)} environments can't be compared with each other."
        if len(here) > 1
        else ""
    )
    return (
        '<div class="qc-legend">◆ on the Pareto front: nothing as small is closer to the original · '
        "= can't be told from the next closer file (95 %) · intervals are 95 %."
        f"{several}<ul>{lines}</ul></div>"
    )


def queue(rows: Sequence[QueueRow], *, hub_url: str, now: datetime) -> str:
    """The queue (HTML): what runs, what waits and why, what failed."""
    if not rows:
        return message("The queue is empty: nothing is waiting to be measured.")
    body = "".join(_queue_row(row, hub_url, now) for row in rows)
    heads = "".join(f'<th class="t">{h}</th>' for h in ("State", "Repo", "File", "Job", "Progress", "Updated"))
    return (
        '<div class="qc-scroll" tabindex="0" role="region" aria-label="Queue"><table class="qc-table">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _queue_row(row: QueueRow, hub_url: str, now: datetime) -> str:
    state = esc(row.state)
    if row.position is not None:
        state += f' <span class="qc-pm">{row.position} ahead</span>'
    progress = NONE
    if row.progress is not None:
        share = min(1.0, max(0.0, row.progress))
        progress = f'<progress max="1" value="{share:.3f}"></progress> {percent(share, 0)}'
    why = f'<span class="qc-sub">{esc(row.reason, limit=160)}</span>' if row.reason else ""
    cells = (
        state + why,
        repo_link(row.repo_id, hub_url),
        esc(row.variant, limit=90),
        f"{esc(row.kind)} #{row.id}",
        progress,
        esc(ago(row.updated_at, now)),
    )
    return "<tr>" + "".join(f'<td class="t">{cell}</td>' for cell in cells) + "</tr>"


def message(text: str, kind: str = "note") -> str:
    """A sentence in a box: an empty state, an acknowledgement (``ok``), a refusal (``no``)."""
    return f'<div class="qc-message qc-message-{kind}" role="status">{esc(text, limit=600)}</div>'
