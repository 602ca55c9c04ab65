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
#: ``retracted``: measured, and withdrawn since for ``reason``; the figures stay visible, and rank nowhere.
RowState = Literal["measured", "stale", "failed", "waiting", "no-reference", "retracted"]
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

    schema_version: int = Field(default=SCHEMA_VERSION, description="of this schema")
    id: str = Field(description="16 hex digits, stable for (repo, variant key, protocol)")
    repo_id: str = Field(description="the repo on the Hub")
    owner: str = Field(description="the repo's owner, who uploaded the file")
    variant: str = Field(description="file name in the repo, without a shard number")
    first_file: str | None = Field(default=None, description="path of the file, or of the first of its shards")
    n_files: int = Field(default=1, description="files it is split into")
    label: str = Field(description="quantization label, e.g. Q4_K_M")
    variant_key: str = Field(description="LFS sha256, or the fingerprint of the shards' sha256s")
    revision: str = Field(description="the repo's commit at which the files were read")
    state: RowState = Field(
        description="measured, waiting; stale: the file was replaced or removed since; failed: measuring it ended in "
        "reason (INVALID logits, a crash); no-reference: nothing to measure its quality against; retracted: measured, "
        "and withdrawn since for reason"
    )
    reason: str | None = Field(default=None, description="why it is not measured, or what is to be said of it")
    is_reference: bool = Field(description="this row is the reference measured against its own baseline")
    base_model: str | None = Field(default=None, description="the model that it was made from, as a repo on the Hub")
    architecture: str | None = Field(default=None, description="from its header")
    file_type: str | None = Field(default=None, description="from its header")
    size_bytes: int = Field(description="of all its files")
    n_params: int | None = Field(default=None, description="from its header")
    bpw: float | None = Field(default=None, description="bits per weight, over all tensors")
    imatrix_file: str | None = Field(default=None, description="the importance matrix that its header names")
    n_ctx_train: int | None = Field(default=None, description="context length that the model was trained for, tokens")
    kv_bytes_per_token: int | None = Field(
        default=None, description="bytes of KV cache per token of context, in f16, if every layer sees all of it"
    )
    memory_8k_bytes: int | None = Field(
        default=None,
        description="estimated memory with 8,192 tokens of context (f16 cache) and everything on one device: weights, "
        "cache, buffers",
    )
    inspection_json: str | None = Field(
        default=None, description="what its header holds: tensor types by group, imatrix, shape (core.inspection)"
    )
    flags: str = Field(default="[]", description="JSON list of {code, detail}")
    protocol_name: str = Field(description="for people; the fingerprint is what counts")
    protocol_fingerprint: str = Field(description="KLDs compare only where it is the same")
    protocol_json: str = Field(description="the whole protocol")
    reference_repo: str | None = Field(default=None, description="where its reference is")
    reference_variant: str | None = Field(default=None, description="the reference's file")
    reference_key: str | None = Field(
        default=None, description="the reference's variant_key; KLDs compare only where it is the same"
    )
    reference_kind: ReferenceKind | None = Field(
        default=None,
        description="by what right that is the reference: own (unquantized, same repo), base-owner, trusted, proven "
        "(its sampled weights are the base model's), q8_0 (itself quantized: figures flatter), none",
    )
    reference_reason: str | None = Field(default=None, description="the same as a sentence, or why there is none")
    noise_floor: float | None = Field(default=None, description="mean KLD of the reference against its own baseline")
    n_ctx: int | None = Field(default=None, description="tokens per chunk")
    n_chunks: int | None = Field(default=None, description="chunks measured")
    n_tokens: int | None = Field(default=None, description="tokens scored")
    ppl: float | None = Field(default=None, description="perplexity")
    ppl_stderr: float | None = Field(default=None, description="its standard error")
    ppl_base: float | None = Field(default=None, description="exact, from the recording run")
    ppl_ratio: float | None = Field(default=None, description="to the reference's, the exact one where that is known")
    ppl_ratio_stderr: float | None = Field(default=None, description="its standard error")
    ppl_cor: float | None = Field(default=None, description="correlation of ln PPL with the reference's")
    kld_mean: float | None = Field(default=None, description="mean KL divergence from the reference")
    kld_stderr: float | None = Field(default=None, description="its standard error")
    kld_median: float | None = Field(default=None, description="half of the tokens lie below")
    kld_p99: float | None = Field(default=None, description="one token in a hundred lies above")
    kld_p99_9: float | None = Field(default=None, description="one token in a thousand lies above")
    kld_max: float | None = Field(default=None, description="the worst token")
    same_top: float | None = Field(default=None, description="share of tokens where both hold the same one most likely")
    same_top_stderr: float | None = Field(default=None, description="its standard error")
    delta_p_rms: float | None = Field(
        default=None, description="root mean square change of the right token's probability"
    )
    n_prompt: int | None = Field(default=None, description="tokens of the prompt test")
    pp_ts: float | None = Field(default=None, description="speed of reading a prompt")
    pp_ts_stddev: float | None = Field(default=None, description="standard deviation of its repetitions")
    n_gen: int | None = Field(default=None, description="tokens of the generation test")
    tg_ts: float | None = Field(default=None, description="speed of generating")
    tg_ts_stddev: float | None = Field(default=None, description="standard deviation of its repetitions")
    peak_memory_bytes: int | None = Field(
        default=None, description="peak of resident memory while the speed was measured"
    )
    peak_vram_bytes: int | None = Field(default=None, description="the same of GPU memory")
    environment_fingerprint: str | None = Field(default=None, description="speeds compare only where it is the same")
    environment_json: str | None = Field(default=None, description="the machine and the build of llama.cpp")
    quality_json: str | None = Field(default=None, description="the whole QualityResult")
    speed_json: str | None = Field(default=None, description="the whole SpeedResult")
    tasks_json: str | None = Field(
        default=None, description="JSON list of {task, score, stderr, n}: score and stderr as fractions of n items"
    )
    quality_imported: str | None = Field(
        default=None, description="the tool whose output the quality figures were read from; null: measured here"
    )
    speed_imported: str | None = Field(default=None, description="the same for the speeds")
    tokens_path: str | None = Field(
        default=None,
        description="per-token figures in this dataset, named by the file's sha256; may follow with a later commit",
    )
    raw_path: str | None = Field(
        default=None, description="the results as stored (JSON) in this dataset, named by the file's sha256"
    )
    command: str | None = Field(default=None, description="the command that repeats the quality measurement")
    measured_at: datetime | None = Field(default=None, description="when the newest of its figures was measured")
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
