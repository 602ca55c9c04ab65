"""``make bench``: quality, recording, kernels, sizes and speed beside llama.cpp's own tools, as ratios.

See docs/benchmarks.md for what each line means.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.chaos import FULL, QUICK, chaos_title, measure_chaos
from benchmarks.children import Product
from benchmarks.headers import measure_headers
from benchmarks.machine import describe
from benchmarks.memory import measure_memory
from benchmarks.models import NAMES, find_case
from benchmarks.passes import make_base, measure_kld, measure_record
from benchmarks.peers import Peers, build, existing
from benchmarks.queueing import ATTEMPTS, JOBS, QUICK_ATTEMPTS, QUICK_JOBS, measure_queue, queue_title
from benchmarks.rates import KERNEL_VOCAB, measure_kernels, measure_speed
from benchmarks.runner import RUNNER_TITLE, measure_runner
from benchmarks.setting import Setting, Subject, prepare, say
from benchmarks.sizes import measure_sizes
from benchmarks.space import MODELS, QUICK_MODELS, QUICK_ROWS, ROWS, measure_space, space_title
from benchmarks.table import BenchError, Row, render
from benchmarks.watching import QUICK_REPOS, REPOS, measure_watching, watching_title
from core.contract import Machine
from jobs.llama import physical_cores

PARTS = ("kld", "record", "kernel", "bytes", "speed", "headers", "watch", "memory", "queue", "runner", "chaos", "space")
#: These need no model.
ALONE = {"kernel", "headers", "watch", "queue", "runner", "chaos", "space"}
#: These need llama.cpp's own tools.
WITH_PEERS = {"kld", "record", "speed"}
KERNEL_TITLE = f"kernels: rows of {KERNEL_VOCAB:,} entries, no model"
HEADERS_TITLE = "headers: the audit of one file over HTTP, from the Hub in a folder"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--model", action="append", choices=NAMES, help="may be given again (default: demo and synth)")
    made.add_argument("--only", action="append", choices=PARTS, help="may be given again (default: everything)")
    made.add_argument("--chunks", type=int, help="chunks of 512 tokens (default: 64)")
    made.add_argument("--rounds", type=int, help="paired rounds (default: 3)")
    made.add_argument("--variant", default="Q4_K_M", help="what is measured against F16 (default: Q4_K_M; F16: itself)")
    made.add_argument("--threads", type=int, default=0, help="for both sides (default: the physical cores)")
    made.add_argument("--n-gpu-layers", type=int, default=-1, help="for both sides (default: -1, all that fit)")
    made.add_argument("--peers", type=Path, metavar="DIR", help="an existing build of llama.cpp, with shared libraries")
    made.add_argument("--work", type=Path, metavar="DIR", help="where temporary files go (default: the system's place)")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write everything there, with raw samples")
    made.add_argument("--seed", type=int, default=5, help="of the kills of the chaos run (default: 5)")
    made.add_argument("--quick", action="store_true", help="4 chunks, 1 round: to see that it runs")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print its tables."""
    made = parser()
    options = made.parse_args(arguments)
    chunks = options.chunks if options.chunks is not None else 4 if options.quick else 64
    rounds = options.rounds if options.rounds is not None else 1 if options.quick else 3
    if chunks < 2 or rounds < 1:
        made.error("--chunks must be at least 2, --rounds at least 1")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        peers = _peers(options.peers, options.only)
        with tempfile.TemporaryDirectory(prefix="quantcard-bench-", dir=options.work) as name:
            setting = Setting(
                product=Product(peers.folder if peers else None, Path(name)),
                peers=peers,
                folder=Path(name),
                machine=Machine(n_threads=options.threads or physical_cores(), n_gpu_layers=options.n_gpu_layers),
                chunks=chunks,
                rounds=rounds,
                variant=options.variant,
                quick=options.quick,
                seed=options.seed,
            )
            return _measure(setting, options.model or ["demo", "synth"], set(options.only or PARTS), options.json)
    except (BenchError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; nothing is left behind.", file=sys.stderr)
        return 130


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _peers(given: Path | None, only: list[str] | None) -> Peers | None:
    if given is not None:
        return existing(given)
    return build(say) if WITH_PEERS & set(only or PARTS) else None


def _measure(setting: Setting, names: list[str], parts: set[str], out: Path | None) -> int:
    """Measure model after model; each table is printed as soon as it is whole."""
    tables: dict[str, list[Row]] = {}
    facts: dict[str, Any] = {}
    failed = []
    if "kernel" in parts:
        tables[KERNEL_TITLE] = measure_kernels(setting)
        print(render(KERNEL_TITLE, tables[KERNEL_TITLE]), flush=True)
    if "headers" in parts:
        tables[HEADERS_TITLE] = measure_headers(setting)
        print(render(HEADERS_TITLE, tables[HEADERS_TITLE]), flush=True)
    if "watch" in parts:
        repos = QUICK_REPOS if setting.quick else REPOS
        title = watching_title(repos)
        tables[title] = measure_watching(setting.folder, repos=repos)
        print(render(title, tables[title]), flush=True)
    if "queue" in parts:
        jobs, attempts = (QUICK_JOBS, QUICK_ATTEMPTS) if setting.quick else (JOBS, ATTEMPTS)
        title = queue_title(jobs)
        tables[title] = measure_queue(setting.folder, jobs=jobs, attempts=attempts)
        print(render(title, tables[title]), flush=True)
    if "runner" in parts:
        tables[RUNNER_TITLE] = measure_runner(setting)
        print(render(RUNNER_TITLE, tables[RUNNER_TITLE]), flush=True)
    if "chaos" in parts:
        plan = replace(QUICK if setting.quick else FULL, seed=setting.seed)
        tables[chaos_title(plan)] = measure_chaos(setting.folder, plan)
        print(render(chaos_title(plan), tables[chaos_title(plan)]), flush=True)
    if "space" in parts:
        n_rows, n_models = (QUICK_ROWS, QUICK_MODELS) if setting.quick else (ROWS, MODELS)
        title = space_title(n_rows, n_models)
        tables[title] = measure_space(setting.folder, rows=n_rows, models=n_models)
        print(render(title, tables[title]), flush=True)
    for name in dict.fromkeys(names) if parts - ALONE else ():
        try:
            subject = _model(setting, name, parts)
        except BenchError as error:
            say(f"[{name}] left out: {error}")
            failed.append(f"{name}: {error}")
            continue
        tables[subject.case.title] = subject.rows
        facts |= subject.facts
        print(render(subject.case.title, subject.rows), flush=True)
    described = describe(setting, facts.get("environment", {}), facts.get("libraries", []))
    for key, value in described.items():
        print(f"- {key}: {value}")
    for reason in failed:
        print(f"- left out: {reason}")
    if out is not None:
        rows = {title: [row.as_json() for row in found] for title, found in tables.items()}
        everything = {"machine": described, "tables": rows, "failed": failed, "facts": facts}
        out.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _model(setting: Setting, name: str, parts: set[str]) -> Subject:
    """Everything that is measured of one model.

    Raises:
        BenchError: it can't be measured here.
    """
    case = find_case(name, say)
    # At a time there are the base, and in a recording round llama-perplexity's or ours.
    files = 2 if "record" in parts else 1 if {"kld", "bytes"} & parts else 0
    subject = prepare(case, setting, files=files)
    try:
        if {"kld", "record", "bytes"} & parts:
            base, kld = make_base(subject, states=False)
            states, its = make_base(subject, states=True)
            if "bytes" in parts:
                measure_sizes(subject, kld, its)
            if "record" in parts:
                measure_record(subject, base)
            if "kld" in parts:
                measure_kld(subject, base, states)
        if "memory" in parts:
            measure_memory(subject)
        if "speed" in parts:
            measure_speed(subject)
    finally:
        shutil.rmtree(subject.folder)
    return subject


if __name__ == "__main__":
    sys.exit(main())
