"""``quantcard inspect``: what a GGUF's header says, local or on the Hub, without downloading it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.commands.common import JsonOption, open_hub, print_json
from bot.hub.client import Hub
from bot.intake.base_models import base_of
from bot.intake.headers import read_variant
from bot.intake.templates import MemoryShelf, Shelf, compared, judge, learn_base, usual_template
from bot.progress import say
from bot.settings import load_settings
from bot.store.repos import Repo
from bot.store.templates import BaseTemplates
from bot.tables import inspection_table, out
from core import audit
from core.chat_template import TemplateDiff, unified
from core.errors import GGUFError
from core.gguf_files import group_variants, shard_names, shard_of, variant_name
from core.gguf_header import Reading, read_file
from core.repo_names import is_repo_id

DiffOption = Annotated[
    bool,
    typer.Option(
        "--template-diff",
        help="Print only how the chat templates differ from the base model's and among the repo's files.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Found:
    """One variant's audit with what it took."""

    inspection: audit.Inspection
    ranges: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class _Audited:
    """What was asked for: audits by file name, the base model's templates, and the texts of all."""

    variants: dict[str, _Found]
    single: bool
    base: BaseTemplates | None
    shelf: Shelf

    def flagged(self, name: str) -> audit.Inspection:
        """A variant's audit with what is to be said of its template."""
        found = {name: one.inspection for name, one in self.variants.items()}
        flags = judge(found, base=self.base, shelf=self.shelf).get(name, [])
        one = found[name]
        return one.model_copy(update={"flags": [*one.flags, *flags]})

    def beside_base(self, name: str) -> TemplateDiff | None:
        """A variant's template beside the base model's, or None where either has none."""
        ours = self.variants[name].inspection.chat_template_sha256
        if not ours or not self.base or not self.base.template_sha256:
            return None
        # One of several named templates of the base model is as good as its first.
        theirs = ours if self.base.has(ours) else self.base.template_sha256
        return compared(self.shelf, ours, theirs)


def inspect(
    target: Annotated[str, typer.Argument(help="A .gguf file, or OWNER/REPO, or OWNER/REPO/FILE.gguf on the Hub.")],
    as_json: JsonOption = False,
    template_diff: DiffOption = False,
) -> None:
    """Show size, bits per weight, tensor types, imatrix, base model, chat template and flags of a GGUF."""
    if Path(target).exists() or target.count("/") < 1 or target.startswith((".", "/", "~")):
        found = _local(Path(target), with_base=template_diff)
    else:
        found = _remote(target)
    if as_json:
        values = [_as_json(found, name, with_diff=template_diff) for name in found.variants]
        print_json(values[0] if found.single else values)
    elif template_diff:
        _print_diffs(found)
    else:
        for index, name in enumerate(found.variants):
            if index:
                out.print()
            out.print(inspection_table(name, found.flagged(name), template=_beside(found, name)))


def _as_json(found: _Audited, name: str, *, with_diff: bool) -> dict[str, Any]:
    one, diff = found.variants[name], found.beside_base(name)
    template = None
    if diff is not None and found.base is not None:
        template = {
            "base_model": found.base.id,
            "same": diff.same,
            "only_whitespace": diff.only_whitespace,
            "added": diff.added,
            "removed": diff.removed,
            **({"diff": list(diff.diff_lines)} if with_diff else {}),
        }
    return {
        "name": name,
        **found.flagged(name).model_dump(mode="json"),
        "template": template,
        "read": {"ranges": one.ranges, "bytes": one.bytes_read},
    }


def _beside(found: _Audited, name: str) -> str | None:
    """What the table says of a template, or None where there is nothing to hold it against."""
    diff = found.beside_base(name)
    if diff is None or found.base is None:
        return None
    return f"that of {found.base.id}" if diff.same else f"not that of {found.base.id}: {diff.said}"


