"""``make bench``: our quality and speed runs beside llama-perplexity and llama-bench, alternating, as ratios.

usage: python -m benchmarks [--peers DIR] [--model M.gguf --reference R.gguf --corpus C.txt] [--chunks N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp

from bot.queue.runners.local import run_job
from core.contract import BaselineSpec, Machine, QualitySpec, QuantizeSpec, SpeedResult, SpeedSpec

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "localhub" / "demo_model"
HOUR = 3600.0


def peer(tool: Path, *arguments: object, threads: int) -> str:
    """Run one of llama.cpp's tools on our libllama; returns what it printed."""
    library = str(Path(llama_cpp.__file__).parent / "lib")
    done = subprocess.run(
        [str(tool), *map(str, arguments), "-t", str(threads)],
        capture_output=True,
        text=True,
        check=True,
        timeout=HOUR,
        env={**os.environ, "LD_LIBRARY_PATH": library},
    )
    return done.stdout


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, ours: list[float], theirs: list[float], unit: str, *, faster: float) -> str:
    """One line of the table; ``faster`` > 1 means that we are."""
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"| {name} | {a:,.2f} {unit} | {b:,.2f} {unit} | {faster:.2f} |"


def main() -> int:
    """Run the benchmark and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--peers", type=Path, default=ROOT / ".cache" / "peers" / "build" / "bin")
    parser.add_argument("--model", type=Path, help="default: the demo model's Q4_K_M")
    parser.add_argument("--reference", type=Path, default=DEMO / "quantcard-demo-F16.gguf")
    parser.add_argument("--corpus", type=Path, default=DEMO / "heldout.txt")
    parser.add_argument("--chunks", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    perplexity, bench = options.peers / "llama-perplexity", options.peers / "llama-bench"
    if not perplexity.exists():
        print(f"Building llama.cpp's tools into {options.peers.parents[1]}, once …", file=sys.stderr)
        subprocess.run([ROOT / "benchmarks" / "build_peers.sh", options.peers.parents[1]], check=True)
    machine = Machine(n_threads=options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model
        if model is None:
            model = folder / "demo-Q4_K_M.gguf"
            make = QuantizeSpec(model=str(options.reference), out=str(model), file_type="Q4_K_M")
            run_job(make, timeout=HOUR)
        base = folder / "base.kld"
        record = BaselineSpec(
            reference=str(options.reference),
            corpus=str(options.corpus),
            out=str(base),
            chunks=options.chunks,
            machine=machine,
        )
        run_job(record, timeout=HOUR)
        spec = QualitySpec(model=str(model), baseline=str(base), machine=machine)
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(seconds(lambda: run_job(spec, timeout=HOUR)))
            against = ("-m", model, "--kl-divergence-base", base, "--kl-divergence")
            theirs.append(seconds(lambda against=against: peer(perplexity, *against, threads=options.threads)))  # type: ignore[misc]
        print("| measurement | quantcard | llama.cpp's tool | ours is faster by |")
        print("|---|--:|--:|--:|")
        ratio = statistics.median(theirs) / statistics.median(ours)
        print(row(f"KLD, {options.chunks} chunks, whole process", ours, theirs, "s", faster=ratio))
        speeds: dict[str, tuple[list[float], list[float]]] = {"pp512": ([], []), "tg128": ([], [])}
        for _ in range(options.rounds):
            result = run_job(SpeedSpec(model=str(model), machine=machine), timeout=HOUR)
            assert isinstance(result, SpeedResult)
            printed = json.loads(peer(bench, "-m", model, "-o", "json", threads=options.threads))
            for (mine, other), a, b in zip(speeds.values(), result.tests, printed, strict=True):
                mine.append(a.avg_ts)
                other.append(b["avg_ts"])
        for name, (mine, other) in speeds.items():
            faster = statistics.median(mine) / statistics.median(other)
            print(row(f"{name} as measured", mine, other, "t/s", faster=faster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
