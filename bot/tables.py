"""Tables for the terminal: data for people, on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.audit import Inspection, TypeShare
from core.chat_template import printable
from core.contract import ChunkIntervals, Interval, QualityResult, SpeedTest
from core.dataset import DatasetRow
from core.format import percent, significant, size, speed, with_interval
from core.verdict import Z95


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    # Into a file or a pipe, rows stay whole however wide they are.
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=200)


out = _console()


def rows_table(rows: Sequence[DatasetRow], *, title: str | None = None) -> Table:
    """Variants with their figures, largest first within a repo."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("Quant", no_wrap=True)
    for name in ("bpw", "Size", "Mean KLD", "99.9 % KLD", "Same top p", "PPL ratio", "pp t/s", "tg t/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in sorted(rows, key=lambda r: (r.repo_id, -r.size_bytes, r.variant)):
        table.add_row(
            escape(row.label),
            f"{row.bpw:.2f}" if row.bpw else "–",
            size(row.size_bytes),
            "–" if row.kld_mean is None else with_interval(row.kld_mean, Z95 * (row.kld_stderr or 0)),
            "–" if row.kld_p99_9 is None else significant(row.kld_p99_9),
            "–" if row.same_top is None else percent(row.same_top),
            "–" if row.ppl_ratio is None else f"{row.ppl_ratio:.4f}",
            "–" if row.pp_ts is None else speed(row.pp_ts),
            "–" if row.tg_ts is None else speed(row.tg_ts),
            escape(_note(row)),
        )
    return table


def _note(row: DatasetRow) -> str:
    notes = [f"quality imported ({row.quality_imported})"] if row.quality_imported else []
    notes += [f"speed imported ({row.speed_imported})"] if row.speed_imported else []
    if row.reference_kind == "q8_0" and row.kld_mean is not None and not row.is_reference:
        notes.append("against a Q8_0: flatters")
    if row.state in ("failed", "stale", "waiting", "no-reference"):
        return "; ".join([f"{row.state}: {row.reason}" if row.reason else row.state, *notes])
    if row.is_reference:
        return "; ".join(["reference", *notes])
    return "; ".join([*notes, row.reason] if row.reason else notes)


def quality_table(result: QualityResult) -> Table:
    """One variant's statistics in llama-perplexity's order, then what we add under names of its own."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    lines = [
        ("Mean PPL(Q)", f"{result.ppl.value:.6f} ± {result.ppl.stderr:.6f}"),
        ("Mean PPL(base)", f"{result.ppl_base.value:.6f} ± {result.ppl_base.stderr:.6f}"),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * result.ppl_cor:.2f} %"),
        ("Mean ln(PPL(Q)/PPL(base))", f"{result.ln_ppl_ratio.value:.6f} ± {result.ln_ppl_ratio.stderr:.6f}"),
        ("Mean PPL(Q)/PPL(base)", f"{result.ppl_ratio.value:.6f} ± {result.ppl_ratio.stderr:.6f}"),
        ("Mean KLD", f"{result.kld.mean:.6f} ± {result.kld.stderr:.6f}"),
        *((f"{name} KLD", f"{getattr(result.kld, field):.6f}") for name, field in _KLD_LINES),
        ("Mean Δp", f"{100 * result.delta_p.mean:.3f} ± {100 * result.delta_p.stderr:.3f} %"),
        ("RMS Δp", f"{100 * result.delta_p.rms:.3f} ± {100 * result.delta_p.rms_stderr:.3f} %"),
        ("Same top p", f"{100 * result.same_top.value:.3f} ± {100 * result.same_top.stderr:.3f} %"),
    ]
    if result.exact:
        exact = result.exact
        lines += [
            ("PPL(base), exact", f"{exact.ppl_base.value:.6f} ± {exact.ppl_base.stderr:.6f}"),
            ("PPL(Q)/PPL(base), exact", f"{exact.ppl_ratio.value:.6f} ± {exact.ppl_ratio.stderr:.6f}"),
        ]
    if result.unclipped:
        lines.append(
            ("Mean KLD, unclipped", f"{result.unclipped.mean:.6f} ± {result.unclipped.stderr:.6f}"),
        )
    if result.intervals:
        lines += [(name, f"{found.low:.6f} to {found.high:.6f}") for name, found in _interval_lines(result.intervals)]
    lines += [
        (
            f"Baseline sure {100 * bucket.low:.0f}–{100 * bucket.high:.0f} %",
            f"mean KLD {bucket.kld_mean:.6f}, same top p {100 * bucket.same_top:.2f} %, {bucket.n_tokens:,} tokens",
        )
        for bucket in result.buckets
    ]
    how = "true distributions" if result.scoring == "unclipped" else "as llama-perplexity, clipped at 16 nats"
    lines.append(("Scoring", how))
    lines.append(("Scored tokens", f"{result.n_tokens:,} in {result.n_chunks} chunks"))
    for name, value in lines:
        table.add_row(name, value)
    return table


def _interval_lines(found: ChunkIntervals) -> list[tuple[str, Interval]]:
    """95 % intervals for which chunks are the sample."""
    return [
        ("Mean KLD, 95 % by chunk", found.kld_mean),
        ("99.9 % KLD, 95 % by chunk", found.kld_p99_9),
        ("ln PPL ratio, 95 % by chunk", found.ln_ppl_ratio),
        ("Same top p, 95 % by chunk", found.same_top),
    ]


_KLD_LINES = (
    ("Maximum", "max"),
    ("99.9 %", "p99_9"),
    ("99.0 %", "p99"),
    ("95.0 %", "p95"),
    ("90.0 %", "p90"),
    ("Median", "median"),
    ("Minimum", "min"),
)


def speed_table(tests: Sequence[SpeedTest]) -> Table:
    """Speed tests as llama-bench shows them, with peak memory."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Model", no_wrap=True)
    for name in ("Size", "Threads", "Test", "t/s", "Peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for test in tests:
        parts = [f"pp{test.n_prompt}"] * (test.n_prompt > 0) + [f"tg{test.n_gen}"] * (test.n_gen > 0)
        name = "+".join(parts) + (f" @ d{test.n_depth}" if test.n_depth else "")
        memory = (test.peak_memory_bytes or 0) + (test.peak_vram_bytes or 0)
        table.add_row(
            escape(test.model_type),
            size(test.model_size),
            str(test.n_threads),
            name,
            f"{test.avg_ts:.2f} ± {test.stddev_ts:.2f}",
            size(memory) if memory else "–",
        )
    return table


def inspection_table(name: str, found: Inspection, *, template: str | None = None) -> Table:
    """A header's audit; ``template`` says what its chat template is beside the base model's."""
    table = Table(title=escape(name), title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    imatrix = found.imatrix
    sha256 = found.chat_template_sha256
    tokenizer = " ".join(part for part in (found.tokenizer_model, found.tokenizer_pre) if part)
    lines = [
        ("Architecture", found.architecture or "–"),
        ("Parameters", f"{found.n_params:,}"),
        ("Size", f"{size(found.size_bytes)}, {found.bpw:.2f} bpw"),
        *((("Shards", f"{found.shards_found} of {found.shards}"),) if found.shards > 1 else ()),
        ("File type", found.file_type or "–"),
        *((f"  {group}", _types(shares)) for group, shares in found.groups.items()),
        ("Vocabulary", f"{found.n_vocab:,} tokens, {tokenizer or '–'}" if found.n_vocab is not None else "–"),
        ("imatrix", f"{imatrix.file}, {imatrix.chunks} chunks of {imatrix.dataset}" if imatrix else "none"),
        ("Base model", ", ".join(b.repo_id or b.name or "?" for b in found.base_models) or "–"),
        *((("Converted from", found.source.repo_id or found.source.name or "?"),) if found.source else ()),
        ("Chat template", f"{sha256[:12]}{f', {template}' if template else ''}" if sha256 else "none"),
        *(("Flag", f"{flag.detail} ({flag.code})") for flag in found.flags),
    ]
    for key, value in lines:
        table.add_row(key, escape(printable(str(value))))
    return table


def _types(shares: Mapping[str, TypeShare]) -> str:
    return ", ".join(f"{kind} ×{share.count}" for kind, share in shares.items())
