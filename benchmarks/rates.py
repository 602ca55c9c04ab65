"""Tokens per second beside llama-bench, and the scoring kernels beside the memory's bandwidth."""

from __future__ import annotations

import statistics

from benchmarks.kernel_alone import CLIPPED_BYTES, UNCLIPPED_BYTES
from benchmarks.passes import peer_options, same_libraries
from benchmarks.peer_log import bench_samples, test_name
from benchmarks.setting import Setting, Subject, say
from benchmarks.table import Row, Target, ratio_of_medians, within
from core.contract import SpeedResult, SpeedSpec

SAME_SPEED = within(0.03)
KERNEL_VOCAB = 151_936
#: The issue's bound for a row at a vocabulary of 152k, on two cores.
MOST_MS = Target("≤ 0.3 ms (2 cores)", 0.3)


def measure_speed(subject: Subject) -> None:
    """pp512 and tg128, ours and llama-bench's in turn; the ratio of the medians of all repetitions."""
    setting, peers = subject.setting, subject.setting.tools()
    n_prompt, n_gen, repetitions = (64, 16, 2) if setting.quick else (512, 128, 5)
    spec = SpeedSpec(
        model=str(subject.variant),
        n_prompt=[n_prompt],
        n_gen=[n_gen],
        repetitions=repetitions,
        machine=setting.machine,
    )
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}

    def run_ours() -> frozenset[str]:
        run = setting.product.job(spec)
        assert isinstance(run.result, SpeedResult)
        subject.facts.setdefault("environment", run.result.environment.model_dump(mode="json"))
        for test in run.result.tests:
            ours.setdefault(test_name(test.n_prompt, test.n_gen), []).extend(test.samples_ts)
        return run.libraries

    def run_peer() -> frozenset[str]:
        tests = ("-p", n_prompt, "-n", n_gen, "-r", repetitions)
        ended = peers.bench("-m", subject.variant, *tests, *peer_options(subject))
        for name, samples in bench_samples(ended.printed).items():
            theirs.setdefault(name, []).extend(samples)
        return ended.libraries

    for number in range(setting.rounds):
        seen = []
        for name, step in subject.round_of([("ours", run_ours), ("llama-bench", run_peer)], number):
            subject.tell("speed", number, name)
            seen.append(step())
        same_libraries(subject, *seen)
    for name, samples in ours.items():
        subject.rows.append(
            Row(
                f"{name}, tokens a second",
                f"{statistics.median(samples):,.1f}",
                f"llama-bench: {statistics.median(theirs[name]):,.1f}",
                ratio_of_medians(samples, theirs[name]),
                SAME_SPEED,
                samples={"ours_ts": samples, "limit_ts": theirs[name]},
            )
        )


def measure_kernels(setting: Setting) -> list[Row]:
    """Milliseconds a row of the scoring kernels at a vocabulary of 152k, and their share of the memory's bandwidth."""
    say(f"[kernels] scoring rows of {KERNEL_VOCAB:,} entries on {setting.threads} threads …")
    answer, _ = setting.product.limit(
        "kernel",
        n_vocab=KERNEL_VOCAB,
        n_ctx=32 if setting.quick else 512,
        n_threads=setting.threads,
        repeats=2 if setting.quick else 4 * setting.rounds + 1,
        folder=str(setting.folder),
    )
    bandwidth = max(answer["read_bytes_per_s"], answer["copy_bytes_per_s"])
    rows = [
        _kernel_row("scoring a row, .kld base (read, checked, compared)", answer, "clipped", CLIPPED_BYTES, bandwidth),
        Row("– of it the read and its checksum alone", _ms(answer["read_s"])),
        _kernel_row("scoring a row, states base (rebuilt logits)", answer, "unclipped", UNCLIPPED_BYTES, bandwidth),
        Row(
            f"memory bandwidth, numpy on {setting.threads} threads",
            f"read {answer['read_bytes_per_s'] / 1e9:.1f} GB/s",
            f"copy {answer['copy_bytes_per_s'] / 1e9:.1f} GB/s (both ways)",
            samples=answer,
        ),
    ]
    return rows


def _kernel_row(figure: str, answer: dict[str, float], key: str, n_bytes: int, bandwidth: float) -> Row:
    """A kernel's row: the limit is what the bandwidth would allow for the bytes that an entry touches."""
    found = answer[f"{key}_s"]
    least = n_bytes * answer["n_vocab"] / bandwidth
    return Row(
        figure,
        _ms(found),
        f"{n_bytes} B an entry at full bandwidth: {_ms(least)} ({least / found:.0%} of it used)",
        found / least,
        MOST_MS,
        1e3 * found,
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"
