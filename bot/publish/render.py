"""Renders sections, pull bodies and the dataset card: strict, sandboxed, every string escaped unless made here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import FunctionLoader, StrictUndefined, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from bot.publish.details import provenance, statistics, tensor_types
from bot.publish.entries import entries
from bot.publish.flag_list import file_link, flag_list
from bot.publish.markdown import code, escape, link
from bot.publish.method import Machines, command_block, corpus_words, imported_words, method, reference_name
from bot.publish.plot_files import Plot
from bot.publish.ranking import Ranking, distinct_labels, in_order, rank
from bot.publish.spread import Spread
from bot.publish.table import equals_of, legend, table, tasks_of, unbroken
from bot.publish.verdict import MOST_NAMED, Entry, Pairs, Pick, closest, no_pairs, verdict
from core.dataset import SCHEMA_VERSION, DatasetRow
from core.format import size, with_interval

__all__ = [
    "Ranking", "distinct_labels", "fill", "rank", "render_dataset_card", "render_pull_body", "render_section",
]  # fmt: skip

#: Characters of a dispute that are shown: all that is kept of one.
_MAX_DISPUTE = 500
#: Characters of what a plot shows, in words.
_MAX_ALT = 600
#: Names of templates of ours; nothing else is read.
_NAME = re.compile(r"[a-z-]+\.[a-z]+\.j2")


def _load(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise TemplateNotFound(name)
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


def render_section(
    rows: Sequence[DatasetRow],
    *,
    endpoint: str,
    project_url: str,
    leaderboard_url: str,
    dataset: str = "",
    only: Collection[str] = (),
    plots: Sequence[Plot] = (),
    pairs: Pairs = no_pairs,
    changed: Sequence[Markup] = (),
    template: str | None = None,
) -> str:
    """The section of a repo's card from its rows (all of one repo), largest file first.

    Args:
        dataset: of the results, to link to the raw ones.
        only: see :func:`bot.publish.table.table`.
        changed: what is other than in the section before (:mod:`bot.publish.changelog`).
        template: an owner's own in place of ours; what it raises goes on.
    """
    ordered = in_order(rows)
    ranking, machines = rank(ordered), Machines(ordered)
    n_prompt = next((row.n_prompt for row in ordered if row.n_prompt), 512)
    n_gen = next((row.n_gen for row in ordered if row.n_gen), 128)
    first = next((row for row, c in ranking.ranked if not c.is_reference), ordered[0])
    equals = equals_of(ranking, pairs)
    disputed = next((row.disputed for row in ordered if row.disputed), None)
    known = entries(ranking, label=lambda label: str(escape(label, most=80)))
    found = verdict(known, pairs=pairs)
    told_tasks = list(dict.fromkeys(name for row in ordered for name in tasks_of(row)))
    results = f"{endpoint}/datasets/{quote(dataset)}/blob/main" if dataset else ""
    context = {
        "verdict": Markup(_sentence(found.sentence, ranking, ordered)),
        "disputed": escape(disputed, most=_MAX_DISPUTE) if disputed else None,
        "picks": [_pick(pick, known, {row.id: row for row in ordered}, endpoint) for pick in found.picks],
        "files": table(
            ordered, ranking, machines, endpoint=endpoint, n_prompt=n_prompt, n_gen=n_gen, only=only, equals=equals
        ),
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "has_quality": any(row.kld_mean is not None for row in ordered),
        "has_speed": any(row.tg_ts is not None or row.pp_ts is not None for row in ordered),
        "by_chunk": any(Spread(row).by_chunk for row in ordered),
        "needs": any(entry.need is not None for entry in known),
        "for_memory": any(pick.kind == "memory" for pick in found.picks),
        "tasks": Markup(", ").join(escape(name, most=40) for name in told_tasks),
        "legend": Markup(legend(ordered, ranking, machines, equals)),
        "plots": [{"alt": escape(plot.alt, most=_MAX_ALT), "path": Markup(plot.path)} for plot in plots],
        "statistics": statistics(ordered, leaderboard_url=leaderboard_url, dataset_url=results),
        "tensor_types": tensor_types(ordered),
        "provenance": provenance(ordered),
        "flags": [{"file": one["file"], "detail": escape(one["detail"])} for one in flag_list(ordered, endpoint)],
        "method": method(first, ordered, machines),
        "raw": link("quantcard.json", f"{results}/cards/{quote(rows[0].repo_id)}/quantcard.json") if results else None,
        "command": command_block(first.command),
        "corpus": corpus_words(first, endpoint),
        "changed": list(changed),
        "bot": link("quantcard", project_url),
        "leaderboard": link("All measurements", leaderboard_url) if leaderboard_url else None,
    }
    if template is None:
        return fill("section.md.j2", **context)
    return _ENVIRONMENT.from_string(template).render(**context)


def _pick(pick: Pick, known: Sequence[Entry], rows: Mapping[str, DatasetRow], endpoint: str) -> dict[str, Markup]:
    named = [rows[key] for key in pick.files]
    if not named:
        told = Markup("none")
    elif len(named) > MOST_NAMED and len(named) == len(known):
        told = Markup("any of them")
    else:
        told = Markup(" or ").join(
            Markup(f"{file_link(row, endpoint)} ·\u00a0{unbroken(size(row.size_bytes))}") for row in named[:MOST_NAMED]
        )
        more = len(named) - MOST_NAMED
        told += Markup(f" and {more} more") if more > 0 else Markup("")
    return {"purpose": Markup(pick.purpose), "files": told, "because": Markup(pick.because), "kind": Markup(pick.kind)}


def _sentence(sentence: str, ranking: Ranking, rows: Sequence[DatasetRow]) -> str:
    """The verdict; where nothing is ranked, why."""
    if all(c.is_reference for c in ranking.candidates):
        if any(row.quality_imported for row in rows):
            return "Quality was measured elsewhere only and imported; no file is recommended on that."
        reason = next((row.reason for row in rows if row.reason and row.state in ("measured", "no-reference")), None)
        if reason:
            return f"Quality could not be measured here, only speed. {escape(reason)}"
        if any(row.state == "waiting" for row in rows):
            return "The measurements of this repo have not ended yet."
        return sentence
    if any(row.reference_kind == "q8_0" for row, _ in ranking.ranked):
        return f"{sentence} Measured against a Q8_0, for want of an unquantized file: the true distances are larger."
    return sentence


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
    by_id = {row.id: row for row in rows}
    known = sorted(entries(rank(rows)), key=lambda one: (one.size_bytes, one.kld.value, one.label))
    chosen: list[tuple[str, Entry]] = []
    if len(known) > 1:
        picked = {pick.kind: pick.files[0] for pick in verdict(known).picks if pick.files}
        of_key = {one.key: one for one in known}
        chosen.append(("smallest", known[0]))
        if "near" in picked:
            chosen.append(("practically the original", of_key[picked["near"]]))
        chosen.append(("closest", closest(known)))
    columns = [
        {
            "title": Markup(", ".join(title for title, other in chosen if other is one)),
            "file": Markup(f"{file_link(by_id[one.key], endpoint)}, {size(one.size_bytes)}"),
            "kld": Markup(with_interval(one.kld.value, one.kld.half)),
        }
        for one in dict.fromkeys(one for _, one in chosen)
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
