"""What the views and the API get: typed, small, and the same whatever the dataset holds.

Sizes in bytes, KLD in nats, shares as fractions, speeds in tokens/s, times UTC. Strings are those of the dataset,
shortened, but not escaped: whoever shows them escapes them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.dataset import ReferenceKind, RowState
from core.picks import Hardware


class Shape(BaseModel):
    """A value that views and API share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataStatus(Shape):
    """What is shown, how old it is, and what went wrong since."""

    name: str = Field(description="the dataset, or the folder")
    revision: str | None
    published_at: datetime | None
    checked_at: datetime | None
    age_s: float | None = Field(description="seconds since it was published")
    n_rows: int
    n_models: int
    n_left_out: int = Field(description="rows that could not be read")
    error: str | None = Field(description="why the newest state could not be taken; null: it is shown")
    line: str = Field(description="all that as a line of text")


class Value(Shape):
    """A figure with its standard error and 95 % interval, where known."""

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None


class FlagNote(Shape):
    """A finding of the audit."""

    code: str
    detail: str


class VariantRow(Shape):
    """One variant under one protocol, as tables show it."""

    id: str
    model: str = Field(description="base model, or the repo where none is known")
    repo_id: str
    owner: str
    variant: str
    label: str
    state: RowState
    reason: str | None
    disputed: str | None
    is_reference: bool
    reference_kind: ReferenceKind | None
    size_bytes: int
    bpw: float | None
    kld_mean: Value | None
    kld_p99_9: float | None
    same_top: Value | None
    ppl_ratio: Value | None
    n_prompt: int | None
    n_gen: int | None
    pp_ts: float | None
    pp_ts_stddev: float | None
    tg_ts: float | None
    tg_ts_stddev: float | None
    peak_memory_bytes: int | None
    peak_vram_bytes: int | None
    memory_8k_bytes: int | None
    flags: list[FlagNote]
    on_front: bool = Field(description="no comparable file of this size or smaller has a lower KLD")
    tied_with: str | None = Field(description="the next closer file, where they can't be told apart")
    tied_id: str | None
    ranked: bool
    apart: bool = Field(description="its environment's noise floor is too high to rank it with the others")
    quality_imported: str | None
    speed_imported: str | None
    protocol: str
    protocol_name: str
    environment: str | None = Field(description="first 16 digits of its fingerprint")
    hardware: Hardware | None
    has_tokens: bool = Field(description="whether it can be paired with another on the same tokens")
    measured_at: datetime | None


class Facet(Shape):
    """A value to filter by, and how many variants hold it."""

    key: str
    label: str
    n: int


class Facets(Shape):
    """What the variants that match can be narrowed by; at most 100 of each, the most frequent first."""

    models: list[Facet] = []
    owners: list[Facet] = []
    labels: list[Facet] = []
    protocols: list[Facet] = []
    environments: list[Facet] = []


class Paged(Shape):
    """Where a page stands; pages count from 1."""

    total: int
    page: int
    pages: int
    per_page: int


class VariantsPage(Paged):
    """One page of variants."""

    rows: list[VariantRow]


class ModelRow(Shape):
    """One base model. ``closest``, ``near`` (the smallest that is practically the original) are ranked files."""

    model: str
    known: bool = Field(description="false: no base model is known, and this is a repo")
    architecture: str | None
    n_params: int | None
    n_variants: int
    n_measured: int
    n_failed: int
    n_uploaders: int
    n_repos: int
    least_bytes: int | None
    most_bytes: int | None
    closest_id: str | None
    closest_label: str | None
    closest_owner: str | None
    closest_kld: float | None
    near_id: str | None
    near_label: str | None
    near_owner: str | None
    near_bytes: int | None
    measured_at: datetime | None


class ModelsPage(Paged):
    """One page of base models."""

    rows: list[ModelRow]


class Owner(Shape):
    """An uploader's files in numbers."""

    owner: str
    n_variants: int
    n_measured: int
    n_failed: int
    n_models: int
    n_repos: int
    on_front: int = Field(description="files on a Pareto front")
    measured_at: datetime | None


class ModelPage(Shape):
    """A base model with one page of its variants."""

    model: ModelRow
    variants: VariantsPage
    facets: Facets


class OwnerPage(Shape):
    """An uploader with one page of their variants."""

    owner: Owner
    variants: VariantsPage
    facets: Facets


class Hit(Shape):
    """Something found by name."""

    kind: Literal["model", "owner", "repo", "variant"]
    key: str = Field(description="a model, owner or repo; of a variant its id")
    label: str
    n: int


class Hits(Shape):
    """What was found by name, models before files."""

    hits: list[Hit]


class Point(Shape):
    """A variant as plots draw it; ``tg`` only beside others of the same environment."""

    id: str
    name: str
    owner: str
    size_bytes: int
    kld: float
    kld_stderr: float | None
    kld_p99_9: float | None
    tg: float | None
    environment: str | None
    on_front: bool
    on_speed_front: bool
    group: int = Field(description="points of the same number may be compared")


class Measurement(Shape):
    """Everything that is known of one variant: ``row`` holds all columns, JSON ones parsed into the others."""

    variant: VariantRow
    row: dict[str, Any]
    quality: dict[str, Any] | None
    speed: dict[str, Any] | None
    tasks: list[Any] | None
    inspection: dict[str, Any] | None
    protocol: dict[str, Any] | None
    environment: dict[str, Any] | None
    command: str | None
    raw_url: str | None
    tokens_url: str | None


class Gap(Shape):
    """One figure of both variants and A − B; ``measurable``: the difference is more than chance explains."""

    name: Literal["kld_mean", "ln_ppl", "same_top"]
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    measurable: bool


class Compared(Shape):
    """Two variants side by side.

    ``how``: paired on the same tokens, by their separate intervals, or not comparable (``sentence`` says why).
    """

    a: VariantRow
    b: VariantRow
    how: Literal["paired", "intervals", "incomparable"]
    sentence: str
    gaps: list[Gap]
    n_chunks: int | None
    n_tokens: int | None
    notes: list[str]


class Picked(Shape):
    """The answer to 'which file for me?'."""

    model: str
    best: VariantRow | None
    because: str
    runner_up: VariantRow | None
    runner_up_because: str
    need_bytes: int | None = Field(description="memory that the best needs at that context, estimated")
    equal: list[str] = Field(description="other files that fit and can't be told from the best")
    n_fit: int
    n_options: int
    notes: list[str]