def _print_diffs(found: _Audited) -> None:
    """Unified diffs of every template but the base model's and the usual one, each once, on stdout."""
    files: dict[str, list[str]] = {}
    for name, one in found.variants.items():
        if sha256 := one.inspection.chat_template_sha256:
            files.setdefault(sha256, []).append(name)
    if found.base is not None and found.base.note:
        say(f"The templates of {found.base.id} are not known: {found.base.note}")
    shown = False
    for ours, theirs, name in _pairs(found, files):
        diff = compared(found.shelf, ours, theirs)
        if diff is None:
            say(f"The chat template of {files[ours][0]} is too long to be compared.")
        elif not diff.same:
            shown = True
            for line in unified(diff, ours=_named(files[ours]), theirs=name):
                out.print(line, markup=False, emoji=False)
    if not shown:
        say("No chat template differs from another here." if files else "No file here has a chat template.")


def _pairs(found: _Audited, files: dict[str, list[str]]) -> Iterator[tuple[str, str, str]]:
    """(sha256, sha256 that it is held against, whose that is)."""
    base = found.base
    if base is not None and base.template_sha256:
        for sha256 in files:
            if not base.has(sha256):
                yield sha256, base.template_sha256, base.id
    hashes = [one.inspection.chat_template_sha256 for one in found.variants.values()]
    usual = usual_template(hashes) or next(iter(files), None)
    if usual is not None:
        for sha256 in files:
            if sha256 != usual:
                yield sha256, usual, _named(files[usual])


def _named(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _local(path: Path, *, with_base: bool) -> _Audited:
    if path.is_dir():
        raise GGUFError(f"{path} is a folder. Give a .gguf file in it.")
    number, count = shard_of(path.name)
    paths = [path]
    if count > 1:
        paths = [shard for name in shard_names(path.name) if (shard := path.with_name(name)).exists()]
        if not paths or number == 0:
            raise GGUFError(f"{path} does not exist. Check the path.")
    readings = [read_file(one) for one in paths]
    total = sum(one.stat().st_size for one in paths)
    shelf = MemoryShelf()
    found = _audited(readings, shelf, size_bytes=total, name=path.name, shards=count)
    base = None
    if with_base and (named := [one.repo_id for one in found.inspection.base_models if one.repo_id]):
        base = _base(open_hub(load_settings()), shelf, named[0], [found])
    return _Audited({path.name: found}, True, base, shelf)


def _audited(readings: Sequence[Reading], shelf: Shelf, *, size_bytes: int, name: str, shards: int) -> _Found:
    headers = [reading.header for reading in readings]
    inspection = audit.inspect(headers, size_bytes=size_bytes, name=name, shards_expected=shards)
    if text := audit.chat_template(headers):
        shelf.keep([text])
    return _Found(inspection, sum(one.ranges for one in readings), sum(one.bytes_read for one in readings))


def _base(hub: Hub, shelf: Shelf, base_model: str, found: Sequence[_Found]) -> BaseTemplates:
    ours = {sha256 for one in found if (sha256 := one.inspection.chat_template_sha256)}
    return learn_base(shelf, hub, base_model, ours, now=0.0)


def _remote(target: str) -> _Audited:
    owner, name, *rest = target.split("/")
    repo_id, wanted = f"{owner}/{name}", "/".join(rest)
    hub = open_hub(load_settings())
    detail = hub.detail(repo_id)
    revision = detail.summary.sha or "main"
    variants = [
        variant for variant in group_variants(detail.files) if not wanted or variant.name == variant_name(wanted)
    ]
    if not variants:
        raise GGUFError(f"There is no GGUF model {wanted or 'file'} in {repo_id}. Check the name.")
    shelf = MemoryShelf()
    found = {
        variant.name: _audited(
            read_variant(hub, repo_id, revision, variant),
            shelf,
            size_bytes=variant.size_bytes,
            name=variant.name,
            shards=variant.n_shards,
        )
        for variant in variants
    }
    named = [one for one in detail.base_models if is_repo_id(one)]
    repo = Repo(repo_id, revision, "request", None, None, {"base_models": named})
    base_model = base_of(repo, [], known=lambda _: None).id
    base = _base(hub, shelf, base_model, list(found.values())) if base_model else None
    return _Audited(found, bool(wanted), base, shelf)
