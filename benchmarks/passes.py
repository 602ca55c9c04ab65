"""KLD and recording beside llama-perplexity and beside decode alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.children import Ours
from benchmarks.peer_log import Pass, read_pass
from benchmarks.setting import Subject, say
from benchmarks.table import BenchError, Row, Target, at_most, paired, peaks, seconds
from core.contract import BaselineResult, BaselineSpec, QualityResult, QualitySpec
from jobs.baseline.kld_file import KldReader

#: The issue's bounds. On a CPU the first two hold for the extreme model and for the real shape; on a GPU for both.
KLD_OF_PERPLEXITY = at_most(0.65)
KLD_OF_PERPLEXITY_GPU = at_most(0.7)
OF_DECODE = at_most(1.05)
NO_MORE_MEMORY = at_most(1.0)
SAME_MEAN = Target("differs ≤ 1e-6", 1e-6)
SAME = Target("the same", 0.0)
#: Chunks of the untimed runs before the first round: compiled kernels and files come into their caches.
_WARM_UP = 4


@dataclass(slots=True)
class Series:
    """One side's samples over the rounds."""

    load: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    walk: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)

    def add_ours(self, ours: Ours, stage: str) -> None:
        """Take in a run: its work is all from the first progress line of ``stage`` (model loaded) to its end."""
        first, last = ours.stages[stage]
        self.load.append(first)
        self.work.append(ours.wall - first)
        self.walk.append(last - first)
        self.peak.append(ours.peak_bytes)

    def add_peer(self, run: Pass) -> None:
        self.load.append(run.load)
        self.work.append(run.work)
        self.walk.append(run.work)
        self.peak.append(run.peak_bytes)


def same_libraries(subject: Subject, ours: frozenset[str], theirs: frozenset[str]) -> None:
    """Raise :class:`BenchError` unless both sides loaded the very same files."""
    if ours != theirs or not ours:
        raise BenchError(
            f"The two sides loaded different libraries: {', '.join(sorted(ours ^ theirs)) or 'none was seen'}."
        )
    subject.facts["libraries"] = sorted(ours)


def record_spec(subject: Subject, out: Path, *, states: bool) -> BaselineSpec:
    """Our recording of this run's chunks."""
    setting = subject.setting
    return BaselineSpec(
        reference=str(subject.case.reference),
        corpus=str(subject.case.corpus),
        out=str(out),
        format="states" if states else "logits",
        n_ctx=setting.n_ctx,
        chunks=setting.chunks,
        machine=setting.machine,
    )


def make_base(subject: Subject, *, states: bool) -> tuple[Path, BaselineResult]:
    """Record the baseline that later runs are measured against; untimed.

    Raises:
        BenchError: the recording failed, or kept other than it was asked to.
    """
    out = subject.folder / ("base.gguf" if states else "base.kld")
    say(f"[{subject.case.name}] recording the {'states' if states else '.kld'} baseline …")
    result = subject.setting.product.job(record_spec(subject, out, states=states)).result
    assert isinstance(result, BaselineResult)
    if states and result.format != "states":
        raise BenchError(f"No states baseline came of {subject.case.reference.name}: {result.fallback}")
    if result.n_chunks < subject.setting.chunks:
        say(f"[{subject.case.name}] the text has {result.n_chunks} chunks only")
    environment = result.environment
    subject.facts |= {"n_chunks": result.n_chunks, "environment": environment.model_dump(mode="json")}
    return out, result


def decode_alone(subject: Subject, model: Path) -> tuple[float, frozenset[str]]:
    """Seconds that the walk over the chunks takes without anything done with its logits."""
    setting = subject.setting
    answer, ended = setting.product.limit(
        "decode",
        model=str(model),
        corpus=str(subject.case.corpus),
        machine=setting.machine.model_dump(),
        chunks=setting.chunks,
        n_ctx=setting.n_ctx,
    )
    return float(answer["wall"]), ended.libraries


def on_gpu(subject: Subject) -> bool:
    """Whether llama.cpp computed on a GPU."""
    environment = subject.facts.get("environment", {})
    return environment.get("backend", "CPU") != "CPU" and environment.get("n_gpu_layers") != 0


