"""Protocols: everything the asker chooses that changes a figure, named, versioned and fingerprinted."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from core.canonical import fingerprint

#: Version of how rows are scored. A change that moves any figure raises it.
SCORING_VERSION = 1


class Corpus(BaseModel):
    """The text that is measured on: its name for people, its sha256 as identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file's bytes")


class Protocol(BaseModel):
    """One way of measuring. Two figures may be compared only if their protocols' fingerprints are equal.

    Defaults are llama-perplexity's and llama-bench's own, so that a figure here is a figure there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "wiki512"
    version: int = 1
    corpus: Corpus
    n_ctx: int = Field(default=512, ge=8, description="tokens per chunk")
    chunks: int = Field(default=-1, description="chunks measured; -1: all that the corpus holds")
    n_batch: int = Field(default=2048, ge=1, description="logical batch, tokens")
    n_ubatch: int = Field(default=512, ge=1, description="physical batch, tokens")
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = Field(default="auto", pattern="^(auto|on|off)$")
    n_prompt: int = Field(default=512, description="tokens of the prompt-processing speed test")
    n_gen: int = Field(default=128, description="tokens of the generation speed test")
    repetitions: int = Field(default=5, ge=1, description="timed repetitions of each speed test")
    scoring_version: int = SCORING_VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of this protocol (64 hex digits)."""
        return fingerprint(self.model_dump(mode="json"))


class CorpusSource(BaseModel):
    """Where a named corpus is fetched from: a dataset repo on the Hub and a file in it (a zip's member if any)."""

    model_config = ConfigDict(frozen=True)

    repo_id: str
    filename: str
    member: str | None = None


#: The corpus of the default protocol: wikitext-2-raw-v1's test split, from where llama.cpp's own script takes it.
WIKITEXT2_TEST = Corpus(
    name="wikitext-2-raw-v1 test",
    sha256="173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
)

CORPUS_SOURCES: dict[str, CorpusSource] = {
    WIKITEXT2_TEST.sha256: CorpusSource(
        repo_id="ggml-org/ci", filename="wikitext-2-raw-v1.zip", member="wikitext-2-raw/wiki.test.raw"
    ),
}
