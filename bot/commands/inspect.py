"""``quantcard inspect``: what a GGUF's header says, local or on the Hub, without downloading it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.commands.common import JsonOption, open_hub, print_json
from bot.intake.headers import remote_header
from bot.settings import load_settings
from bot.tables import inspection_table, out
from core import audit
from core.errors import GGUFError
from core.gguf_files import group_variants, shard_names, shard_of, variant_name
from core.gguf_header import read_file_header


def inspect(
    target: Annotated[str, typer.Argument(help="A .gguf file, or OWNER/REPO, or OWNER/REPO/FILE.gguf on the Hub.")],
    as_json: JsonOption = False,
) -> None:
    """Show size, bits per weight, tensor types, imatrix, base model and flags of a GGUF."""
    if Path(target).exists() or target.count("/") < 1 or target.startswith((".", "/", "~")):
        found = {Path(target).name: _local(Path(target))}
        single = True
    else:
        found = _remote(target)
        single = target.count("/") > 1
    if as_json:
        values = [{"name": name, **one.model_dump(mode="json")} for name, one in found.items()]
        print_json(values[0] if single else values)
        return
    for index, (name, one) in enumerate(found.items()):
        if index:
            out.print()
        out.print(inspection_table(name, one))


def _local(path: Path) -> audit.Inspection:
    if path.is_dir():
        raise GGUFError(f"{path} is a folder. Give a .gguf file in it.")
    number, count = shard_of(path.name)
    paths = [path]
    if count > 1:
        paths = [shard for name in shard_names(path.name) if (shard := path.with_name(name)).exists()]
        if not paths or number == 0:
            raise GGUFError(f"{path} does not exist. Check the path.")
    headers = [read_file_header(one) for one in paths]
    total = sum(one.stat().st_size for one in paths)
    return audit.inspect(headers, size_bytes=total, name=path.name, shards_expected=count)


def _remote(target: str) -> dict[str, audit.Inspection]:
    owner, name, *rest = target.split("/")
    repo_id, wanted = f"{owner}/{name}", "/".join(rest)
    hub = open_hub(load_settings())
    revision = hub.repo(repo_id).sha or "main"
    variants = [
        variant
        for variant in group_variants(hub.files(repo_id, revision=revision))
        if not wanted or variant.name == variant_name(wanted)
    ]
    if not variants:
        raise GGUFError(f"There is no GGUF model {wanted or 'file'} in {repo_id}. Check the name.")
    return {
        variant.name: audit.inspect(
            [remote_header(hub, repo_id, file, revision=revision) for file in variant.files],
            size_bytes=variant.size_bytes,
            name=variant.name,
            shards_expected=variant.n_shards,
        )
        for variant in variants
    }