def measure_kld(subject: Subject, base: Path, states: Path) -> None:
    """KLD against a ``.kld`` and against a states baseline, beside llama-perplexity and the limits."""
    setting, peers = subject.setting, subject.setting.tools()
    ours, with_states, theirs = Series(), Series(), Series()
    decode: list[float] = []
    head: list[float] = []
    results: dict[str, QualityResult] = {}
    peer: Pass | None = None
    walls: list[float] = []
    waits: list[float] = []

    def spec(baseline: Path, chunks: int = -1) -> QualitySpec:
        return QualitySpec(model=str(subject.variant), baseline=str(baseline), chunks=chunks, machine=setting.machine)

    def run_ours(baseline: Path, series: Series, key: str) -> frozenset[str]:
        run = setting.product.job(spec(baseline))
        assert isinstance(run.result, QualityResult) and run.result.timings
        series.add_ours(run, "measuring")
        results[key] = run.result
        if key == "kld":
            walls.append(run.result.timings.wall)
            waits.append(run.result.timings.score)
        return run.libraries

    def run_peer() -> frozenset[str]:
        nonlocal peer
        against = ("--kl-divergence-base", base, "--kl-divergence")
        ended = peers.perplexity("-m", subject.variant, *against, *peer_options(subject))
        peer = read_pass(ended)
        theirs.add_peer(peer)
        return ended.libraries

    def run_decode() -> frozenset[str]:
        wall, libraries = decode_alone(subject, subject.variant)
        decode.append(wall)
        return libraries

    def run_head() -> frozenset[str]:
        answer, ended = setting.product.limit("head", baseline=str(states), machine=setting.machine.model_dump())
        head.append(float(answer["head"]))
        return ended.libraries

    say(f"[{subject.case.name}] warming up …")
    for baseline in (base, states):
        setting.product.job(spec(baseline, _WARM_UP))
    steps: list[tuple[str, Callable[[], frozenset[str]]]] = [
        ("decode alone", run_decode),
        ("ours against .kld", lambda: run_ours(base, ours, "kld")),
        ("llama-perplexity", run_peer),
        ("head alone", run_head),
        ("ours against states", lambda: run_ours(states, with_states, "states")),
    ]
    _rounds(subject, "KLD", steps)
    assert peer is not None
    gpu, name = on_gpu(subject), subject.case.name
    limits = [a + b for a, b in zip(decode, head, strict=True)]
    faster = (KLD_OF_PERPLEXITY_GPU if gpu else KLD_OF_PERPLEXITY) if name == "synth" or gpu else None
    near = OF_DECODE if name == "real" or gpu else None
    n_rows = results["kld"].n_tokens
    ends = [work - wall for work, wall in zip(ours.work, walls, strict=True)]
    subject.rows += [
        paired("KLD with .kld, after load", ours.work, theirs.work, faster, limit="llama-perplexity"),
        paired("KLD with .kld, after load", ours.work, decode, near, limit="decode alone"),
        paired("– of it decode and scoring alone", walls, decode, limit="decode alone"),
        Row("– then figures and exit", seconds(statistics.median(ends)), samples={"ours_s": ends}),
        Row(
            "– of it waiting for scores, a row",
            f"{1e3 * statistics.median(waits) / n_rows:.3f} ms",
            samples={"ours_s": waits, "n_rows": n_rows},
        ),
        paired("llama-perplexity, after load", theirs.work, decode, limit="decode alone"),
        paired("KLD start-up and load", ours.load, theirs.load, limit="llama-perplexity"),
        peaks("KLD with .kld, peak memory", ours.peak, theirs.peak, NO_MORE_MEMORY, limit="llama-perplexity"),
        paired("KLD with states, after load", with_states.work, limits, near, limit="decode + head"),
        paired("– head pass alone", head, decode, limit="decode alone"),
        paired("KLD with states, start-up and load", with_states.load, theirs.load, limit="llama-perplexity"),
        peaks("KLD with states, peak memory", with_states.peak, theirs.peak, NO_MORE_MEMORY, limit="llama-perplexity"),
        *_same_figures(subject, results, peer),
    ]


def _same_figures(subject: Subject, results: dict[str, QualityResult], peer: Pass) -> list[Row]:
    """That both sides did the same work: the mean KLDs."""
    clipped, unclipped = results["kld"].kld.mean, results["states"].kld.mean
    setting = subject.setting
    say(f"[{subject.case.name}] the true KLD, from both models' own logits …")
    answer, _ = setting.product.limit(
        "truth",
        model=str(subject.variant),
        reference=str(subject.case.reference),
        corpus=str(subject.case.corpus),
        machine=setting.machine.model_dump(),
        chunks=setting.chunks,
        n_ctx=setting.n_ctx,
    )
    true = float(answer["kld_mean"])
    printed = f"{clipped:.6f}"
    off = abs(float(printed) - float(peer.mean_kld or "nan"))
    return [
        Row("mean KLD with .kld", printed, f"llama-perplexity: {peer.mean_kld}", None, SAME, off),
        Row(
            "mean KLD with states", f"{unclipped:.8f}", f"unclipped: {true:.8f}", None, SAME_MEAN, abs(unclipped - true)
        ),
        Row("– less the one with .kld", f"{unclipped - clipped:+.2e}"),
    ]


