"""The results dataset: one row per variant and protocol, written by the bot as parquet, read by the Space.

The schema is versioned; a reader takes the columns it knows and leaves the rest alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
#: Where the parquet file stands in the dataset repo.
MEASUREMENTS_PATH = "data/measurements.parquet"

#: ``no-reference``: its quality can't be measured for want of one; its speed may be.
RowState = Literal["measured", "stale", "failed", "waiting", "no-reference"]
#: By what right a file is a variant's reference: unquantized and of its own repo, by the base model's owner, by an
#: owner that the operator trusts, proven to have the base model's weights; or only a Q8_0; or there is none.
ReferenceKind = Literal["own", "base-owner", "trusted", "proven", "q8_0", "none"]


class DatasetRow(BaseModel):
    """One variant under one protocol. Sizes in bytes, KLD in nats, shares as fractions, speeds in tokens/s.

    Figures are null where they were not measured; ``state`` and ``reason`` say why. ``stale``: the file was
    replaced since under the same name. ``failed``: measuring it ended in ``reason`` (INVALID logits, a crash).
    ``no-reference``: there is nothing to measure its quality against.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    id: str = Field(description="16 hex digits, stable for (repo, variant key, protocol)")
    repo_id: str
    owner: str
    variant: str = Field(description="file name in the repo, without a shard number")
    first_file: str | None = Field(default=None, description="path of the file, or of the first of its shards")
    n_files: int = Field(default=1, description="files it is split into")
    label: str = Field(description="quantization label, e.g. Q4_K_M")
    variant_key: str = Field(description="LFS sha256, or the fingerprint of the shards' sha256s")
    revision: str = Field(description="the repo's commit at which the files were read")
    state: RowState
    reason: str | None = None
    is_reference: bool = Field(description="this row is the reference measured against its own baseline")
    base_model: str | None = None
    architecture: str | None = None
    file_type: str | None = None
    size_bytes: int
    n_params: int | None = None
    bpw: float | None = None
    imatrix_file: str | None = None
    flags: str = Field(default="[]", description="JSON list of {code, detail}")
    protocol_name: str
    protocol_fingerprint: str
    protocol_json: str
    reference_repo: str | None = None
    reference_variant: str | None = None
    reference_key: str | None = None
    reference_kind: ReferenceKind | None = Field(
        default=None,
        description="by what right that is the reference: own (unquantized, same repo), base-owner, trusted, proven "
        "(its sampled weights are the base model's), q8_0 (itself quantized: figures flatter), none",
    )
    reference_reason: str | None = Field(default=None, description="the same as a sentence, or why there is none")
    noise_floor: float | None = Field(default=None, description="mean KLD of the reference against its own baseline")
    n_ctx: int | None = None
    n_chunks: int | None = None
    n_tokens: int | None = None
    ppl: float | None = None
    ppl_stderr: float | None = None
    ppl_base: float | None = Field(default=None, description="exact, from the recording run")
    ppl_ratio: float | None = None
    ppl_ratio_stderr: float | None = None
    ppl_cor: float | None = None
    kld_mean: float | None = None
    kld_stderr: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_p99_9: float | None = None
    kld_max: float | None = None
    same_top: float | None = None
    same_top_stderr: float | None = None
    delta_p_rms: float | None = None
    n_prompt: int | None = None
    pp_ts: float | None = None
    pp_ts_stddev: float | None = None
    n_gen: int | None = None
    tg_ts: float | None = None
    tg_ts_stddev: float | None = None
    peak_memory_bytes: int | None = None
    peak_vram_bytes: int | None = None
    environment_fingerprint: str | None = None
    environment_json: str | None = None
    quality_json: str | None = Field(default=None, description="the whole QualityResult")
    speed_json: str | None = Field(default=None, description="the whole SpeedResult")
    quality_imported: str | None = Field(
        default=None, description="the tool whose output the quality figures were read from; null: measured here"
    )
    speed_imported: str | None = Field(default=None, description="the same for the speeds")
    command: str | None = Field(default=None, description="the command that repeats the quality measurement")
    measured_at: datetime | None = None
    disputed: str | None = Field(
        default=None, description="what the repo's owner says against these figures; null: nothing"
    )

    @property
    def measured_here(self) -> bool:
        """Whether the bot measured any of its figures itself; others were imported."""
        quality = self.kld_mean is not None and self.quality_imported is None
        return quality or (self.tg_ts is not None and self.speed_imported is None)


class RequestAck(BaseModel):
    """The answer to somebody who asked for a benchmark."""

    accepted: bool
    message: str = Field(description="one sentence: what happens now, or why not")
    position: int | None = Field(default=None, description="jobs ahead of it in the queue")


class QueueRow(BaseModel):
    """One job as people see it."""

    id: int
    kind: str
    repo_id: str
    variant: str
    state: str
    reason: str | None = None
    progress: float | None = Field(default=None, description="share done, 0 to 1")
    position: int | None = None
    eta_s: float | None = Field(default=None, description="seconds until it is done; null: nothing was measured yet")
    updated_at: datetime
