"""What a table is narrowed and ordered by: from addresses and API calls, checked, and as SQL with parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.dataset import RowState
from core.errors import InputError

#: What variants can be sorted by: a name in addresses and in the API, and the SQL behind it (nothing else reaches SQL).
SORTS: dict[str, tuple[str, ...]] = {
    "model": ("model", "protocol_name", "protocol_fingerprint", "kld_mean"),
    "label": ("label",),
    "repo": ("lower(repo_id)",),
    "owner": ("lower(owner)",),
    "bpw": ("bpw",),
    "size": ("size_bytes",),
    "kld_mean": ("kld_mean",),
    "kld_p99_9": ("kld_p99_9",),
    "same_top": ("same_top",),
    "ppl_ratio": ("ppl_ratio",),
    "pp": ("pp_ts",),
    "tg": ("tg_ts",),
    "memory": ("coalesce(peak_vram_bytes, peak_memory_bytes)",),
    "measured": ("measured_at",),
}
#: The same for base models.
MODEL_SORTS: dict[str, str] = {
    "model": "haystack",
    "variants": "n_variants",
    "measured": "n_measured",
    "uploaders": "n_uploaders",
    "failed": "n_failed",
    "params": "n_params",
    "kld": "closest_kld",
    "size": "near_bytes",
    "newest": "measured_at",
}
#: Characters of a name that are looked at; more is none.
_NAME = 300
_WORDS = 8

Show = Literal["all", "measured", "front", "failed", "disputed"]


class Filters(BaseModel):
    """Which variants; an empty string, None or False leaves all. Sizes in bytes.

    ``protocol`` is a fingerprint or a name, ``label`` a quantization (Q4_K_M), ``flag`` the code of an audit flag,
    ``show`` what they must be: measured here or elsewhere, on the Pareto front, failed (or retracted), disputed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=_NAME, allow_inf_nan=False)

    model: str = ""
    owner: str = ""
    repo: str = ""
    protocol: str = ""
    environment: str = ""
    label: str = ""
    flag: str = ""
    search: str = ""
    state: RowState | Literal[""] = ""
    show: Show = "all"
    min_bytes: int | None = Field(default=None, ge=0, le=1 << 50)
    max_bytes: int | None = Field(default=None, ge=0, le=1 << 50)
    max_kld: float | None = Field(default=None, ge=0)
    include_stale: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Filters:
        """Checked filters.

        Raises:
            InputError: one of them can't be, with a sentence that names it.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as wrong:
            first = wrong.errors(include_url=False, include_input=False, include_context=False)[0]
            name = "/".join(str(part)[:40] for part in first["loc"]) or "filters"
            raise InputError(f"The parameter {name} can't be used: {first['msg']}.") from None

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Filters:
        """The filters that an address asks for; whatever can't be understood is left out."""
        found = cls()
        for name in cls.model_fields:
            if (value := query.get(name)) not in (None, ""):
                try:
                    found = cls.model_validate(found.model_dump() | {name: value})
                except ValidationError:
                    continue
        return found

    def to_query(self) -> dict[str, str]:
        """What goes into an address: only what was chosen."""
        return {
            name: "1" if value is True else str(value) for name, value in self.model_dump(exclude_defaults=True).items()
        }

    def where(self) -> tuple[str, list[Any]]:
        """The condition and its values. Every value is a parameter; a search is text, its % and _ are no patterns."""
        clauses, values = ["true"], list[Any]()

        def add(clause: str, *more: Any) -> None:
            clauses.append(clause)
            values.extend(more)

        for column, value in (
            ("model", self.model),
            ("owner", self.owner),
            ("repo_id", self.repo),
            ("label", self.label),
            ("state", self.state),
        ):
            if value:
                add(f"{column} = ?", value)
        if self.protocol:
            add("(protocol_fingerprint = ? OR protocol_name = ?)", self.protocol, self.protocol)
        if self.environment:
            add("starts_with(coalesce(environment_fingerprint, ''), ?)", self.environment)
        if self.flag:
            add("contains(flags, ?)", f'"{self.flag}"')
        for word in self.search.lower().split()[:_WORDS]:
            add("contains(haystack, ?)", word)
        if self.min_bytes is not None:
            add("size_bytes >= ?", self.min_bytes)
        if self.max_bytes is not None:
            add("size_bytes <= ?", self.max_bytes)
        if self.max_kld is not None:
            add("kld_mean <= ?", self.max_kld)
        if self.show != "all":
            add(_SHOWN[self.show])
        if not self.include_stale and self.state != "stale":
            add("state <> 'stale'")
        return " AND ".join(clauses), values


_SHOWN: dict[str, str] = {
    "measured": "kld_mean IS NOT NULL AND state = 'measured'",
    "front": "on_front",
    "failed": "state IN ('failed', 'retracted')",
    "disputed": "disputed IS NOT NULL",
}
assert set(_SHOWN) == set(get_args(Show)) - {"all"}


def order_by(sort: str, *, default: str = "model") -> str:
    """The SQL order of variants for ``kld_mean`` or, descending, ``-kld_mean``; an unknown one is the default."""
    name, direction = sort.removeprefix("-"), "DESC" if sort.startswith("-") else "ASC"
    keys = SORTS.get(name)
    if keys is None:
        keys, direction = SORTS[default], "ASC"
    return ", ".join(f"{key} {direction} NULLS LAST" for key in keys) + ", size_bytes, id"


def order_models_by(sort: str) -> str:
    """The SQL order of base models, likewise; by default those with the most variants first."""
    name = sort.removeprefix("-")
    if name not in MODEL_SORTS:
        return "n_variants DESC, haystack"
    return f"{MODEL_SORTS[name]} {'DESC' if sort.startswith('-') else 'ASC'} NULLS LAST, haystack"
