"""What is estimated from a header beside what the measuring process takes: memory, in every kind of job."""

from __future__ import annotations

from benchmarks.setting import Subject, say
from benchmarks.table import Row, Target, size
from core.audit import inspect
from core.contract import BaselineSpec, QualitySpec, SpeedSpec
from core.gguf_header import read_file_header
from core.protocol import WIKITEXT2_TEST, Protocol
from core.sizes import Kind, estimate

#: An estimate that is too low loses a machine; the other bound is a fixed process with a model of nothing. A speed
#: job's room for a micro-batch's logits is reserved, but not used on a CPU.
TARGETS: dict[Kind, Target] = {
    "baseline": Target("1 to 2.5", 2.5, 1.0),
    "quality": Target("1 to 2.5", 2.5, 1.0),
    "speed": Target("≥ 1", float("inf"), 1.0),
}
_N_GEN = 16


def measure_memory(subject: Subject) -> None:
    """Rows of estimated and real peaks, of a baseline, a quality and a speed job.

    Raises:
        BenchError: a job failed.
    """
    setting, case = subject.setting, subject.case
    protocol = Protocol(corpus=WIKITEXT2_TEST, n_ctx=setting.n_ctx, chunks=setting.chunks, n_gen=_N_GEN)
    out = subject.folder / "memory.gguf"
    machine = setting.machine
    specs: dict[Kind, BaselineSpec | QualitySpec | SpeedSpec] = {
        "baseline": BaselineSpec(
            reference=str(case.reference),
            corpus=str(case.corpus),
            out=str(out),
            format="states",
            n_ctx=setting.n_ctx,
            chunks=setting.chunks,
            machine=machine,
        ),
        "quality": QualitySpec(
            model=str(subject.variant),
            baseline=str(out),
            as_llama_cpp=True,
            tokens_out=str(subject.folder / "memory.parquet"),
            machine=machine,
        ),
        "speed": SpeedSpec(model=str(subject.variant), n_gen=[_N_GEN], repetitions=1, machine=machine),
    }
    for kind, spec in specs.items():
        say(f"[{case.name}] memory of a {kind} job …")
        path = case.reference if kind == "baseline" else subject.variant
        found = inspect([read_file_header(path)], size_bytes=path.stat().st_size, name=path.name)
        need = estimate(found, protocol, kind)
        peak = setting.product.job(spec).peak_bytes
        subject.rows.append(
            Row(
                f"estimated memory, {kind} of {path.name}",
                size(need.peak),
                f"taken: {size(peak)}",
                need.peak / peak,
                TARGETS[kind],
                samples={"estimated": need.peak, "taken": peak, "weights": need.weights},
            )
        )
