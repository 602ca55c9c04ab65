"""Which base model a repo's files were made from, by what its card and its headers say. Pure.

What a repo says of itself is a claim. It decides whose reference its files may be measured against, never whose file
may be a reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bot.store.repos import Repo, Variant
from core.repo_names import is_repo_id

#: Entries of a card's ``base_model`` that are looked at.
MAX_NAMED = 8
_QUANTIZED = re.compile(
    r"(?:^|[-_.])(?:gguf|ggml|awq|gptq|exl[23]|bnb|mlx|fp8|fp4|nvfp4|mxfp4|int[48]|w[48]a\d+|autoround|quanto|hqq"
    r"|[2-8]-?bits?|i?q\d_\w+)(?:$|[-_.])",
    re.IGNORECASE,
)
_GGUF = re.compile(r"(?:^|[-_.])gguf(?:$|[-_.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Base:
    """A repo's base model, or None; ``reason`` is a sentence: why there is none, or why this one where that is a
    question."""

    id: str | None
    reason: str | None = None


def same_repo(a: str | None, b: str | None) -> bool:
    """Whether two repo ids are the same one; the Hub takes either case."""
    return a is not None and b is not None and a.lower() == b.lower()


def is_derivative(repo_id: str) -> bool:
    """Whether a repo is, by its name, no original: a GGUF repo or another quantization."""
    return _QUANTIZED.search(repo_id.split("/")[-1]) is not None


def base_of(repo: Repo, variants: Sequence[Variant], *, known: Callable[[str], Repo | None]) -> Base:
    """The base model of a repo's files.

    A header's ``general.base_model`` is copied from the card of the model that was converted: of a fine-tune it names
    what that was tuned from. So the card goes first, and a header alone is not enough.

    Args:
        variants: its current variants.
        known: a repo that is watched here, by its id in either case.
    """
    named = _named(repo)
    headers = _of_headers(variants)
    if not named:
        if headers:
            said = f"its header names {headers[0]}, which may be what the model was tuned from"
            return Base(None, f"Its card names no base_model; {said}.")
        return Base(None, "Its card names no base_model.")
    if len(named) > 1:
        # The model itself and, beside it, what its own header says it was made from: the rest is the model.
        left = [one for one in named if not any(same_repo(one, other) for other in headers)]
        if len(left) != 1:
            few = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
            return Base(None, f"Its card names {len(named)} base models ({few}), so none of them is its original.")
        others = ", ".join(one for one in named if one != left[0])
        return _original(left[0], known, f"Its card names {len(named)}; by its header it was made from {others}.")
    if headers and not any(same_repo(named[0], other) for other in headers):
        said = f"Its card names {named[0]}, its header {headers[0]}, which that may have been tuned from."
        return _original(named[0], known, said)
    return _original(named[0], known, None)


def _named(repo: Repo) -> list[str]:
    """The base models that a repo's card names; of an older look only the first is known."""
    listed = repo.config.get("base_models")
    if not isinstance(listed, list):
        return [repo.base_model] if repo.base_model else []
    return list(dict.fromkeys(one for one in listed[:MAX_NAMED] if isinstance(one, str) and is_repo_id(one)))


def _of_headers(variants: Sequence[Variant]) -> list[str]:
    found = [
        base.repo_id
        for variant in variants
        for base in (variant.inspection.base_models if variant.inspection else [])
        if base.repo_id
    ]
    return list(dict.fromkeys(found))[:MAX_NAMED]


def _original(name: str, known: Callable[[str], Repo | None], reason: str | None) -> Base:
    """``name``, or what it was made from where it is a GGUF repo that is watched here."""
    if not is_derivative(name):
        return Base(name, reason)
    if _GGUF.search(name.split("/")[-1]):
        home = known(name)
        above = _named(home) if home else []
        if len(above) == 1 and not is_derivative(above[0]):
            return Base(above[0], f"Its card names {name}, a GGUF repo itself, whose own card names {above[0]}.")
    return Base(None, f"Its card names {name}, which is a quantized model itself, not the original.")
