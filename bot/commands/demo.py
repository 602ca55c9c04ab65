"""``quantcard demo``: the whole main job on this machine, with a Hub of its own and a model that ships with us."""

from __future__ import annotations

import json
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from bot.commands.common import open_hub, run_with_bar
from bot.commands.run import run_cycle
from bot.progress import say
from bot.settings import Settings, load_settings
from bot.store import Store
from bot.tables import out, rows_table
from core.canonical import sha256_file, write_atomic
from core.contract import QuantizeSpec
from core.gguf_header import read_file_header
from core.protocol import PROTOCOLS
from core.sandbox.levels import NONE

UPLOADER, BOT, REPO = "demo-uploader", "quantcard-bot", "demo-uploader/quantcard-demo-GGUF"
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
BOT_TOKEN, UPLOADER_TOKEN = "hf_demo_bot", "hf_demo_uploader"
DATASET = f"{BOT}/results"
PROTOCOL = PROTOCOLS["demo"]

CARD = f"""---
license: apache-2.0
base_model: quantcard-demo/quantcard-demo
library_name: gguf
tags: [gguf, demo]   # a comment that must survive
---
# quantcard-demo-GGUF

Quants of a 3.7M-parameter model trained on CPython's documentation, made on this machine a moment ago.

| file | for |
|---|---|
{"".join(f"| quantcard-demo-{q}.gguf | ? |" + chr(10) for q in QUANTS)}
No idea which one to pick? Neither have I.
"""


def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit 0 when all is done instead of serving on.")] = False,
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo keeps its files.")] = Path(".quantcard-demo"),
    port: Annotated[int, typer.Option("--port", help="The leaderboard's port; 0: any free one.")] = 7860,
    hub_port: Annotated[int, typer.Option("--hub-port", help="The demo Hub's port; 0: any free one.")] = 8788,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: remove what an earlier demo left.")] = False,
) -> None:
    """Upload a model's quants to a Hub of our own, have the bot measure them and open a pull, show the leaderboard."""
    from localhub.server import HubServer

    started = time.monotonic()
    if fresh:
        _clear(folder)
    root = folder / "hub"
    _seed(folder, root)
    with HubServer(root, port=_free(hub_port)) as server:
        settings = _settings(folder, server.url, _free(port))
        with Store(settings.db) as store:
            store.repos.follow(UPLOADER, consented=False, now=time.time())
        report, rows = run_cycle(settings)
        out.print()
        out.print(rows_table(rows, title=REPO))
        out.print()
        with Store(settings.db) as store:
            pulls = store.results.pulls(REPO)
        for pull in pulls:
            out.print(f"Pull ({pull.status}): {server.url}/{REPO}/discussions/{pull.num}", markup=False)
        new = sum(outcome.decision.action == "open" for outcome in report.outcomes)
        say(f"{report.jobs_done} jobs run, {new} pulls opened, {time.monotonic() - started:.0f} s.")
        if not once:
            _serve_on(settings, server.url)
            return
        if report.exit_code:
            raise typer.Exit(report.exit_code)


def _serve_on(settings: Settings, hub_url: str) -> None:
    """The service itself, so that what is asked for on the page is measured; polls are free on a Hub of our own."""
    from bot.service import Service

    out.print(f"Leaderboard: http://{settings.host}:{settings.port}", markup=False)
    out.print(f"The demo's Hub: {hub_url}/{REPO}", markup=False)
    sys.stdout.flush()
    say("Both keep serving; Ctrl-C ends them.")
    Service(settings, open_hub(settings)).run()


def _settings(folder: Path, endpoint: str, port: int) -> Settings:
    with as_file(files("localhub.demo_model") / "heldout.txt") as corpus:
        return load_settings(
            db=folder / "quantcard.db",
            data_dir=folder / "data",
            hf_endpoint=endpoint,
            hf_token=BOT_TOKEN,
            protocol=PROTOCOL.name,
            # The protocol's own values once more, so that no setting of the user's makes another one of it.
            corpus=corpus,
            chunks=PROTOCOL.chunks,
            n_ctx=PROTOCOL.n_ctx,
            repetitions=PROTOCOL.repetitions,
            dataset=DATASET,
            publish=True,
            dry_run=False,
            # Its files are our own, made a moment ago: it is to work on a machine without bubblewrap.
            unsafe_no_sandbox=True,
            poll_interval_s=20.0,
            host="127.0.0.1",
            port=port,
        )


def _seed(folder: Path, root: Path) -> None:
    """Make the quants and upload them with a messy card, once; a second demo finds them there."""
    from localhub import seed

    with as_file(files("localhub.demo_model") / "quantcard-demo-F16.gguf") as source:
        stamp = {"reference": sha256_file(source), "quants": list(QUANTS), "card": CARD}
        done = folder / "seeded.json"
        if done.exists() and json.loads(done.read_text()) == stamp:
            return
        _clear(folder)
        quants = folder / "quants"
        reference = quants / "quantcard-demo-F16.gguf"
        write_atomic(reference, source.read_bytes())
    read_file_header(reference)
    for label in QUANTS:
        path = quants / f"quantcard-demo-{label}.gguf"
        spec = QuantizeSpec(model=str(reference), out=str(path), file_type=label)
        run_with_bar(spec, f"quantize {label}", sandbox=NONE)
        say(f"Made {path.name}.")
    seed.create_user(root, UPLOADER, token=UPLOADER_TOKEN)
    seed.create_user(root, BOT, token=BOT_TOKEN)
    uploads: dict[str, Path | bytes] = {path.name: path for path in sorted(quants.glob("*.gguf"))}
    seed.upload_files(root, REPO, {**uploads, "README.md": CARD.encode()}, message="Upload quants")
    write_atomic(done, json.dumps(stamp))


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left; only files that a demo makes, never a folder of somebody else's."""
    import shutil

    for name in ("hub", "quants", "data"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("seeded.json", "quantcard.db", "quantcard.db-wal", "quantcard.db-shm"):
        (folder / name).unlink(missing_ok=True)


def _free(port: int) -> int:
    """``port`` if nobody listens there, else one that is free."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
