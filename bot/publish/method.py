"""How a repo's figures came to be, as its section says it: machines, repetitions, text, files. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from markupsafe import Markup

from bot.publish.markdown import code, escape, fenced, link
from core.canonical import canonical_json
from core.dataset import DatasetRow
from core.format import speed
from core.protocol import CORPUS_SOURCES, CorpusSource, PackageSource


class Machines:
    """The machines that measured a repo's rows, in the rows' order; what was imported is no machine's of ours."""

    def __init__(self, rows: Sequence[DatasetRow]) -> None:
        self._of = {row.id: (_quality_environment(row), speed_environment(row)) for row in rows}
        self.known = [*dict.fromkeys(one for row in rows for one in self._of[row.id] if one)]
        self.of_speeds = {speed for _, speed in self._of.values() if speed}

    def name(self, environment: str) -> str:
        """``A``, ``B`` and so on; after Z their numbers."""
        at = self.known.index(environment)
        return ascii_uppercase[at] if at < len(ascii_uppercase) else str(at + 1)

    def mark(self, row: DatasetRow) -> str | None:
        """Which of several machines measured a row; None where there is only one, or none did."""
        quality, timed = self._of[row.id]
        if len(self.known) < 2 or not (quality or timed):
            return None
        if quality and timed and quality != timed:
            return f"quality on machine {self.name(quality)}, speed on {self.name(timed)}"
        return f"machine {self.name(str(quality or timed))}"

    def lines(self) -> list[str]:
        """A line for each."""
        shown = [_machine(json.loads(one)) for one in self.known]
        return [
            f"Machine{f' {self.name(one)}' if len(shown) > 1 else ''}: {text}"
            # What else may differ is told by the environment's fingerprint in the results.
            + ("." if shown.count(text) == 1 else ", in another environment.")
            for one, text in zip(self.known, shown, strict=True)
        ]


def _quality_environment(row: DatasetRow) -> str | None:
    return None if row.kld_mean is None or row.quality_imported else _environment(row, row.quality_json)


def speed_environment(row: DatasetRow) -> str | None:
    """Where a row's speed was measured, as canonical JSON; None where it was not, or not here."""
    timed = row.tg_ts is not None or row.pp_ts is not None
    return _environment(row, row.speed_json) if timed and not row.speed_imported else None


def _environment(row: DatasetRow, result: str | None) -> str | None:
    """A result's environment, or where the result is not at hand the row's, as canonical JSON."""
    found = json.loads(result).get("environment") if result else None
    return canonical_json(found) if found else row.environment_json


def _machine(e: dict[str, Any]) -> str:
    layers = f", {e['n_gpu_layers']} layers on the GPU" if e["gpu"] and e["n_gpu_layers"] >= 0 else ""
    driver = f", driver {escape(e['driver'])}" if e["gpu"] and e.get("driver") else ""
    return f"{escape(e['gpu'] or e['cpu'])}{driver}, {e['n_threads']} CPU threads{layers}; {escape(e['llama_cpp'])}"


def repetitions(row: DatasetRow, *, prompt: bool) -> int:
    """How often a row's speed test was timed: as its result says, else as its protocol does."""
    for test in json.loads(row.speed_json)["tests"] if row.speed_json else ():
        if bool(test.get("n_prompt")) is prompt and bool(test.get("n_gen")) is not prompt:
            return max(len(test.get("samples_ts", ())), len(test.get("samples_ns", ())))
    return int(json.loads(row.protocol_json).get("repetitions", 0))


def speed_cell(row: DatasetRow, *, prompt: bool) -> str | None:
    """Tokens per second; ± only where there was more than one repetition to spread."""
    value, spread = (row.pp_ts, row.pp_ts_stddev) if prompt else (row.tg_ts, row.tg_ts_stddev)
    if value is None:
        return None
    return speed(value, spread if repetitions(row, prompt=prompt) > 1 else None)


def speed_legend(rows: Sequence[DatasetRow], machines: Machines) -> str | None:
    """What the speeds are, and what they may be compared with; None: there are none."""
    cells = {
        cell: repetitions(row, prompt=prompt)
        for row in rows
        for prompt in (True, False)
        if (cell := speed_cell(row, prompt=prompt))
    }
    if not cells:
        return None
    what = "Speeds: mean of the repetitions"
    if any("±" in cell for cell in cells):
        what = "Speeds: mean ± standard deviation of the repetitions"
    elif set(cells.values()) == {1}:
        what = "Speeds: one repetition each"
    if not machines.of_speeds:
        return f"{what}."
    others = ", and with no imported one" if any(row.speed_imported for row in rows) else ""
    if len(machines.known) > 1:
        return f"{what}; compare them only where the machine is the same (see below){others}."
    return f"{what}, on the machine named below; compare them only with each other{others}."


