"""What a job costs on this machine beside the model's load and the measuring: from its start to the first decode."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.setting import Setting, say
from benchmarks.table import BenchError, Row, Target, seconds
from core.contract import BaselineSpec, ProgressEvent, QualitySpec, SpeedSpec
from core.errors import QuantcardError
from core.sandbox.child import run_child
from core.sandbox.levels import Level, Limits, Sandbox, probe
from core.sandbox.spec_paths import reads_of, writes_of

ROUNDS, QUICK_ROUNDS = 7, 2
RUNNER_TITLE = "local runner: a job's start, on the demo's model"
_TARGET = Target("≤ 2 s", 2.0)
_LEVELS: tuple[Level, ...] = ("bubblewrap", "uid", "none")
#: The first event with one of these comes after the first decode (speed) or right before it (quality).
_DECODING = ("timing", "measuring")
_LIMITS = Limits(seconds=300, memory_bytes=4 << 30)
_ROOT = Path(__file__).resolve().parent.parent


def measure_runner(setting: Setting) -> list[Row]:
    """Rows for each level of the sandbox and kind of job.

    Raises:
        BenchError: a job failed.
    """
    model = _ROOT / "localhub" / "demo_model" / "quantcard-demo-F16.gguf"
    folder = setting.folder / "runner"
    folder.mkdir()
    # Another user is to get there.
    for place in (setting.folder, folder):
        place.chmod(0o755)
    baseline = folder / "base.gguf"
    recording = BaselineSpec(
        reference=str(model),
        corpus=str(model.with_name("heldout.txt")),
        out=str(baseline),
        format="states",
        chunks=2,
        machine=setting.machine,
    )
    _run(recording, Sandbox("none"))
    specs: dict[str, QualitySpec | SpeedSpec] = {
        "speed": SpeedSpec(model=str(model), n_prompt=[1], n_gen=[], repetitions=1, machine=setting.machine),
        "quality": QualitySpec(model=str(model), baseline=str(baseline), machine=setting.machine),
    }
    rounds = QUICK_ROUNDS if setting.quick else ROUNDS
    load = statistics.median(_load(model, setting) for _ in range(rounds))
    rows = [Row("the model's load alone, in a process that has llama.cpp", seconds(load))]
    for level in _LEVELS:
        problem = probe(level)
        if problem is not None:
            rows.append(Row(level, f"not measured: {problem}"))
            continue
        for kind, spec in specs.items():
            say(f"[runner] {level}, {kind} …")
            found = [_run(spec, Sandbox(level)) for _ in range(rounds)]
            begun = [begin - load for begin, _ in found]
            rows.append(
                Row(
                    f"{level}, {kind} job: start to first decode, less the load",
                    seconds(statistics.median(begun)),
                    f"slowest: {seconds(max(begun))}",
                    target=_TARGET,
                    value=statistics.median(begun),
                    samples={"s": begun},
                )
            )
            ends = [end for _, end in found]
            rows.append(Row("– last word to all cleared away", seconds(statistics.median(ends)), samples={"s": ends}))
    return rows


def _run(spec: BaselineSpec | QualitySpec | SpeedSpec, sandbox: Sandbox) -> tuple[float, float]:
    """Seconds from the call to the first decode, and from the last event before the result to the return."""
    begun: list[float] = []
    last = [0.0]

    def on_progress(event: ProgressEvent) -> None:
        last[0] = time.perf_counter()
        if event.stage in _DECODING:
            begun.append(last[0])

    started = time.perf_counter()
    try:
        run_child(
            spec,
            sandbox=sandbox,
            reads=reads_of(spec),
            writes=writes_of(spec),
            limits=_LIMITS,
            on_progress=on_progress,
        )
    except QuantcardError as error:
        raise BenchError(f"A {spec.kind} job failed: {error}") from None
    ended = time.perf_counter()
    return (begun[0] if begun else ended) - started, ended - last[0]


_LOADING = """
import sys, time
from pathlib import Path
from core.contract import Machine
from jobs import llama
llama.environment(Machine())
started = time.perf_counter()
with llama.Model(Path(sys.argv[1]), Machine(n_threads=int(sys.argv[2]), n_gpu_layers=int(sys.argv[3]))):
    print(time.perf_counter() - started)
"""


def _load(model: Path, setting: Setting) -> float:
    """Seconds that llama.cpp takes for the load itself, libraries and backend being there."""
    machine = setting.machine
    argv = [sys.executable, "-c", _LOADING, str(model), str(machine.n_threads), str(machine.n_gpu_layers)]
    done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise BenchError(f"The model could not be loaded: {done.stderr[-300:]}")
    return float(done.stdout.split()[-1])
