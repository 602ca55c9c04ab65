"""``quantcard baseline``: record, verify, import and export what variants are measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bot.commands.common import GpuLayersOption, JsonOption, ThreadsOption, machine, print_json, run_with_bar
from bot.tables import out
from core.contract import BaselineCheck, BaselineResult, BaselineSpec, BaselineToolSpec
from core.errors import SettingsError
from core.format import size

app = typer.Typer(help="Record, verify, import and export baselines.", no_args_is_help=True)
PathArgument = Annotated[Path, typer.Argument(help="The baseline.")]


@app.command("record")
def record(
    reference: Annotated[Path, typer.Argument(help="The reference: a BF16 or F16 GGUF of the unquantized model.")],
    corpus: Annotated[Path, typer.Option("--corpus", help="A text file.")],
    out_path: Annotated[Path, typer.Option("--out", help="Where to write it.")],
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=8, help="Tokens per chunk.")] = 512,
    chunks: Annotated[int, typer.Option("--chunks", help="Only the first N chunks; -1: all.")] = -1,
    format_: Annotated[str, typer.Option("--format", help="logits: llama.cpp's .kld, byte for byte.")] = "logits",
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Logical batch, tokens.")] = 2048,
    ubatch: Annotated[int, typer.Option("--ubatch", "-ub", min=1, help="Physical batch, tokens.")] = 512,
    threads: ThreadsOption = 0,
    gpu_layers: GpuLayersOption = -1,
    as_json: JsonOption = False,
) -> None:
    """Record a reference's predictions over a corpus."""
    if format_ != "logits":
        raise SettingsError(f"The format {format_!r} is not there; use --format logits.")
    spec = BaselineSpec(
        reference=str(reference),
        corpus=str(corpus),
        out=str(out_path),
        n_ctx=ctx,
        chunks=chunks,
        n_batch=batch,
        n_ubatch=ubatch,
        machine=machine(threads, gpu_layers),
    )
    result = run_with_bar(spec, f"baseline {reference.name}")
    assert isinstance(result, BaselineResult)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    out.print(
        f"{result.path}: {result.n_chunks} chunks of {result.n_ctx} tokens, {size(result.size_bytes)}. "
        f"The reference's perplexity is {result.ppl.value:.4f} ± {result.ppl.stderr:.5f}.",
        markup=False,
    )


def _tool(
    action: Literal["verify", "import", "export"],
    path: Path,
    *,
    as_json: bool,
    out_path: Path | None = None,
    reference: Path | None = None,
) -> None:
    spec = BaselineToolSpec(
        action=action,
        path=str(path),
        out=str(out_path) if out_path else None,
        reference=str(reference) if reference else None,
    )
    result = run_with_bar(spec, f"{action}   {path.name}")
    assert isinstance(result, BaselineCheck)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    known = f" Exact PPL {result.ppl.value:.4f}." if result.ppl else ""
    beside = "with" if result.companion else "without"
    out.print(
        f"{result.path} is sound: {result.n_chunks} chunks of {result.n_ctx} tokens, vocabulary {result.n_vocab}, "
        f"{beside} its companion file.{known}",
        markup=False,
    )


@app.command("verify")
def verify(path: PathArgument, as_json: JsonOption = False) -> None:
    """Check every row and checksum of a baseline."""
    _tool("verify", path, as_json=as_json)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A .kld file that llama-perplexity wrote.")],
    out_path: Annotated[Path, typer.Option("--out", help="Where to put it.")],
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The GGUF it was recorded from, for its vocabulary.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take in a base file of llama-perplexity, with checksums and (given the reference) its vocabulary."""
    _tool("import", path, out_path=out_path, reference=reference, as_json=as_json)


@app.command("export")
def export(
    path: PathArgument,
    out_path: Annotated[Path, typer.Option("--out", help="Where to write the plain .kld file.")],
    as_json: JsonOption = False,
) -> None:
    """Write a baseline as the plain .kld file that llama-perplexity reads."""
    _tool("export", path, out_path=out_path, as_json=as_json)
