"""``quantcard baseline``: record, verify, import and export what variants are measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bot.commands.common import (
    BatchOption,
    FlashOption,
    GpuLayersOption,
    JsonOption,
    KvOption,
    ThreadsOption,
    UbatchOption,
    machine,
    print_json,
    run_with_bar,
)
from bot.progress import say
from bot.tables import out
from core.contract import BaselineCheck, BaselineFormat, BaselineResult, BaselineSpec, BaselineToolSpec
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
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="states: what enters the output head, small; logits: llama.cpp's .kld. auto: logits for *.kld.",
        ),
    ] = "auto",
    batch: BatchOption = 2048,
    ubatch: UbatchOption = 512,
    type_k: KvOption = "f16",
    type_v: KvOption = "f16",
    flash_attn: FlashOption = "auto",
    threads: ThreadsOption = 0,
    gpu_layers: GpuLayersOption = -1,
    as_json: JsonOption = False,
) -> None:
    """Record a reference's predictions over a corpus; an interrupted recording goes on where it stopped."""
    if format_ not in ("auto", "states", "logits"):
        raise SettingsError(f"The format {format_!r} is not there; use --format states or logits.")
    chosen: BaselineFormat = "logits" if format_ == "logits" else "states"
    if format_ == "auto" and out_path.suffix == ".kld":
        chosen = "logits"
    if chosen == "states" and out_path.suffix == ".kld":
        raise SettingsError("A states baseline is a GGUF, not a .kld: give --out NAME.gguf, or --format logits.")
    spec = BaselineSpec(
        reference=str(reference),
        corpus=str(corpus),
        out=str(out_path),
        n_ctx=ctx,
        chunks=chunks,
        n_batch=batch,
        n_ubatch=ubatch,
        format=chosen,
        type_k=type_k,
        type_v=type_v,
        flash_attn=flash_attn,
        machine=machine(threads, gpu_layers),
    )
    result = run_with_bar(spec, f"baseline {reference.name}")
    assert isinstance(result, BaselineResult)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    if result.fallback:
        say(f"Full logits were kept instead of states: {result.fallback}")
    beside = f" and {size(result.head_bytes)} of output head beside it" if result.head_bytes else ""
    out.print(
        f"{result.path}: {result.n_chunks} chunks of {result.n_ctx} tokens, {size(result.size_bytes)}{beside}. "
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
    if result.format == "states":
        beside = f"states; rebuilt logits differ from true ones by {result.self_check or 0:.2g} nats"
    else:
        beside = f"full logits, {'with' if result.companion else 'without'} its companion file"
    out.print(
        f"{result.path} is sound: {result.n_chunks} chunks of {result.n_ctx} tokens, vocabulary {result.n_vocab}, "
        f"{beside}.{known}",
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
