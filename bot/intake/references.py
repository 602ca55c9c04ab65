"""Which reference a variant is measured against. Pure; trusted, not found (design decision 6)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bot.store.repos import Repo, Variant

#: Unquantized types, the best first: BF16 is what most models are trained in.
UNQUANTIZED = ("BF16", "F16", "F32")
#: Parameters may differ by this share (a head dropped or tied by the converter).
_PARAMS_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """A reference for a variant, or None with the reason, in a sentence."""

    reference: Variant | None
    reason: str


def unquantized_type(variant: Variant) -> str | None:
    """The type of a variant that keeps practically all weights unquantized, else None.

    Decided by its tensors, not its name: the label is not the mixture.
    """
    found = variant.inspection
    if found is None or found.n_params == 0:
        return None
    params = {kind: share.params for kind, share in found.tensor_types.items()}
    if sum(params.get(kind, 0) for kind in UNQUANTIZED) < found.n_params:
        return None
    return max((kind for kind in UNQUANTIZED if kind in params), key=lambda kind: params[kind])


def same_model(a: Variant, b: Variant) -> bool:
    """Whether two variants can be files of the same model: architecture, vocabulary size, parameters."""
    x, y = a.inspection, b.inspection
    if x is None or y is None:
        return False
    close = abs(x.n_params - y.n_params) <= _PARAMS_SLACK * max(x.n_params, y.n_params)
    return x.architecture is not None and x.architecture == y.architecture and x.n_vocab == y.n_vocab and close


def _stem(variant: Variant) -> str:
    """A variant's file name without its label: the model's name, where a repo holds several models."""
    name = PurePosixPath(variant.name).name.lower().removesuffix(".gguf")
    return name.removesuffix(variant.label.lower()).rstrip("-._")


def _same_name(a: str | None, b: str | None) -> bool:
    """Whether two repo ids are the same one; the Hub takes either case."""
    return a is not None and b is not None and a.lower() == b.lower()


def choose(
    variant: Variant,
    repo: Repo,
    *,
    variants: Sequence[Variant],
    repos: dict[str, Repo],
    trusted: Collection[str],
) -> Choice:
    """The reference of ``variant``: its own repo's first, then that of a trusted owner for the same base model.

    Args:
        variants: all current variants of all repos.
        repos: all repos by id.
        trusted: owners whose references serve other uploaders, besides the base model's own owner.
    """
    candidates = [
        other for other in variants if other.note is None and unquantized_type(other) and same_model(other, variant)
    ]

    def best(among: list[Variant]) -> Variant | None:
        order = {kind: rank for rank, kind in enumerate(UNQUANTIZED)}
        stem = _stem(variant)
        return min(among, key=lambda v: (_stem(v) != stem, order[unquantized_type(v) or "F32"], v.name), default=None)

    if own := best([other for other in candidates if other.repo_id == variant.repo_id]):
        return Choice(own, f"{own.label} of the same repo")
    if repo.base_model is None:
        return Choice(None, "No BF16 or F16 file in this repo, and its card names no base_model.")
    owners = {repo.base_model.split("/")[0], *trusted}
    shared = [
        other
        for other in candidates
        if (home := repos.get(other.repo_id)) and _same_name(home.base_model, repo.base_model) and home.owner in owners
    ]
    if found := best(shared):
        return Choice(found, f"{found.label} of {found.repo_id}")
    return Choice(
        None,
        f"No BF16 or F16 file of {repo.base_model} in this repo, nor in one of its owner or a trusted owner that is "
        "watched here.",
    )
