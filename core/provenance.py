"""Where a file says it comes from: base models, the repo it was converted from, its importance matrix. All claims."""

from __future__ import annotations

import re
from typing import Any

from core.inspection import BaseModelRef, Imatrix, int_of, str_of

_REPO_URL = re.compile(
    r"https?://(?!(?:www\.)?(?:github|gitlab|modelscope)\.)[^/\s]+/([\w.-]+)/([\w.-]+)(?:[/?#]|\Z)", re.ASCII
)
_HUB_URL = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/", re.ASCII | re.IGNORECASE)
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+\Z", re.ASCII)
_NOT_OWNERS = frozenset({"datasets", "spaces", "collections", "api", "docs", "blog", "papers"})
#: Base models that are read of one header; a merge has some.
_MAX_BASES = 16


def repo_id_of(url: str | None) -> str | None:
    """``owner/name`` of a model repo's address on the Hub (or a mirror of it), or None."""
    found = _REPO_URL.match(url or "")
    return f"{found[1]}/{found[2]}" if found and found[1] not in _NOT_OWNERS else None


def imatrix_of(kv: dict[str, Any]) -> Imatrix | None:
    """The importance matrix that the header names, or None."""
    keys = ("file", "dataset", "entries_count", "chunks_count")
    values = [kv.get(f"quantize.imatrix.{key}") for key in keys]
    if all(value is None for value in values):
        return None
    return Imatrix(
        file=str_of(values[0]), dataset=str_of(values[1]), entries=int_of(values[2]), chunks=int_of(values[3])
    )


def base_models(kv: dict[str, Any]) -> list[BaseModelRef]:
    """The base models that ``general.base_model.*`` names (what the uploader says)."""
    count = int_of(kv.get("general.base_model.count")) or 0
    return [_claim(kv, f"general.base_model.{index}.") for index in range(min(count, _MAX_BASES))]


def source_of(kv: dict[str, Any]) -> BaseModelRef | None:
    """The repo that ``general.source.*`` names: what the file was converted from."""
    found = _claim(kv, "general.source.")
    older = str_of(kv.get("general.source.huggingface.repository"))
    if found.repo_id is None and older and _REPO_ID.match(older):
        found = found.model_copy(update={"repo_id": older})
    return None if found == BaseModelRef() else found


def _claim(kv: dict[str, Any], prefix: str) -> BaseModelRef:
    url = str_of(kv.get(prefix + "repo_url"))
    page = str_of(kv.get(prefix + "url"))
    return BaseModelRef(
        name=str_of(kv.get(prefix + "name")),
        organization=str_of(kv.get(prefix + "organization")),
        repo_url=url or (page if _on_hub(page) else None),
        repo_id=repo_id_of(url) or _on_hub(page),
    )


def _on_hub(url: str | None) -> str | None:
    """The repo of an address that may be any page on the web: only the Hub's own count."""
    return repo_id_of(url) if url and _HUB_URL.match(url) else None


def contradiction(kv: dict[str, Any]) -> str | None:
    """A sentence when the header names two different things as one base model or source, else None.

    Names are written in many ways (``Qwen3 0.6B`` for ``Qwen/Qwen3-0.6B``), so that only what has nothing in common
    counts. A source that is not the base model is none: a finetune's file is converted from the finetune.
    """
    count = int_of(kv.get("general.base_model.count"))
    named = _named(kv)
    if count is not None and named > max(count, 0):
        return f"general.base_model.count says {count}, but {named} are named"
    for index in range(min(count or 0, _MAX_BASES)):
        prefix = f"general.base_model.{index}."
        one, other = repo_id_of(str_of(kv.get(prefix + "repo_url"))), _on_hub(str_of(kv.get(prefix + "url")))
        if one and other and one.lower() != other.lower():
            return f"base model {index} is {one} by its repo_url and {other} by its url"
        found = _claim(kv, prefix)
        if found.repo_id and _says_otherwise(found):
            return f"base model {index} is {found.repo_id} by its address and {found.organization}/{found.name} by name"
    sources = [
        repo_id_of(str_of(kv.get("general.source.repo_url"))),
        _on_hub(str_of(kv.get("general.source.url"))),
        source
        if (source := str_of(kv.get("general.source.huggingface.repository"))) and _REPO_ID.match(source)
        else None,
    ]
    distinct = list({source.lower(): source for source in sources if source}.values())
    return f"it was converted from {distinct[0]} and from {distinct[1]}" if len(distinct) > 1 else None


def _named(kv: dict[str, Any]) -> int:
    """One more than the highest index under which a base model's name or address stands."""
    found = [
        int(match[1]) + 1
        for key in kv
        if (match := re.match(r"general\.base_model\.([0-9]{1,3})\.(?:name|repo_url|url)\Z", key, re.ASCII))
    ]
    return max(found, default=0)


def _says_otherwise(found: BaseModelRef) -> bool:
    owner, _, name = (found.repo_id or "").partition("/")
    pairs = ((found.organization, owner), (found.name, name))
    return all(_unlike(said, real) for said, real in pairs)


def _unlike(a: str | None, b: str) -> bool:
    """Whether two names share nothing: neither is in the other, once case and punctuation are gone."""
    x, y = (re.sub(r"[\W_]+", "", text or "").lower() for text in (a, b))
    return bool(x and y) and x not in y and y not in x