def reference_name(row: DatasetRow, *, own: str = "") -> Markup:
    """The reference's name, with its repo where that is another one, else with ``own`` before it."""
    name = code(str(row.reference_variant))
    told = own + name if row.reference_repo == row.repo_id else f"{name} of {code(str(row.reference_repo))}"
    return Markup(f"{told} (itself quantized, so figures flatter)" if row.reference_kind == "q8_0" else told)


def corpus_words(row: DatasetRow, endpoint: str) -> Markup:
    """Where the text of a row's protocol is to be had, as the end of a sentence that begins with ``CORPUS.txt`` is."""
    corpus = json.loads(row.protocol_json)["corpus"]
    match CORPUS_SOURCES.get(corpus["sha256"]):
        case CorpusSource(repo_id=repo_id, filename=filename, member=member):
            inside = f"{code(member)} in {code(filename)}" if member else code(filename)
            where = f"{inside} of the dataset {link(repo_id, f'{endpoint}/datasets/{repo_id}')}"
        case PackageSource(package=package, filename=filename):
            where = f"{code(filename)}, which comes with quantcard (in {code(package)})"
        case _:
            where = f"a text that whoever runs this bot chose: {code(corpus['name'])}"
    return Markup(f"{where}, sha256 {code(corpus['sha256'])}")


def command_block(command: str | None) -> Markup | None:
    """The commands that repeat a figure, to be copied; None where one holds what would not be seen then."""
    return fenced(command.replace(" && quantcard ", "\nquantcard "), "sh") if command else None


def imported_words(rows: Sequence[DatasetRow]) -> str | None:
    """Of how many files which figures are another tool's."""
    counts = [
        f"the {what} of {count} file{'s' if count > 1 else ''}"
        for what, column in (("quality", "quality_imported"), ("speed", "speed_imported"))
        if (count := sum(bool(getattr(row, column)) for row in rows))
    ]
    return " and ".join(counts) or None


def method(first: DatasetRow, rows: Sequence[DatasetRow], machines: Machines) -> list[Markup]:
    """The lines of 'How this was measured'; ``first``: the row whose command is shown."""
    protocol = json.loads(first.protocol_json)
    corpus = protocol["corpus"]
    lines = []
    if first.n_tokens:
        lines.append(
            f"Protocol {code(first.protocol_name)} ({first.protocol_fingerprint[:12]}): {code(corpus['name'])} (sha256 "
            f"{corpus['sha256'][:12]}) in {first.n_chunks} chunks of {protocol['n_ctx']} tokens, of each the second "
            f"half scored, as llama-perplexity does: {first.n_tokens:,} tokens."
        )
    if first.reference_variant and first.kld_mean is not None:
        known = f"; its own perplexity is {first.ppl_base:.4f}" if first.ppl_base else ""
        lines.append(f"The original: {reference_name(first)}, sha256 {str(first.reference_key)[:12]}{known}.")
    lines += machines.lines()
    for what, column in (("quality", "quality_imported"), ("speed", "speed_imported")):
        if named := [(row.label, tool) for row in rows if (tool := getattr(row, column))]:
            labels = ", ".join(str(escape(label)) for label, _ in named)
            lines.append(f"Imported, not measured by quantcard: {what} of {labels}, from {escape(named[0][1])}.")
    parts = " (of a split file: of its parts' sha256s)" if any(row.n_files > 1 for row in rows) else ""
    shown = ", ".join(f"{escape(row.label)} {row.variant_key[:12]}" for row in rows)
    lines.append(
        f"{_dates(rows)}Files as of commit {first.revision[:12]}; one that changes is measured again. Their "
        f"sha256{parts}, first digits: {shown}."
    )
    return [Markup(line) for line in lines]


def _dates(rows: Sequence[DatasetRow]) -> str:
    """When the rows were measured, as the beginning of a line."""
    days = sorted({row.measured_at.strftime("%Y-%m-%d") for row in rows if row.measured_at})
    if not days:
        return ""
    return f"Measured on {days[0]}. " if len(days) == 1 else f"Measured from {days[0]} to {days[-1]}. "
