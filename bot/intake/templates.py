"""Chat templates of a repo's files beside each other and beside the base model's. Texts only; none is rendered."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, TypeVar

from bot.hub.door import HubDoor, RepoDetail
from bot.store import Store
from bot.store.repos import Repo, Variant
from bot.store.templates import BaseTemplates
from core.audit import Flag, Inspection
from core.chat_template import MAX_TEMPLATE, TemplateDiff, compare, sha256_of
from core.errors import HubError, HubRateLimitError, HubUnreachableError

K = TypeVar("K", int, str)

JINJA, CONFIG = "chat_template.jinja", "tokenizer_config.json"
#: Tokenizer settings hold every added token; the largest known ones are some 1.5 MB.
CONFIG_LIMIT = 4 << 20
#: Templates that are taken of one base model, the named ones among them.
_MAX_TEMPLATES = 16
#: Seconds until a base model's commit is asked for again.
BASE_FRESH_S = 86400.0


class Shelf(Protocol):
    """Where templates and what base models have are kept: the store's, or a command's own."""

    def keep(self, texts: Iterable[str]) -> list[str]:
        """Keep these texts; their sha256s, each once, in their order."""
        ...

    def text(self, sha256: str) -> str | None:
        """A template's text, or None if it was not kept."""
        ...

    def base(self, base_model: str) -> BaseTemplates | None:
        """What is known of a base model's templates, or None."""
        ...

    def save_base(self, base: BaseTemplates) -> None:
        """Write down what a base model has."""
        ...


class MemoryShelf:
    """A shelf for one command."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._bases: dict[str, BaseTemplates] = {}

    def keep(self, texts: Iterable[str]) -> list[str]:
        """Keep these texts; their sha256s, each once, in their order."""
        found = {sha256_of(text): text for text in texts}
        self._texts |= found
        return list(found)

    def text(self, sha256: str) -> str | None:
        """A template's text, or None if it was not kept."""
        return self._texts.get(sha256)

    def base(self, base_model: str) -> BaseTemplates | None:
        """What is known of a base model's templates, or None."""
        return self._bases.get(base_model)

    def save_base(self, base: BaseTemplates) -> None:
        """Write down what a base model has."""
        self._bases[base.id] = base


def audit_templates(
    store: Store, hub: HubDoor, repo_id: str, base_model: str | None, *, now: float, texts: Iterable[str] = ()
) -> None:
    """Keep the templates of a repo's files, and learn those of its base model where they are not known.

    Args:
        base_model: what the repo is taken to be made from.
        texts: templates that were just read from its files' headers.

    Raises:
        HubUnreachableError, HubRateLimitError: it has to be asked again; nothing is noted.
    """
    store.templates.keep(texts)
    if base_model is not None:
        learn_base(store.templates, hub, base_model, _hashes(store.repos.variants(repo_id)), now=now)


def _hashes(variants: Iterable[Variant]) -> set[str]:
    return {sha256 for variant in variants if (sha256 := _sha256(variant.inspection))}


def learn_base(shelf: Shelf, hub: HubDoor, base_model: str, ours: Collection[str], *, now: float) -> BaseTemplates:
    """A base model's templates, from the shelf or from the Hub.

    Its commit is asked for once a day at most; of each commit at most two files are read, the second only where a
    template of ``ours`` (sha256s) is not the one in the first.

    Raises:
        HubUnreachableError, HubRateLimitError: it has to be asked again; nothing is noted.
    """
    known = shelf.base(base_model)
    if known is None or not 0 <= now - known.at < BASE_FRESH_S:
        known = _learn(shelf, hub, base_model, known, now=now)
    if not known.complete and known.note is None and not all(known.has(sha256) for sha256 in ours):
        known = _read(shelf, hub, known, CONFIG, now=now, last=True)
    return known


