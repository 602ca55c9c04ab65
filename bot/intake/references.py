"""Which reference a variant is measured against. Pure; trusted, not found (design decision 6)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bot.intake.base_models import Base
from bot.store.repos import Variant
from core.audit import Inspection
from core.dataset import ReferenceKind

#: Unquantized types, the best first: BF16 is what most models are trained in.
UNQUANTIZED = ("BF16", "F16", "F32")
_ORDER = {kind: rank for rank, kind in enumerate(UNQUANTIZED)}
#: Whose reference goes first, where it is not the repo's own.
_TRUST: dict[ReferenceKind, int] = {"base-owner": 0, "trusted": 1, "proven": 2}
#: Files of one architecture and vocabulary size that are considered: the best of all, and of those with the same stem.
_CONSIDERED = 32
#: Parameters may differ by this share (a head dropped or tied by the converter).
_PARAMS_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """A reference for a variant, or None with the reason, in a sentence.

    ``refused`` says why no quality can be measured though there is a reference.
    """

    reference: Variant | None
    reason: str
    kind: ReferenceKind = "none"
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """A variant that may be the reference of other uploaders' files of the same base model, and by what right."""

    variant: Variant
    kind: ReferenceKind


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


def is_q8_0(variant: Variant) -> bool:
    """Whether most of a variant's weights are Q8_0 and the others unquantized."""
    found = variant.inspection
    if found is None or found.n_params == 0:
        return False
    params = {kind: share.params for kind, share in found.tensor_types.items()}
    eight = params.get("Q8_0", 0)
    return 2 * eight > found.n_params and eight + sum(params.get(kind, 0) for kind in UNQUANTIZED) >= found.n_params


def same_model(a: Variant, b: Variant) -> bool:
    """Whether two variants can be files of the same model: architecture, vocabulary size, parameters."""
    x, y = a.inspection, b.inspection
    return x is not None and y is not None and _same_shape(x, y) and x.n_vocab == y.n_vocab


def _same_shape(x: Inspection, y: Inspection) -> bool:
    close = abs(x.n_params - y.n_params) <= _PARAMS_SLACK * max(x.n_params, y.n_params)
    return x.architecture is not None and x.architecture == y.architecture and close


def other_vocabulary(variant: Variant, reference: Variant) -> str | None:
    """A sentence when two files' tokens differ, so that their distributions can't be compared.

    The tokens' texts decide, as where they are measured; what an older audit did not note is found out there.
    """
    x, y = variant.inspection, reference.inspection
    if x is None or y is None or not x.vocab_sha256 or not y.vocab_sha256 or x.vocab_sha256 == y.vocab_sha256:
        return None
    return (
        f"Its vocabulary differs from the reference's ({reference.name}), so their token distributions can't be "
        "compared."
    )


def _stem(variant: Variant) -> str:
    """A variant's file name without its label: the model's name, where a repo holds several models."""
    name = PurePosixPath(variant.name).name.lower().removesuffix(".gguf")
    return name.removesuffix(variant.label.lower()).rstrip("-._")


class Offers:
    """What there is for the variants of one repo, put in order once: a repo may have ten thousand of them.

    Args:
        own: the current variants of the repo.
        shared: of other repos, what may serve everybody who has files of the same base model.
        base: that base model.
    """

    def __init__(self, *, own: Sequence[Variant], shared: Sequence[Shared], base: Base) -> None:
        self._base = base
        whole = [one for one in own if one.note is None]
        homes = {one.repo_id for one in own}
        self._models: dict[_Kind, list[Variant]] = defaultdict(list)
        for one in {one.key: one for one in reversed(whole)}.values():
            if (kind := _kind(one)) is not None:
                self._models[kind].append(one)
        for group in self._models.values():
            group.sort(key=_n_params)
        self._unquantized = _Group([Shared(one, "own") for one in whole], shared, homes, of=unquantized_type)
        self._q8_0 = _Group(
            [Shared(one, "own") for one in whole],
            [one for one in shared if one.kind != "proven"],
            homes,
            of=lambda one: "Q8_0" if is_q8_0(one) else None,
        )
        self._alike = next((one for one in whole if unquantized_type(one)), None)

    def choice(self, variant: Variant) -> Choice:
        """The reference of a variant: unquantized of its own repo, then a shared one, then as a last resort a Q8_0."""
        those = [one for one in self._unquantized.of(variant) if same_model(one.variant, variant)]
        fitting = [one for one in those if other_vocabulary(variant, one.variant) is None]
        if found := _best(fitting, variant):
            return Choice(found.variant, _reason(found, self._base), found.kind)
        if found := _best(those, variant):
            refused = other_vocabulary(variant, found.variant)
            return Choice(found.variant, _reason(found, self._base), found.kind, refused=refused)
        last = [
            one
            for one in self._q8_0.of(variant)
            if same_model(one.variant, variant) and other_vocabulary(variant, one.variant) is None
        ]
        # A Q8_0 alone would be measured against itself, and nothing else.
        if not self._others(variant):
            last = [one for one in last if one.kind != "own"]
        if found := _best(last, variant):
            whose = "the same repo" if found.kind == "own" else found.variant.repo_id
            return Choice(
                found.variant,
                f"{found.variant.label} of {whose}, itself quantized, for want of an unquantized file: figures against "
                "it flatter.",
                "q8_0",
            )
        return Choice(None, _none(variant, self._alike, self._base))

    def _others(self, variant: Variant) -> bool:
        """Whether the repo has two files of the variant's model, itself counted."""
        kind = _kind(variant)
        group = self._models.get(kind, []) if kind else []
        start = bisect_left(group, (1 - 2 * _PARAMS_SLACK) * _n_params(variant), key=_n_params)
        n = 0
        for one in group[start:]:
            if _n_params(one) > (1 + 2 * _PARAMS_SLACK) * _n_params(variant):
                break
            n += same_model(one, variant)
            if n > 1:
                return True
        return False


