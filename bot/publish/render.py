"""Renders sections, pull bodies and the dataset card: strict, sandboxed, every string escaped unless made here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from bot.publish.markdown import code, escape, file_url, link
from core.dataset import SCHEMA_VERSION, DatasetRow
from core.format import percent, significant, size, speed, with_interval
from core.verdict import Z95, Candidate, pareto, picks, sentence, tied


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
    """A row as a candidate for picks, or None while it has no KLD."""
    if row.state != "measured" or row.kld_mean is None:
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
    """Rows whose labels tell them apart: where two files share one, the file's own stem stands in."""
    seen = [row.label for row in rows]
    return [
        row if seen.count(row.label) == 1 else row.model_copy(update={"label": PurePosixPath(row.variant).stem})
        for row in rows
    ]


def render_section(rows: Sequence[DatasetRow], *, endpoint: str, project_url: str, leaderboard_url: str) -> str:
    """The section of a repo's card from its rows (all of one repo), largest file first."""
    ordered = sorted(distinct_labels(rows), key=lambda row: (-row.size_bytes, row.variant))
    candidates = [(row, found) for row in ordered if (found := candidate(row))]
    front = dict(zip((row.id for row, _ in candidates), pareto([c for _, c in candidates]), strict=True))
    everyone = [c for _, c in candidates]
    by_label = {row.label: row for row in ordered}
    quants = sum(1 for c in everyone if not c.is_reference)
    told = [row for row, _ in candidates]
    first = next((row for row in told if not row.is_reference), told[0] if told else ordered[0])
    return _render(
        "section.md.j2",
        verdict=Markup(_verdict(everyone, quants, ordered)),
        picks=[
            {
                "purpose": pick.purpose,
                "file": _file(by_label[pick.label], endpoint),
                "size": size(by_label[pick.label].size_bytes),
                "because": pick.because,
            }
            for pick in picks(everyone)
        ],
        rows=[_table_row(row, front.get(row.id, False), candidates, endpoint) for row in ordered],
        n_prompt=next((row.n_prompt for row in ordered if row.n_prompt), 512),
        n_gen=next((row.n_gen for row in ordered if row.n_gen), 128),
        legend=Markup(_legend(ordered, candidates)),
        method=[Markup(line) for line in _method(first, ordered, endpoint)],
        command=Markup(first.command.replace(" && ", "\n").replace("`", "")) if first.command else None,
        flags=_flags(ordered, endpoint),
        bot=Markup(link("quantcard", project_url)),
        leaderboard=link("All measurements", leaderboard_url) if leaderboard_url else None,
    )


def render_pull_body(rows: Sequence[DatasetRow], *, key: str, endpoint: str, leaderboard_url: str) -> str:
    """The first comment of our pull; its last line is how the pull is found again."""
    rows = distinct_labels(rows)
    by_label = {row.label: row for row in rows}
    found = [c for row in rows if (c := candidate(row)) and not c.is_reference]
    columns = []
    if found:
        chosen = {
            "smallest": min(found, key=lambda c: c.size_bytes),
            "closest": min(found, key=lambda c: c.kld),
        }
        if near := [c for c in picks(found) if c.purpose == "practically the original"]:
            best = by_label[near[0].label]
            chosen = {"smallest": chosen["smallest"], "practically the original": _candidate(best)} | {
                "closest": chosen["closest"]
            }
        columns = [
            {
                "title": Markup(title),
                "file": Markup(f"{_file(by_label[c.label], endpoint)}, {size(c.size_bytes)}"),
                "kld": Markup(significant(c.kld)),
            }
            for title, c in chosen.items()
        ]
    reference = next((row for row in rows if row.reference_variant), None)
    return _render(
        "pull-body.md.j2",
        n_files=len(rows),
        reference=code(reference.reference_variant) if reference and reference.reference_variant else "the original",
        columns=columns,
        flags=_flags(rows, endpoint)[:5],
        leaderboard=link("All measurements", leaderboard_url) if leaderboard_url else None,
        key=Markup(key),
    )


def render_dataset_card(n_rows: int) -> str:
    """The README of the results dataset."""
    columns = [
        {"name": Markup(name), "meaning": field.description or name.replace("_", " ")}
        for name, field in DatasetRow.model_fields.items()
    ]
    return _render("dataset-card.md.j2", n_rows=n_rows, schema_version=SCHEMA_VERSION, columns=columns)


def _candidate(row: DatasetRow) -> Candidate:
    found = candidate(row)
    assert found is not None
    return found


def _render(name: str, **context: Any) -> str:
    return _ENVIRONMENT.get_template(name).render(**context)


def _file(row: DatasetRow, endpoint: str) -> Markup:
    path = row.variant
    return link(row.label, file_url(endpoint, row.repo_id, path))


def _verdict(candidates: list[Candidate], quants: int, rows: Sequence[DatasetRow]) -> str:
    """The verdict with escaped labels; without a reference it says so instead."""
    if quants == 0:
        reason = next((row.reason for row in rows if row.reason and row.state == "measured"), None)
        if reason:
            return f"Quality could not be measured here, only speed. {escape(reason)}"
    safe = [
        Candidate(str(escape(c.label)), c.size_bytes, c.kld, c.kld_stderr, c.same_top, c.is_reference)
        for c in candidates
    ]
    return sentence(safe)