def _learn(shelf: Shelf, hub: HubDoor, base_model: str, known: BaseTemplates | None, *, now: float) -> BaseTemplates:
    """Ask for the base model's commit, and read the first of its files that may hold its template if it is new."""
    try:
        detail = hub.detail(base_model)
    except (HubUnreachableError, HubRateLimitError):
        raise
    except HubError as error:
        # What was known of it stays true of the files that were made from it.
        kept = known or BaseTemplates(base_model, None, None, (), False, str(error), now)
        return _save(shelf, replace(kept, at=now))
    if known is not None and known.sha == detail.summary.sha and known.note is None:
        return _save(shelf, replace(known, at=now))
    places = _places(detail)
    fresh = BaseTemplates(base_model, detail.summary.sha, None, (), not places, None, now)
    return _read(shelf, hub, fresh, places[0], now=now, last=len(places) == 1) if places else _save(shelf, fresh)


def _places(detail: RepoDetail) -> list[str]:
    paths = {file.path for file in detail.files}
    return [name for name in (JINJA, CONFIG) if name in paths]


def _read(shelf: Shelf, hub: HubDoor, base: BaseTemplates, name: str, *, now: float, last: bool) -> BaseTemplates:
    """Add what one of the base model's files holds; ``last``: no other is to be read."""
    try:
        texts = read_templates(hub, base.id, name, revision=base.sha or "main")
    except (HubUnreachableError, HubRateLimitError):
        raise
    except HubError as error:
        return _save(shelf, replace(base, complete=False, note=str(error), at=now))
    hashes = [sha256 for sha256 in shelf.keep(texts) if not base.has(sha256)]
    first = base.template_sha256 or (hashes[0] if hashes else None)
    others = (*base.others, *(sha256 for sha256 in hashes if sha256 != first))[:_MAX_TEMPLATES]
    return _save(shelf, replace(base, template_sha256=first, others=others, complete=last, at=now))


def _save(shelf: Shelf, base: BaseTemplates) -> BaseTemplates:
    shelf.save_base(base)
    return base


def read_templates(hub: HubDoor, repo_id: str, name: str, *, revision: str) -> list[str]:
    """The chat templates in one file of a base model, the default one first; empty where it has none.

    Raises:
        HubError: it can't be read, or is too large.
    """
    data = hub.read(repo_id, name, revision=revision, limit=MAX_TEMPLATE if name == JINJA else CONFIG_LIMIT)
    if data is None:
        return []
    text = data.decode("utf-8", errors="replace")
    return [text] if name == JINJA else templates_of_config(text)


