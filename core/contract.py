"""The contract between the rooms: a job's spec, the events it prints, the result it gives.

Everything that crosses a process boundary or is stored is one of these models. Units stand in the names
(``_bytes``, ``_ns``); probabilities are fractions, KLD and ln(PPL) are in nats.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from core.canonical import fingerprint
from core.figures import (
    KLD,
    Bucket,
    ChunkIntervals,
    DeltaP,
    Estimate,
    ExactBase,
    Imported,
    Interval,
    Timings,
)
from core.protocol import Protocol, Scoring

CONTRACT_VERSION = 2

__all__ = [
    "KLD",
    "Bucket",
    "ChunkIntervals",
    "DeltaP",
    "Estimate",
    "ExactBase",
    "Imported",
    "Interval",
    "Scoring",
    "Timings",
]

#: How a baseline is stored: llama-perplexity's ``.kld``, or the vectors that enter the output head.
BaselineFormat = Literal["logits", "states"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Environment(_Model):
    """What we found on the machine that measured; figures of different environments carry a mark."""

    llama_cpp: str = Field(description="llama-cpp-python version and llama.cpp build")
    backend: str = Field(description="devices llama.cpp may use, e.g. 'CPU' or 'CUDA0: NVIDIA L4'")
    system_info: str = Field(description="llama_print_system_info: SIMD features, repacking")
    cpu: str
    gpu: str | None = None
    driver: str | None = None
    n_threads: int
    n_gpu_layers: int
    repack: bool = True

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of this environment (64 hex digits)."""
        return fingerprint(self.model_dump(mode="json"))


class QualityResult(_Model):
    """One variant's figures against one baseline.

    With ``scoring`` "llama-cpp" they are llama-perplexity's to the printed digit; with "unclipped" the same
    statistics of the true distributions.
    """

    kind: Literal["quality"] = "quality"
    baseline_format: BaselineFormat = "logits"
    scoring: Scoring = "llama-cpp"
    ppl: Estimate
    ppl_base: Estimate = Field(description="with scoring 'llama-cpp' biased low where the base file clips: see exact")
    ppl_ratio: Estimate
    ln_ppl_ratio: Estimate
    ppl_cor: float = Field(description="correlation of ln PPL(Q) and ln PPL(base), fraction")
    kld: KLD
    delta_p: DeltaP
    same_top: Estimate = Field(description="share of tokens where both models' top token agrees")
    n_tokens: int = Field(description="scored tokens")
    n_chunks: int
    exact: ExactBase | None = Field(default=None, description="unclipped comparison, where the base NLL is known")
    unclipped: KLD | None = Field(
        default=None, description="the unclipped KLD beside llama.cpp's, where the baseline holds states"
    )
    intervals: ChunkIntervals | None = None
    buckets: list[Bucket] = Field(default=[], description="by the baseline's confidence; empty ones are left out")
    tokens_path: str | None = Field(default=None, description="the per-token sidecar (parquet), if one was asked for")
    tokens_sha256: str | None = None
    imported: Imported | None = None
    timings: Timings | None = None
    protocol: dict[str, Any]
    environment: Environment


class QualityFailure(_Model):
    """Why one of several variants has no figures; ``type`` names a class of :mod:`core.errors`."""

    kind: Literal["failure"] = "failure"
    model: str
    type: str
    message: str


class QualityManyResult(_Model):
    """What measuring several variants in one go gave, in the order asked."""

    kind: Literal["quality-many"] = "quality-many"
    outcomes: list[Annotated[QualityResult | QualityFailure, Field(discriminator="kind")]]


class SpeedTest(_Model):
    """One test of llama-bench with its field names; speeds in tokens per second, times in ns."""

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    n_gpu_layers: int
    flash_attn: str
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int]
    samples_ts: list[float]
    peak_memory_bytes: int | None = Field(
        default=None, description="peak resident memory of the process during this test (VmHWM); null for an import"
    )
    peak_vram_bytes: int | None = Field(default=None, description="VRAM of this process, by NVML, if any")


class SpeedResult(_Model):
    """The speed tests of one variant in one environment."""

    kind: Literal["speed"] = "speed"
    tests: list[SpeedTest]
    environment: Environment
    imported: Imported | None = None


class BaselineResult(_Model):
    """What recording a baseline gave besides the artifact itself."""

    kind: Literal["baseline"] = "baseline"
    path: str
    format: BaselineFormat
    size_bytes: int
    sha256: str
    head_path: str | None = Field(default=None, description="the reference's output head, with format 'states'")
    head_bytes: int | None = None
    self_check: float | None = Field(
        default=None, description="mean KLD (nats) of rebuilt logits from true ones, with format 'states'"
    )
    fallback: str | None = Field(default=None, description="why full logits were kept though states were asked for")
    reference_sha256: str
    ppl: Estimate = Field(description="the reference's own perplexity, exact")
    n_ctx: int
    n_vocab: int
    n_chunks: int
    n_tokens: int
    environment: Environment


class QuantizeResult(_Model):
    """A quantized file made by llama.cpp's own quantizer."""

    kind: Literal["quantize"] = "quantize"
    path: str
    file_type: str
    size_bytes: int


