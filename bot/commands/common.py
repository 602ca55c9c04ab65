"""What commands share: options, opening the store and the Hub, running one job with a progress bar."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from bot.hub.client import Hub
from bot.hub.dry_run import DryRunHub
from bot.intake.references import Choice
from bot.intake.view import view
from bot.progress import Bars, say
from bot.queue.runners.local import JobStopped, run_job
from bot.settings import Settings
from bot.store import Store
from bot.store.repos import Variant
from bot.switch import guard
from core.contract import Machine, ProgressEvent, Result
from core.errors import SettingsError
from core.gguf_files import variant_name
from core.repo_names import is_repo_id
from core.sandbox.levels import Sandbox

DbOption = Annotated[Path | None, typer.Option("--db", help="The database (QUANTCARD_DB).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ThreadsOption = Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads; 0: the physical cores.")]
GpuLayersOption = Annotated[int, typer.Option("--gpu-layers", "-ngl", help="Layers on the GPU; -1: all.")]
BatchOption = Annotated[int, typer.Option("--batch", "-b", min=1, help="Logical batch, tokens.")]
UbatchOption = Annotated[int, typer.Option("--ubatch", "-ub", min=1, help="Physical batch, tokens.")]
KvOption = Annotated[str, typer.Option(help="KV cache type: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.")]
FlashOption = Annotated[str, typer.Option("--flash-attn", "-fa", help="Flash attention: auto, on or off.")]


def machine(threads: int, gpu_layers: int) -> Machine:
    """How a job may use this machine."""
    return Machine(n_threads=threads, n_gpu_layers=gpu_layers)


def open_hub(settings: Settings) -> Hub:
    """The Hub that the settings name, which asks the kill switch before every write, or its dry-run twin."""
    if settings.dry_run:
        return DryRunHub(endpoint=settings.hf_endpoint, token=settings.hf_token, tell=say)
    return Hub(endpoint=settings.hf_endpoint, token=settings.hf_token, allowed=guard(settings.db))


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that long work ends cleanly; a second SIGINT ends it at once."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@cache
def _say_once(sentence: str) -> None:
    say(sentence)


def run_with_bar(
    spec: BaseModel, title: str, *, timeout: float = 7 * 24 * 3600.0, sandbox: Sandbox | None = None
) -> Result:
    """Run one job in its own process with a progress bar on stderr.

    The file is the person's own, so it is run in the best sandbox there is, and where there is none, without.

    Raises:
        QuantcardError: the job's own error.
    """
    with stop_on_signals() as stop, Bars() as bars:
        bars.update(title, None)

        def on_progress(event: ProgressEvent) -> None:
            bars.update(title, event)

        try:
            return run_job(spec, timeout=timeout, on_progress=on_progress, stop=stop, sandbox=sandbox, say=_say_once)
        except JobStopped:
            raise KeyboardInterrupt from None


def numbers(text: str, *, option: str) -> list[int]:
    """``512`` or ``512,1024`` as numbers.

    Raises:
        QuantcardError: not numbers.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number or a list of numbers.", param_hint=option) from None
    if any(number < 0 for number in found):
        raise typer.BadParameter("Numbers must not be negative.", param_hint=option)
    return found


def find_variant(store: Store, settings: Settings, target: str) -> tuple[Variant, Choice]:
    """The current variant called OWNER/REPO/FILE.gguf, with its reference.

    Raises:
        SettingsError: there is none as last seen.
    """
    owner, name, path = (*target.split("/", 2), "", "")[:3]
    repo_id = f"{owner}/{name}"
    if not path or not is_repo_id(repo_id):
        raise SettingsError(f"{target!r} is not a file on the Hub. Write OWNER/REPO/FILE.gguf.")
    known = store.repos.named(repo_id)
    here = view(store, trusted=settings.trusted_owners).of(known.id) if known else []
    for variant, choice in here:
        if variant.name == variant_name(path):
            return variant, choice
    if here:
        names = ", ".join(variant.name for variant, _ in here)
        raise SettingsError(f"There is no {path} in {repo_id} as last seen, only {names[:300]}.")
    raise SettingsError(
        f"{repo_id} was not looked into yet. Run 'quantcard follow {repo_id}' and then 'quantcard run --once'."
    )