def templates_of_config(text: str) -> list[str]:
    """The chat templates in a ``tokenizer_config.json``: one text, or a list of named ones of which 'default' leads."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = value.get("chat_template") if isinstance(value, dict) else None
    if isinstance(found, str):
        return [found] if len(found) <= MAX_TEMPLATE else []
    named = [
        (one.get("name") != "default", template)
        for one in (found if isinstance(found, list) else [])[:_MAX_TEMPLATES]
        if isinstance(one, dict) and isinstance(template := one.get("template"), str) and len(template) <= MAX_TEMPLATE
    ]
    return [template for _, template in sorted(named, key=lambda pair: pair[0])]


def template_flags(
    store: Store, repo: Repo, variants: Sequence[Variant] | None = None, *, base_model: str | None = None
) -> dict[int, list[Flag]]:
    """What is to be said of the chat templates of a repo's current variants, by variant id; from the store alone.

    Args:
        variants: the repo's current variants, where they are at hand.
        base_model: what the repo is taken to be made from, where that is not simply what it names.
    """
    found = store.repos.variants(repo.id) if variants is None else variants
    name = base_model or repo.base_model
    base = store.templates.base(name) if name else None
    read = {variant.id: variant.inspection for variant in found if variant.inspection}
    return judge(read, base=base, shelf=store.templates)


def judge(found: Mapping[K, Inspection], *, base: BaseTemplates | None, shelf: Shelf) -> dict[K, list[Flag]]:
    """Flags of variants of one repo, by whatever names them."""
    flags: dict[K, list[Flag]] = defaultdict(list)
    for names in _by_model(found):
        same = {name: _sha256(found[name]) for name in names}
        for name, sha256 in same.items():
            flag = _beside_base(sha256, base, shelf) if sha256 else _missing(same.values(), base)
            if flag:
                flags[name].append(flag)
        for name, flag in _among(same, shelf).items():
            flags[name].append(flag)
    return dict(flags)


def _by_model(found: Mapping[K, Inspection]) -> list[list[K]]:
    """Variants whose first shard was read, those of one model together: some repos hold several."""
    groups: dict[tuple[str | None, str | int | None], list[K]] = defaultdict(list)
    for name, one in found.items():
        if one.shards_found is None or one.shards_found >= one.shards:
            groups[one.architecture, one.vocab_sha256 or one.n_vocab].append(name)
    return list(groups.values())


def _sha256(found: Inspection | None) -> str | None:
    return found.chat_template_sha256 if found else None


def _beside_base(sha256: str, base: BaseTemplates | None, shelf: Shelf) -> Flag | None:
    if base is None or base.template_sha256 is None or not base.complete or base.has(sha256):
        return None
    diff = compared(shelf, sha256, base.template_sha256)
    # A last newline comes and goes with every tool that writes such a file.
    if diff is not None and diff.only_newlines:
        return None
    return Flag(code="template-differs-from-base", detail=f"Its chat template is not that of {base.id}{_said(diff)}.")


def _missing(same: Iterable[str | None], base: BaseTemplates | None) -> Flag | None:
    have = sum(sha256 is not None for sha256 in same)
    if have:
        whose = f"{have} other {'files here have' if have > 1 else 'file here has'} one"
    elif base and base.template_sha256:
        whose = f"{base.id} has one"
    else:
        return None
    return Flag(code="template-missing", detail=f"It has no chat template, though {whose}.")


def usual_template(same: Iterable[str | None]) -> str | None:
    """The sha256 of the template that more files have than any other, or None where there is no such."""
    ranked = Counter(sha256 for sha256 in same if sha256).most_common(2)
    return ranked[0][0] if ranked and (len(ranked) < 2 or ranked[0][1] > ranked[1][1]) else None


def _among(same: Mapping[K, str | None], shelf: Shelf) -> dict[K, Flag]:
    """Flags of the variants whose template is not the one that most of these files have."""
    counts = Counter(sha256 for sha256 in same.values() if sha256)
    usual = usual_template(same.values())
    if len(counts) < 2:
        return {}
    found = {}
    for name, sha256 in same.items():
        if sha256 is None or sha256 == usual:
            continue
        if usual is None:
            detail = f"The files here have {len(counts)} different chat templates; the sha256 of this one's begins "
            detail += f"{sha256[:8]}."
        else:
            diff = compared(shelf, sha256, usual)
            if diff is not None and diff.only_newlines:
                continue
            n = counts[usual]
            whose = f"the one that {n} other {'files here have' if n > 1 else 'file here has'}"
            detail = f"Its chat template is not {whose}{_said(diff)}."
        found[name] = Flag(code="template-differs-among-files", detail=detail)
    return found


def compared(shelf: Shelf, ours: str, theirs: str) -> TemplateDiff | None:
    """How two kept templates differ, by their sha256s, or None where one was not kept."""
    a, b = shelf.text(ours), shelf.text(theirs)
    return _compared(a, b) if a is not None and b is not None else None


@lru_cache(maxsize=256)
def _compared(ours: str, theirs: str) -> TemplateDiff:
    # A repo's rows are made at every cycle, from the same few templates.
    return compare(ours, theirs)


def _said(diff: TemplateDiff | None) -> str:
    return f" ({diff.said})" if diff else ""