class BaselineCheck(_Model):
    """What a look at a baseline found; nothing is wrong with it, or there would be an error instead."""

    kind: Literal["baseline-check"] = "baseline-check"
    path: str
    format: BaselineFormat = "logits"
    size_bytes: int
    n_ctx: int
    n_vocab: int
    n_chunks: int
    n_tokens: int
    companion: bool = Field(description="whether checksums, vocabulary and exact base NLL stand beside it")
    reference_sha256: str | None = None
    ppl: Estimate | None = Field(default=None, description="the reference's exact perplexity, where known")
    self_check: float | None = Field(
        default=None, description="mean KLD (nats) of rebuilt from true logits on the sample rows, of a states baseline"
    )


Result = Annotated[
    QualityResult | QualityManyResult | SpeedResult | BaselineResult | BaselineCheck | QuantizeResult,
    Field(discriminator="kind"),
]


class Machine(_Model):
    """How a job may use the machine; none of it is meant to change a quality figure."""

    n_threads: int = Field(default=0, description="0: the physical cores")
    n_gpu_layers: int = Field(default=-1, description="-1: all that fit the device")


class _Run(_Model):
    """How a model is run, whatever is measured of it; what the specs of all measurements share."""

    n_batch: int = 2048
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = "auto"
    machine: Machine = Machine()


class BaselineSpec(_Run):
    """Record ``reference`` over ``corpus`` into ``out``."""

    kind: Literal["baseline"] = "baseline"
    reference: str
    corpus: str
    out: str
    format: BaselineFormat = "logits"
    fallback: bool = Field(default=True, description="keep full logits where states can't be had, instead of failing")
    n_ctx: int = 512
    chunks: int = -1


class _Quality(_Run):
    """How variants are scored; what the specs for one and for several share."""

    baseline: str
    chunks: int = -1
    as_llama_cpp: bool = Field(
        default=False,
        description="llama-perplexity's clipped figures from a states baseline, the unclipped beside them",
    )
    checkpoint: str | None = Field(default=None, description="where to keep what is done, to resume after a kill")
    overlap: bool | None = Field(
        default=None, description="score rows while the next batch is decoded; null: where a GPU decodes"
    )
    protocol: Protocol | None = None


class QualitySpec(_Quality):
    """Measure ``model`` against ``baseline``."""

    kind: Literal["quality"] = "quality"
    model: str
    tokens_out: str | None = Field(default=None, description="where to write the per-token sidecar (parquet)")
    model_sha256: str | None = Field(default=None, description="the model's identity, where the asker knows it")


class QualityManySpec(_Quality):
    """Measure several variants of one model in one go: they share the corpus, the baseline's reads and its head."""

    kind: Literal["quality-many"] = "quality-many"
    models: list[str] = Field(min_length=1)
    tokens_out: list[str] | None = Field(default=None, description="a sidecar's path for each model")


class SpeedSpec(_Run):
    """Time ``model`` as llama-bench does."""

    kind: Literal["speed"] = "speed"
    model: str
    n_prompt: list[int] = [512]
    n_gen: list[int] = [128]
    n_pg: list[tuple[int, int]] = Field(default=[], description="prompt and generation under one clock, as pairs")
    n_depth: list[int] = Field(default=[0], description="tokens in the KV cache before a test begins")
    repetitions: int = Field(default=5, ge=1)


class QuantizeSpec(_Model):
    """Make ``out`` from ``model`` with llama.cpp's quantizer (for the demo: its quants are made on the spot)."""

    kind: Literal["quantize"] = "quantize"
    model: str
    out: str
    file_type: str
    machine: Machine = Machine()


class BaselineToolSpec(_Model):
    """Verify a baseline; or bring a foreign ``.kld`` in (with ``reference``, for its vocabulary) or ours out."""

    kind: Literal["baseline-tool"] = "baseline-tool"
    action: Literal["verify", "import", "export"]
    path: str
    out: str | None = None
    reference: str | None = None
    machine: Machine = Machine()


JobSpec = Annotated[
    BaselineSpec | QualitySpec | QualityManySpec | SpeedSpec | BaselineToolSpec | QuantizeSpec,
    Field(discriminator="kind"),
]


class ProgressEvent(_Model):
    """How far a job is: one JSON line on the measuring process's stdout."""

    event: Literal["progress"] = "progress"
    stage: str
    done: int
    total: int
    note: str = ""


class ErrorEvent(_Model):
    """Why a job ended without a result; ``type`` names a class of :mod:`core.errors`."""

    event: Literal["error"] = "error"
    type: str
    message: str


class ResultEvent(_Model):
    """The job's result: its last line."""

    event: Literal["result"] = "result"
    version: int = CONTRACT_VERSION
    result: Result


Event = Annotated[ProgressEvent | ErrorEvent | ResultEvent, Field(discriminator="event")]

job_spec_adapter: TypeAdapter[Any] = TypeAdapter(JobSpec)
event_adapter: TypeAdapter[Any] = TypeAdapter(Event)
result_adapter: TypeAdapter[Any] = TypeAdapter(Result)