class _Group:
    """Possible references, few for each variant: the best by trust and type, and those whose names are like its own."""

    def __init__(
        self,
        own: Sequence[Shared],
        shared: Sequence[Shared],
        homes: Collection[str],
        *,
        of: Callable[[Variant], str | None],
    ) -> None:
        self._best: dict[_Kind, list[Shared]] = defaultdict(list)
        self._alike: dict[tuple[_Kind, str], list[Shared]] = defaultdict(list)
        self._others: dict[_Kind, list[Shared]] = defaultdict(list)
        ranked = sorted((one for one in own if of(one.variant)), key=_rank)
        for one in ranked:
            if (kind := _kind(one.variant)) is not None:
                for group in (self._best[kind], self._alike[kind, _stem(one.variant)]):
                    if len(group) < _CONSIDERED:
                        group.append(one)
        for one in sorted((one for one in shared if of(one.variant)), key=_rank):
            kind = _kind(one.variant)
            if kind is not None and one.variant.repo_id not in homes and len(self._others[kind]) < _CONSIDERED:
                self._others[kind].append(one)

    def of(self, variant: Variant) -> list[Shared]:
        """Those of a variant's architecture and vocabulary size."""
        kind = _kind(variant)
        if kind is None:
            return []
        alike = self._alike.get((kind, _stem(variant)), [])
        return [*alike, *self._best.get(kind, []), *self._others.get(kind, [])]


#: Architecture and vocabulary size.
_Kind = tuple[str, int | None]


def _kind(variant: Variant) -> _Kind | None:
    found = variant.inspection
    return (found.architecture, found.n_vocab) if found and found.architecture is not None else None


def _n_params(variant: Variant) -> int:
    return variant.inspection.n_params if variant.inspection else 0


def _rank(one: Shared, stem: str | None = None) -> tuple[object, ...]:
    """The repo's own first, then by trust, then by type; of several alike the one that was there first.

    In its own repo the name goes before the type, since a repo may hold several models.
    """
    other = one.variant
    kind = unquantized_type(other)
    order = _ORDER[kind] if kind else len(_ORDER)
    bits = -(other.inspection.bpw if other.inspection and kind is None else 0)
    if one.kind == "own":
        return -1, stem is not None and _stem(other) != stem, order, bits, other.name
    return _TRUST[one.kind], False, order, bits, other.id


def _best(among: Sequence[Shared], variant: Variant) -> Shared | None:
    stem = _stem(variant)
    return min(among, key=lambda one: _rank(one, stem), default=None)


def _reason(found: Shared, base: Base) -> str:
    reference = found.variant
    match found.kind:
        case "own":
            return f"{reference.label} of the same repo."
        case "base-owner":
            said = f"{reference.label} of {reference.repo_id}, by the owner of {base.id}."
        case "trusted":
            said = f"{reference.label} of {reference.repo_id}, whose owner is trusted here."
        case _:
            said = f"{reference.label} of {reference.repo_id}, whose sampled weights are those of {base.id}."
    return f"{said} {base.reason}" if base.reason else said


def _none(variant: Variant, alike: Variant | None, base: Base) -> str:
    """Why there is no reference, in a sentence or two."""
    here = "No BF16 or F16 file of this model in this repo"
    if alike and (x := variant.inspection) and (y := alike.inspection):
        if not _same_shape(x, y):
            here = f"{alike.label} of this repo is of another model by its architecture or size"
        elif x.n_vocab != y.n_vocab:
            here = f"{alike.label} of this repo has another vocabulary ({y.n_vocab} tokens, this file {x.n_vocab})"
    if base.id is None:
        return f"{here}. {base.reason}"
    said = f"{here}, and none of {base.id} by its owner or a trusted one, or proven to have its weights, is known here."
    return f"{said} {base.reason}" if base.reason else said
