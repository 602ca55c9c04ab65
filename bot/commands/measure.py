"""``quantcard measure``: one model, here and now, without Hub or database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot.commands.common import GpuLayersOption, JsonOption, ThreadsOption, machine, numbers, print_json, run_with_bar
from bot.progress import say
from bot.tables import out, quality_table, speed_table
from core.contract import QualityResult, QualitySpec, SpeedResult, SpeedSpec

app = typer.Typer(help="Measure one GGUF file, without Hub or database.", no_args_is_help=True)
ModelArgument = Annotated[Path, typer.Argument(help="The GGUF file (the first shard of a split one).")]
BatchOption = Annotated[int, typer.Option("--batch", "-b", min=1, help="Logical batch, tokens.")]
UbatchOption = Annotated[int, typer.Option("--ubatch", "-ub", min=1, help="Physical batch, tokens.")]
KvOption = Annotated[str, typer.Option(help="KV cache type: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.")]
FlashOption = Annotated[str, typer.Option("--flash-attn", "-fa", help="Flash attention: auto, on or off.")]


@app.command("quality")
def quality(
    model: ModelArgument,
    baseline: Annotated[Path, typer.Option("--baseline", help="From 'quantcard baseline record', or a .kld file.")],
    chunks: Annotated[int, typer.Option("--chunks", help="Only the first N chunks; -1: all.")] = -1,
    batch: BatchOption = 2048,
    ubatch: UbatchOption = 512,
    type_k: KvOption = "f16",
    type_v: KvOption = "f16",
    flash_attn: FlashOption = "auto",
    threads: ThreadsOption = 0,
    gpu_layers: GpuLayersOption = -1,
    as_json: JsonOption = False,
) -> None:
    """KL divergence and perplexity against a baseline: llama-perplexity's figures, to the printed digit."""
    spec = QualitySpec(
        model=str(model),
        baseline=str(baseline),
        chunks=chunks,
        n_batch=batch,
        n_ubatch=ubatch,
        type_k=type_k,
        type_v=type_v,
        flash_attn=flash_attn,
        machine=machine(threads, gpu_layers),
    )
    result = run_with_bar(spec, f"quality  {model.name}")
    assert isinstance(result, QualityResult)
    if chunks > result.n_chunks:
        say(f"The baseline holds {result.n_chunks} chunks, so that many were measured.")
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        out.print(quality_table(result))


@app.command("speed")
def speed(
    model: ModelArgument,
    n_prompt: Annotated[str, typer.Option("-p", "--n-prompt", help="Prompt tokens; several: 512,1024.")] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", help="Generated tokens; several: 128,256.")] = "128",
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