def _table_row(
    row: DatasetRow, on_front: bool, candidates: Sequence[tuple[DatasetRow, Candidate]], endpoint: str
) -> dict[str, Markup]:
    def cell(value: float | None, text: str) -> Markup:
        return Markup("–" if value is None else text)

    return {
        "file": _file(row, endpoint),
        "bpw": cell(row.bpw, f"{row.bpw or 0:.2f}"),
        "size": Markup(size(row.size_bytes)),
        "kld": cell(row.kld_mean, with_interval(row.kld_mean or 0, Z95 * (row.kld_stderr or 0))),
        "kld_p99_9": cell(
            row.kld_p99_9, significant(max(row.kld_p99_9 or 0, 0.0) if row.is_reference else row.kld_p99_9 or 0)
        ),
        "same_top": cell(row.same_top, percent(row.same_top or 0)),
        "ppl_ratio": cell(row.ppl_ratio, with_interval(row.ppl_ratio or 0, Z95 * (row.ppl_ratio_stderr or 0), most=4)),
        "pp": cell(row.pp_ts, speed(row.pp_ts or 0, row.pp_ts_stddev)),
        "tg": cell(row.tg_ts, speed(row.tg_ts or 0, row.tg_ts_stddev)),
        "memory": cell(row.peak_memory_bytes, size((row.peak_vram_bytes or 0) + (row.peak_memory_bytes or 0))),
        "notes": Markup(_notes(row, on_front, candidates)),
    }


def _notes(row: DatasetRow, on_front: bool, candidates: Sequence[tuple[DatasetRow, Candidate]]) -> str:
    notes = []
    if row.is_reference:
        notes.append("reference")
    elif on_front:
        notes.append("◆")
    own = candidate(row)
    if own and not row.is_reference:
        equals = [
            other.label
            for other, c in candidates
            if other.id != row.id and not c.is_reference and c.size_bytes < own.size_bytes and tied(own, c)
        ]
        if equals:
            notes.append("≈ " + ", ".join(str(escape(label)) for label in equals))
    if row.state == "failed":
        notes.append(f"not measured: {escape(row.reason or 'no reason recorded')}")
    elif row.reason:
        notes.append(str(escape(row.reason)))
    return " · ".join(notes)


def _legend(rows: Sequence[DatasetRow], candidates: Sequence[tuple[DatasetRow, Candidate]]) -> str:
    parts = []
    if candidates:
        parts.append("◆ no smaller file here has a lower mean KLD. ± is a 95 % interval.")
    if any("≈" in _notes(row, False, candidates) for row in rows):
        parts.append("≈ its mean KLD can't be told from that of the smaller file named.")
    reference = next((row for row in rows if row.reference_variant), None)
    if reference:
        floor = (
            f"; noise floor (the reference against itself) {_floor(reference.noise_floor)}"
            if (reference.noise_floor is not None)
            else ""
        )
        parts.append(f"Against {code(str(reference.reference_variant))}{floor}.")
    if any(row.tg_ts is not None for row in rows):
        parts.append(
            "Speeds are means ± the spread of their repetitions, taken on the machine named below; compare them with each other only."
        )
    return " ".join(parts)


def _floor(value: float) -> str:
    """A noise floor: its size matters, not its sign, and below a millionth it does not matter at all."""
    return significant(abs(value), 2) if abs(value) >= 1e-6 else "under 0.000001"


def _method(first: DatasetRow, rows: Sequence[DatasetRow], endpoint: str) -> list[str]:
    protocol = json.loads(first.protocol_json)
    corpus = protocol["corpus"]
    lines = [
        f"Protocol {code(first.protocol_name)} ({first.protocol_fingerprint[:12]}): corpus {code(corpus['name'])} "
        f"(sha256 {corpus['sha256'][:12]}), n_ctx {protocol['n_ctx']}, the second half of each chunk scored, as "
        "llama-perplexity does."
    ]
    if first.n_tokens:
        lines.append(f"{first.n_tokens:,} scored tokens in {first.n_chunks} chunks.")
    if first.reference_variant:
        where = "" if first.reference_repo == first.repo_id else f" of {code(str(first.reference_repo))}"
        lines.append(
            f"Reference: {code(first.reference_variant)}{where}, sha256 {str(first.reference_key)[:12]}; its own "
            f"perplexity is {first.ppl_base:.4f}."
            if first.ppl_base
            else f"Reference: {code(first.reference_variant)}."
        )
    environments = {row.environment_json for row in rows if row.environment_json}
    for text in sorted(environments):
        e = json.loads(text)
        lines.append(
            f"Environment: {escape(e['llama_cpp'])}, {escape(e['gpu'] or e['cpu'])}, {e['n_threads']} threads, "
            f"{e['n_gpu_layers']} layers on the GPU."
        )
    lines.append(f"Files as of commit {first.revision[:12]}; a file that changes is measured again.")
    return lines


def _flags(rows: Sequence[DatasetRow], endpoint: str) -> list[dict[str, Any]]:
    return [{"file": _file(row, endpoint), "detail": flag["detail"]} for row in rows for flag in json.loads(row.flags)]