def measure_record(subject: Subject, base: Path) -> None:
    """Recording both formats, beside llama-perplexity and decode alone; ``base`` is a ``.kld`` we recorded."""
    setting, peers = subject.setting, subject.setting.tools()
    logits, states, theirs = Series(), Series(), Series()
    decode: list[float] = []
    differ: list[int] = []

    def run_ours(series: Series, name: str, *, with_states: bool) -> frozenset[str]:
        out = subject.folder / name
        run = setting.product.job(record_spec(subject, out, states=with_states))
        series.add_ours(run, "recording")
        for made in subject.folder.glob(f"{out.stem}*"):
            made.unlink()
        return run.libraries

    def run_peer() -> frozenset[str]:
        out = subject.folder / "peer.kld"
        text = ("-f", subject.case.corpus, "--chunks", setting.chunks, "-c", setting.n_ctx)
        model = ("-m", subject.case.reference, *text)
        ended = peers.perplexity(*model, "--save-all-logits", out, *peer_options(subject))
        theirs.add_peer(read_pass(ended))
        if not differ:
            differ.append(rows_that_differ(base, out))
        out.unlink()
        return ended.libraries

    def run_decode() -> frozenset[str]:
        wall, libraries = decode_alone(subject, subject.case.reference)
        decode.append(wall)
        return libraries

    steps: list[tuple[str, Callable[[], frozenset[str]]]] = [
        ("decode alone", run_decode),
        ("ours, .kld", lambda: run_ours(logits, "record.kld", with_states=False)),
        ("llama-perplexity", run_peer),
        ("ours, states", lambda: run_ours(states, "states.gguf", with_states=True)),
    ]
    _rounds(subject, "recording", steps)
    with closing(KldReader(base)) as reader:
        n_rows = reader.shape.n_chunks * reader.shape.rows_per_chunk
    ends = [work - walk for work, walk in zip(logits.work, logits.walk, strict=True)]
    states_ends = [work - walk for work, walk in zip(states.work, states.walk, strict=True)]
    subject.rows += [
        paired("recording .kld, first chunk to last", logits.walk, decode, OF_DECODE, limit="decode alone"),
        Row("– then sync and checksum of the file", seconds(statistics.median(ends)), samples={"ours_s": ends}),
        paired("recording .kld, after load", logits.work, theirs.work, limit="llama-perplexity"),
        paired("llama-perplexity's recording, after load", theirs.work, decode, limit="decode alone"),
        paired("recording states, first chunk to last", states.walk, decode, OF_DECODE, limit="decode alone"),
        Row("– then sync and checksum", seconds(statistics.median(states_ends)), samples={"ours_s": states_ends}),
        paired("recording start-up and load", logits.load, theirs.load, limit="llama-perplexity"),
        peaks("recording .kld, peak memory", logits.peak, theirs.peak, NO_MORE_MEMORY, limit="llama-perplexity"),
        peaks("recording states, peak memory", states.peak, theirs.peak, NO_MORE_MEMORY, limit="llama-perplexity"),
        Row(
            "the .kld's bytes",
            f"{differ[0]:,} of {n_rows:,} rows differ" if differ[0] else "equal",
            "llama-perplexity's",
            target=SAME,
            value=float(differ[0]),
        ),
    ]


def _rounds(subject: Subject, what: str, steps: list[tuple[str, Callable[[], frozenset[str]]]]) -> None:
    """Run the steps, round by round; all of them must load the same libraries."""
    seen: frozenset[str] | None = None
    for number in range(subject.setting.rounds):
        for name, step in subject.round_of(steps, number):
            subject.tell(what, number, name)
            libraries = step()
            if seen is not None:
                same_libraries(subject, libraries, seen)
            seen = libraries


def peer_options(subject: Subject) -> tuple[object, ...]:
    """What llama.cpp's tools are told as our jobs are."""
    machine = subject.setting.machine
    layers = () if machine.n_gpu_layers < 0 else ("-ngl", machine.n_gpu_layers)
    return ("-t", machine.n_threads, *layers)


def rows_that_differ(one: Path, other: Path) -> int:
    """How many encoded rows of two base files of one shape differ.

    Raises:
        BenchError: they differ in more than their rows: in shape or tokens.
    """
    with closing(KldReader(one)) as first, closing(KldReader(other)) as second:
        if first.shape != second.shape or not np.array_equal(first.tokens, second.tokens):
            raise BenchError(f"{other.name} is of another text or shape than {one.name}.")
        chunks = range(first.shape.n_chunks)
        return sum(int((first.chunk(chunk) != second.chunk(chunk)).any(axis=1).sum()) for chunk in chunks)
