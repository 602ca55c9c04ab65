"""The figures that measurements give, as typed values. Probabilities are fractions; KLD and ln(PPL) are in nats."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Figures(BaseModel):
    """What all of them are: strict about unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Estimate(Figures):
    """A mean with its standard error (llama-perplexity's ±)."""

    value: float
    stderr: float


class KLD(Figures):
    """KL divergence (nats) of the variant's next-token distribution from the baseline's, over scored tokens."""

    mean: float
    stderr: float
    max: float
    p99_9: float
    p99: float
    p95: float
    p90: float
    median: float
    p10: float
    p5: float
    p1: float
    p0_1: float
    min: float


class DeltaP(Figures):
    """Change of the probability given to the actual next token (fractions; negative: less likely)."""

    mean: float
    stderr: float
    rms: float
    rms_stderr: float
    max: float
    p99_9: float
    p99: float
    p95: float
    p90: float
    p75: float
    median: float
    p25: float
    p10: float
    p5: float
    p1: float
    p0_1: float
    min: float


class ExactBase(Figures):
    """The comparison with the base's true NLL, kept while recording: the 16-bit base file clips it."""

    ppl_base: Estimate
    ln_ppl_ratio: Estimate
    ppl_ratio: Estimate


class Interval(Figures):
    """A 95 % confidence interval."""

    low: float
    high: float


class ChunkIntervals(Figures):
    """95 % intervals that respect that the tokens of one chunk are correlated: chunks are the sample, not tokens.

    llama-perplexity's ± takes tokens for independent, and so is too narrow.
    """

    n_chunks: int
    kld_mean: Interval
    kld_p99_9: Interval = Field(description="by bootstrap of chunks")
    ln_ppl_ratio: Interval
    same_top: Interval


class Bucket(Figures):
    """Tokens at which the baseline gave its favourite a probability of ``low`` (included) to ``high``."""

    low: float
    high: float
    n_tokens: int
    kld_mean: float
    kld_p99: float
    same_top: float


class Imported(Figures):
    """A figure measured elsewhere and read from another tool's output; it never counts as measured here."""

    tool: Literal["llama-perplexity", "llama-bench"]
    source: str = Field(description="name of the file it was read from")
    sha256: str


class Timings(Figures):
    """Where a run's time went (seconds); what is overlapped is counted twice, so parts may exceed the whole."""

    load: float = 0.0
    decode: float = 0.0
    head: float = Field(default=0.0, description="rebuilding the baseline's logits from its states")
    score: float = Field(default=0.0, description="waiting for rows to be scored, reads of the base included")
    wall: float = 0.0
