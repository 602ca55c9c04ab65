"""Protocols: everything the asker chooses that changes a figure, named, versioned and fingerprinted."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from core.canonical import fingerprint

#: Version of how rows are scored. A change that moves any figure raises it.
SCORING_VERSION = 1

#: Whose arithmetic a KLD follows: llama-perplexity's (clipped 16 nats below each maximum), or none but the formula's.
Scoring = Literal["llama-cpp", "unclipped"]
#: What llama.cpp can keep its KV cache in; those after the three floats are quantized.
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
KV_TYPES: tuple[str, ...] = get_args(KvType)
_INT32 = 2**31 - 1


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
    version: int = Field(default=1, ge=1, le=_INT32)
    corpus: Corpus
    n_ctx: int = Field(default=512, ge=8, le=_INT32, description="tokens per chunk")
    chunks: int = Field(default=-1, ge=-1, le=_INT32, description="chunks measured; -1: all that the corpus holds")
    n_batch: int = Field(default=2048, ge=1, le=_INT32, description="logical batch, tokens")
    n_ubatch: int = Field(default=512, ge=1, le=_INT32, description="physical batch, tokens")
    type_k: KvType = Field(default="f16", description="what the K cache is kept in")
    type_v: KvType = Field(default="f16", description="what the V cache is kept in")
    flash_attn: Literal["auto", "on", "off"] = "auto"
    n_prompt: int = Field(default=512, ge=0, le=_INT32, description="tokens of the prompt-processing speed test")
    n_gen: int = Field(default=128, ge=0, le=_INT32, description="tokens of the generation speed test")
    n_depth: int = Field(default=0, ge=0, le=_INT32, description="tokens in the KV cache before each speed test begins")
    repetitions: int = Field(default=5, ge=1, le=_INT32, description="timed repetitions of each speed test")
    scoring: Scoring = Field(
        default="llama-cpp",
        description="whose arithmetic a KLD follows: llama-perplexity's, clipped 16 nats below each maximum, or the "
        "true one ('unclipped'), which needs a baseline that holds states",
    )
    scoring_version: int = SCORING_VERSION

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.chunks == 0:
            raise ValueError("chunks: 0 measures nothing; give at least 1, or -1 for all that the corpus holds")
        if self.n_batch > self.n_ctx and self.n_batch % self.n_ctx:
            raise ValueError(f"n_batch {self.n_batch} must be smaller than n_ctx {self.n_ctx} or a multiple of it")
        if self.type_v in KV_TYPES[3:] and self.flash_attn == "off":
            raise ValueError(f"type_v: a V cache in {self.type_v} needs flash attention; set flash_attn to on or auto")
        if not self.n_prompt and not self.n_gen:
            raise ValueError("n_prompt and n_gen are both 0, so there is no speed to measure")
        return self

    @model_serializer(mode="wrap")
    def _as_json(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        return {name: value for name, value in found.items() if name not in _LATER or value != _LATER[name]}

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of this protocol (64 hex digits)."""
        return fingerprint(self.model_dump(mode="json"))


#: Fields that came after the first figures were stored, each with what every protocol did before: with that value
#: they stay out of a protocol's JSON, so that its fingerprint is the one that figures of before are stored under.
_LATER: dict[str, Any] = {"n_depth": 0, "scoring": "llama-cpp"}


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusSource(_Source):
    """A corpus on the Hub: a dataset repo and a file in it (a zip's member if any)."""

    repo_id: str
    filename: str
    member: str | None = None

    @property
    def basename(self) -> str:
        """The text's own file name."""
        return PurePath(self.member or self.filename).name


class LocalSource(_Source):
    """A corpus that lies on this machine."""

    path: str

    @property
    def basename(self) -> str:
        """The text's own file name."""
        return PurePath(self.path).name


class PackageSource(_Source):
    """A corpus that ships with us, as a data file of one of our packages."""

    package: str
    filename: str

    @property
    def basename(self) -> str:
        """The text's own file name."""
        return self.filename


Source = CorpusSource | LocalSource | PackageSource

#: The corpus of the default protocol: wikitext-2-raw-v1's test split, from where llama.cpp's own script takes it.
WIKITEXT2_TEST = Corpus(
    name="wikitext-2-raw-v1 test",
    sha256="173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
)
#: The text that the demo's model was not trained on.
DEMO_TEXT = Corpus(
    name="CPython documentation, held out",
    sha256="6ff5cfb4cd0c1749ddd7d8bb20caeec288263da7415fe9584923e706a23e8f69",
)

#: Where the text with a sha256 is taken from. It is no part of a protocol: where a text lies changes no figure.
CORPUS_SOURCES: dict[str, Source] = {
    WIKITEXT2_TEST.sha256: CorpusSource(
        repo_id="ggml-org/ci", filename="wikitext-2-raw-v1.zip", member="wikitext-2-raw/wiki.test.raw"
    ),
    DEMO_TEXT.sha256: PackageSource(package="localhub.demo_model", filename="heldout.txt"),
}

#: The protocols that everyone has, by name.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="wiki512", corpus=WIKITEXT2_TEST),
        Protocol(name="wiki512-100", corpus=WIKITEXT2_TEST, chunks=100),
        Protocol(name="wiki2048", corpus=WIKITEXT2_TEST, n_ctx=2048),
        Protocol(name="demo", corpus=DEMO_TEXT, chunks=40, repetitions=3),
    )
}
