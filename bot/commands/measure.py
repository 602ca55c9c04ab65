"""``quantcard measure``: one model, here and now, without Hub or database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.markup import escape

from bot.commands.common import (
    BatchOption,
    FlashOption,
    GpuLayersOption,
    JsonOption,
    KvOption,
    ThreadsOption,
    UbatchOption,
    machine,
    numbers,
    print_json,
    run_with_bar,
)
from bot.progress import say
from bot.tables import out, quality_table, speed_table
from core.canonical import fingerprint
from core.contract import (
    QualityFailure,
    QualityManyResult,
    QualityManySpec,
    QualityResult,
    QualitySpec,
    SpeedResult,
    SpeedSpec,
)
from core.errors import SettingsError, by_name

app = typer.Typer(help="Measure one GGUF file, without Hub or database.", no_args_is_help=True)
ModelArgument = Annotated[Path, typer.Argument(help="The GGUF file (the first shard of a split one).")]


@app.command("quality")
def quality(
    models: Annotated[list[Path], typer.Argument(help="The GGUF file; several of one model share the work.")],
    baseline: Annotated[Path, typer.Option("--baseline", help="From 'quantcard baseline record', or a .kld file.")],
    chunks: Annotated[int, typer.Option("--chunks", help="Only the first N chunks; -1: all.")] = -1,
    as_llama_cpp: Annotated[
        bool,
        typer.Option("--as-llama-cpp", help="llama-perplexity's clipped figures from a states baseline too."),
    ] = False,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", help="Write per-token figures here: a .parquet file, or a folder."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted run stopped.")
    ] = True,
    batch: BatchOption = 2048,
    ubatch: UbatchOption = 512,
    type_k: KvOption = "f16",
    type_v: KvOption = "f16",
    flash_attn: FlashOption = "auto",
    threads: ThreadsOption = 0,
    gpu_layers: GpuLayersOption = -1,
    as_json: JsonOption = False,
) -> None:
    """KL divergence and perplexity: the true ones against states, llama-perplexity's to the digit against a .kld."""
    shared: dict[str, Any] = {
        "baseline": str(baseline),
        "chunks": chunks,
        "as_llama_cpp": as_llama_cpp,
        "n_batch": batch,
        "n_ubatch": ubatch,
        "type_k": type_k,
        "type_v": type_v,
        "flash_attn": flash_attn,
        "machine": machine(threads, gpu_layers),
    }
    shared["checkpoint"] = str(_checkpoint(models, baseline, shared)) if resume else None
    if len(models) == 1:
        folder = tokens is not None and tokens.suffix != ".parquet"
        one = str(tokens / f"{models[0].stem}.parquet" if folder else tokens) if tokens else None
        spec = QualitySpec(model=str(models[0]), tokens_out=one, **shared)
        result = run_with_bar(spec, f"quality  {models[0].name}")
        assert isinstance(result, QualityResult)
        _show(result, chunks=chunks, as_json=as_json)
        return
    names = _sidecars(models, tokens) if tokens else None
    many = QualityManySpec(models=[str(model) for model in models], tokens_out=names, **shared)
    found = run_with_bar(many, f"quality  {len(models)} variants")
    assert isinstance(found, QualityManyResult)
    if as_json:
        print_json(found.model_dump(mode="json")["outcomes"])
    for model, outcome in zip(models, found.outcomes, strict=True):
        if isinstance(outcome, QualityFailure):
            say(f"{model.name}: {outcome.message}")
        elif not as_json:
            out.print(f"[bold]{escape(model.name)}[/bold]")
            _show(outcome, chunks=chunks, as_json=False)
    failures = [outcome for outcome in found.outcomes if isinstance(outcome, QualityFailure)]
    if failures:
        raise typer.Exit(by_name(failures[0].type).exit_code)


def _show(result: QualityResult, *, chunks: int, as_json: bool) -> None:
    if chunks > result.n_chunks:
        say(f"The baseline holds {result.n_chunks} chunks, so that many were measured.")
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        out.print(quality_table(result))


def _sidecars(models: list[Path], folder: Path) -> list[str]:
    """A sidecar's path for each of several models, in ``folder``."""
    names = [f"{model.stem}.parquet" for model in models]
    if len(set(names)) < len(names):
        raise SettingsError("Two of the models have the same name; their per-token files would be one. Rename one.")
    return [str(folder / name) for name in names]


def _checkpoint(models: list[Path], baseline: Path, settings: dict[str, Any]) -> Path:
    """Where an interrupted run of these files with these settings keeps what it finished."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    asked = [str(path.absolute()) for path in [*models, baseline]]
    told = {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in settings.items()}
    return cache / "quantcard" / "checkpoints" / f"{fingerprint([asked, told])[:32]}.checkpoint"


@app.command("speed")
def speed(
    model: ModelArgument,
    n_prompt: Annotated[str, typer.Option("-p", "--n-prompt", help="Prompt tokens; several: 512,1024.")] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", help="Generated tokens; several: 128,256.")] = "128",
    n_pg: Annotated[
        list[str] | None, typer.Option("-pg", "--n-pg", help="Prompt and generation under one clock: 512,128.")
    ] = None,
    n_depth: Annotated[
        str, typer.Option("-d", "--n-depth", help="Tokens in the KV cache before; several: 0,4096.")
    ] = "0",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Timed repetitions.")] = 5,
    batch: BatchOption = 2048,
    ubatch: UbatchOption = 512,
    type_k: KvOption = "f16",
    type_v: KvOption = "f16",
    flash_attn: FlashOption = "auto",
    threads: ThreadsOption = 0,
    gpu_layers: GpuLayersOption = -1,
    as_json: JsonOption = False,
) -> None:
    """Tokens per second as llama-bench measures them, and peak memory."""
    spec = SpeedSpec(
        model=str(model),
        n_prompt=numbers(n_prompt, option="-p"),
        n_gen=numbers(n_gen, option="-n"),
        n_pg=[_pair(text) for text in n_pg or []],
        n_depth=numbers(n_depth, option="-d"),
        repetitions=repetitions,
        n_batch=batch,
        n_ubatch=ubatch,
        type_k=type_k,
        type_v=type_v,
        flash_attn=flash_attn,
        machine=machine(threads, gpu_layers),
    )
    result = run_with_bar(spec, f"speed    {model.name}")
    assert isinstance(result, SpeedResult)
    if as_json:
        found = result.environment
        about = {"build": found.llama_cpp, "cpu_info": found.cpu, "gpu_info": found.gpu, "backends": found.backend}
        print_json([about | test.model_dump(mode="json") for test in result.tests])
    else:
        out.print(speed_table(result.tests))


def _pair(text: str) -> tuple[int, int]:
    found = numbers(text, option="-pg")
    if len(found) != 2:
        raise typer.BadParameter(f"{text!r} is not two numbers.", param_hint="-pg")
    return found[0], found[1]
