"""Everything that is known of one measurement, as HTML. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from space import tables
from space.data import Entry, json_object
from space.text import (
    NONE,
    ago,
    clean,
    esc,
    esc_block,
    interval,
    percent,
    repo_link,
    significant,
    size,
    speed,
)

_KLD_NAMES = {
    "mean": "Mean", "median": "Median", "max": "Maximum", "p99_9": "99.9 %", "p99": "99 %", "p95": "95 %",
    "p90": "90 %", "p75": "75 %", "p25": "25 %", "p10": "10 %", "p5": "5 %", "p1": "1 %", "p0_1": "0.1 %",
    "min": "Minimum", "rms": "RMS",
}  # fmt: skip


def measurement(entry: Entry, *, hub_url: str, now: datetime) -> str:
    """One row: what it is, its figures, how they were measured, and the command that repeats them."""
    row = entry.row
    cards = [
        ("Mean KLD", interval(row.kld_mean, row.kld_stderr), "nats, ± 95 %"),
        ("99.9 % KLD", significant(row.kld_p99_9), "nats"),
        ("Same top p", interval(row.same_top, row.same_top_stderr, scale=100, decimals=2), "%, ± 95 %"),
        ("PPL ratio", interval(row.ppl_ratio, row.ppl_ratio_stderr, decimals=4), "to the reference"),
        ("Size", size(row.size_bytes), f"{row.bpw:.2f} bits per weight" if row.bpw is not None else ""),
        (
            f"pp{row.n_prompt or ''} / tg{row.n_gen or ''}",
            f"{speed(row.pp_ts)} / {speed(row.tg_ts)}",
            "tokens/s",
        ),
    ]
    boxes = "".join(
        f'<div class="qc-card"><span>{esc(name)}</span><b>{tables.dimmed(value)}</b><small>{esc(unit)}</small></div>'
        for name, value, unit in cards
    )
    state = ""
    if row.state == "failed":
        word, reason = tables.failure(row)
        state = tables.message(f"{word}: {reason}", "no")
    elif row.state == "retracted":
        state = tables.message(f"Retracted: {row.reason or 'its figures were withdrawn.'}", "no")
    elif row.state == "stale":
        state = tables.message("Stale: the file was replaced since. These are the old file's figures.", "no")
    elif row.state == "waiting":
        state = tables.message(row.reason or "Not measured yet.")
    elif row.state == "no-reference":
        state = tables.message(f"No reference. {row.reason or ''}")
    return (
        f'<div class="qc-detail"><h2>{esc(row.label)} <small>{esc(row.variant)}</small></h2>'
        f'<p>{repo_link(row.repo_id, hub_url)} {tables.notes(entry)}</p>{state}<div class="qc-cards">{boxes}</div>'
        f'<div class="qc-columns">{_identity(entry, hub_url, now)}{_figures(entry)}'
        f"{_values('Protocol', json_object(row.protocol_json))}"
        f"{_values('Environment', json_object(row.environment_json))}</div>"
        f"{_command(row.command)}{_raw(entry)}</div>"
    )


def _table(heading: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A two-column table; the second column is HTML already."""
    rows = "".join(f"<tr><th>{esc(name)}</th><td>{value}</td></tr>" for name, value in pairs)
    return f"<section><h3>{esc(heading)}</h3><table>{rows}</table></section>" if rows else ""


def _values(heading: str, known: dict[str, Any], prefix: str = "") -> str:
    return _table(heading, _flat(known))


def _flat(known: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in known.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{clean(name)}.")
        elif value is not None:
            yield f"{prefix}{clean(name)}", esc(value, limit=400)


def _identity(entry: Entry, hub_url: str, now: datetime) -> str:
    row = entry.row
    reference = (
        "none"
        if row.reference_repo is None
        else (f"{repo_link(row.reference_repo, hub_url)} {esc(row.reference_variant or '')}")
    )
    pairs = [
        ("Base model", repo_link(row.base_model, hub_url) if row.base_model else "unknown"),
        ("Reference", reference),
        *([("By what right", esc(row.reference_reason, limit=400))] if row.reference_reason else []),
        ("Noise floor", f"{significant(row.noise_floor)} mean KLD"),
        ("Architecture", esc(row.architecture or NONE)),
        ("File type", esc(row.file_type or NONE)),
        ("Parameters", f"{row.n_params:,}" if row.n_params else NONE),
        ("imatrix", esc(row.imatrix_file or "none named in the file")),
        ("Revision", f"<code>{esc(row.revision[:12])}</code>"),
        ("File sha256", f'<code title="{esc(row.variant_key)}">{esc(row.variant_key[:16])}…</code>'),
        (
            "Measured",
            esc(f"{row.measured_at:%Y-%m-%d %H:%M} UTC, {ago(row.measured_at, now)}") if row.measured_at else NONE,
        ),
    ]
    if imported := tables.imports(row):
        pairs.append(("Imported", esc(imported)))
    pairs += [(f"Flag: {code}", esc(detail)) for code, detail in tables.flags(row)]
    return _table("File", pairs)


def _figures(entry: Entry) -> str:
    row = entry.row
    quality = json_object(row.quality_json)
    pairs = [
        ("Perplexity", interval(row.ppl, row.ppl_stderr)),
        ("Reference's perplexity", significant(row.ppl_base, 6)),
        ("Cor(ln PPL)", percent(row.ppl_cor, 3)),
        ("Δp RMS", percent(row.delta_p_rms, 3)),
        ("Scored tokens", f"{row.n_tokens:,} in {row.n_chunks or '?'} chunks" if row.n_tokens else NONE),
        ("Memory", tables.memory(row)),
    ]
    kld = quality.get("kld")
    if isinstance(kld, dict):
        pairs += [
            (f"KLD {name}", significant(kld[key], 4))
            for key, name in _KLD_NAMES.items()
            if isinstance(kld.get(key), int | float)
        ]
    else:
        pairs += [
            ("KLD median", significant(row.kld_median, 4)),
            ("KLD 99 %", significant(row.kld_p99, 4)),
            ("KLD maximum", significant(row.kld_max, 4)),
        ]
    return _table("Figures", ((name, esc(value)) for name, value in pairs))


def _command(command: str | None) -> str:
    if not command:
        return ""
    return (
        '<section><h3>Repeat it</h3><div class="qc-copy"><button type="button" data-copy>Copy</button>'
        f"<pre>{esc_block(command)}</pre></div></section>"
    )


def _raw(entry: Entry) -> str:
    row = entry.row.model_dump(mode="json")
    for name in [n for n in row if n.endswith("_json") or n == "flags"]:
        try:
            row[name.removesuffix("_json")] = json.loads(row.pop(name) or "null")
        except ValueError:
            row[name.removesuffix("_json")] = None
    text = json.dumps(row, indent=2, ensure_ascii=False)
    return f"<details><summary>As JSON</summary><pre>{esc_block(text)}</pre></details>"
