"""A small world for the bot's tests: a hub on localhost, the demo model's quants, cycles with real measurements."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from gguf import GGUFWriter
from huggingface_hub import HfApi

from bot.clock import SystemClock
from bot.commands.common import open_hub
from bot.cycle import Cycle, CycleReport
from bot.queue.runners.local import run_job
from bot.queue.worker import JobEvent
from bot.settings import Settings, load_settings
from bot.store import Store
from core.contract import QuantizeSpec
from core.dataset import DatasetRow
from core.gguf_header import read_file_header
from localhub import demo_model, seed
from localhub.faults import Faults
from localhub.server import HubServer

HERE = Path(demo_model.__path__[0])
F16, CORPUS = HERE / "quantcard-demo-F16.gguf", HERE / "heldout.txt"
UP, BOT = "uploader", "quantbot"
UP_TOKEN, BOT_TOKEN, READ_TOKEN = "hf_up", "hf_bot", "hf_read"
REPO, DATASET = f"{UP}/demo-GGUF", f"{BOT}/results"
BASE = "demo-org/demo"
CARD = f"---\nbase_model: {BASE}\nlicense: mit\n---\n# A model\n\nSome words.\n"
#: CRLF, trailing spaces, no final newline, a fence that holds a marker of ours.
MESSY = (
    f"---\r\nbase_model: {BASE}   # keep me\r\ntags: [ a,b ]\r\nversion: 1.10\r\n---\r\n\r\n# Messy  \r\n\ttabs\r\n"
    "```\r\n<!-- quantcard:begin v=1 -->\r\n```\r\nno newline at the end"
).encode()


@functools.cache
def _folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="quantcard-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def quant(label: str) -> Path:
    """A quant of the demo model, made once."""
    if label == "F16":
        return F16
    path = _folder() / f"demo-{label}.gguf"
    run_job(QuantizeSpec(model=str(F16), out=str(path), file_type=label), timeout=120)
    return path


def with_nan(source: Path, name: str) -> Path:
    """A copy of a Q8_0 file whose head's first scale is NaN, so that every row of logits has one."""
    path = _folder() / name
    shutil.copyfile(source, path)
    header = read_file_header(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    head = tensors.get("output.weight") or tensors["token_embd.weight"]
    with path.open("r+b") as file:
        file.seek(header.data_start + head.offset)
        file.write(b"\x00\x7e" if head.type_name == "Q8_0" else b"\xff" * 512)
    return path


def imatrix(name: str) -> Path:
    """An importance matrix by its header, whatever its name."""
    path = _folder() / name
    writer = GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 4096), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def other_vocabulary(source: Path, name: str) -> Path:
    """A copy in which one token's text is another one's."""
    path = _folder() / name
    raw = bytearray(source.read_bytes())
    text = b"return"
    at = raw.index(struct.pack("<Q", len(text)) + text)
    raw[at + 8 : at + 8 + len(text)] = b"retuzn"
    path.write_bytes(raw)
    return path


@functools.cache
def measured() -> Path:
    """A folder with a database in which F16 and Q8_0 were measured by a real cycle, and its data."""
    folder = _folder() / "measured"
    with World(folder, template=False) as world:
        world.usual("template/demo-GGUF")
        world.follow("template")
        report = world.cycle(publish=False)
        assert report.exit_code == 0 and report.jobs_done == 5, report
        with Store(world.settings().db) as store:
            for table in ("follows", "requests", "keyed", "pulls"):
                store.db.conn.execute(f"DELETE FROM {table}")
            # What was seen of that hub is forgotten; the variants stay as a removed repo's, for the jobs' sake.
            store.db.conn.execute("UPDATE variants SET state = 'removed'")
            store.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


class World:
    """A hub with an uploader and a bot, and the bot's database."""

    def __init__(self, folder: Path, *, template: bool = True) -> None:
        self.folder = folder
        self.faults = Faults()
        self.root = folder / "hub"
        self.events: list[JobEvent] = []
        self.said: list[str] = []
        self.stop = threading.Event()
        if template:
            for name in ("bot.db", "data"):
                source = measured() / name
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
        seed.create_user(self.root, UP, token=UP_TOKEN)
        seed.create_user(self.root, BOT, token=BOT_TOKEN)
        seed.create_user(self.root, BOT, token=READ_TOKEN, role="read")
        self.server = HubServer(self.root, faults=self.faults)

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()

    def settings(self, **more: Any) -> Settings:
        given: dict[str, Any] = {
            "db": self.folder / "bot.db",
            "data_dir": self.folder / "data",
            "hf_endpoint": self.server.url,
            "hf_token": BOT_TOKEN,
            "corpus": CORPUS,
            "chunks": 4,
            "repetitions": 1,
            "dataset": DATASET,
            # Wherever these tests run: what they measure is their own.
            "unsafe_no_sandbox": True,
            **more,
        }
        return load_settings(**given)

    def upload(self, files: dict[str, Path | bytes], repo: str = REPO) -> str:
        return seed.upload_files(self.root, repo, files)

    def usual(self, repo: str = REPO, *, card: bytes = CARD.encode(), **more: Path | bytes) -> None:
        """F16 and Q8_0 with a card: measured already, so that a cycle only publishes."""
        files: dict[str, Path | bytes] = {"demo-F16.gguf": F16, "demo-Q8_0.gguf": quant("Q8_0"), "README.md": card}
        self.upload({**files, **more}, repo)

    def follow(self, name: str = UP, *, consented: bool = False) -> None:
        with Store(self.settings().db) as store:
            store.repos.follow(name, consented=consented, now=time.time())

    def cycle(self, **more: Any) -> CycleReport:
        settings = self.settings(**more)
        self.said.clear()
        self.events.clear()
        with Store(settings.db) as store:
            cycle = Cycle(
                store,
                open_hub(settings),
                settings,
                SystemClock(),
                tell_job=self.events.append,
                tell=self.said.append,
                stop=self.stop,
            )
            return cycle.run()

    def later(self, **more: Any) -> CycleReport:
        """A cycle after so long that every list is read whole and every card decided anew."""
        with Store(self.settings().db) as store:
            store.publishing.touch_all(now=1.0)
        return self.cycle(sweep_interval_s=1e-9, **more)

    def rows(self) -> dict[tuple[str, str, str], DatasetRow]:
        """Rows by repo, variant and state."""
        settings = self.settings()
        with Store(settings.db) as store:
            hub = open_hub(settings)
            cycle = Cycle(
                store, hub, settings, SystemClock(), tell_job=lambda _: None, tell=lambda _: None, stop=self.stop
            )
            return {(row.repo_id, row.variant, row.state): row for row in cycle.rows()}

    def api(self, token: str = UP_TOKEN) -> HfApi:
        return HfApi(endpoint=self.server.url, token=token)

    def pulls(self, repo: str = REPO) -> list[Any]:
        return sorted(self.api().get_repo_discussions(repo, discussion_type="pull_request"), key=lambda pull: pull.num)

    def card(self, revision: str, repo: str = REPO) -> bytes:
        from bot.hub.client import Hub

        return (
            Hub(endpoint=self.server.url, token=None).read(repo, "README.md", revision=revision, limit=1 << 20) or b""
        )

    def environment(self, **more: Any) -> dict[str, str]:
        """The environment for a command of ours over this world."""
        settings = self.settings(**more)
        names = ("db", "data_dir", "corpus", "chunks", "repetitions", "dataset", "lease_s", "port", "webhook_secret")
        given = [name for name in more if not name.startswith("hf_")]
        ours = {f"QUANTCARD_{name.upper()}": str(getattr(settings, name)) for name in (*names, *given)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QUANTCARD_")}
        return {**kept, **ours, "HF_ENDPOINT": settings.hf_endpoint, "HF_TOKEN": str(settings.hf_token)}


@contextmanager
def command(world: World, *arguments: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A running ``quantcard`` command, killed at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bot.cli", *arguments],
        env=world.environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=20)
        if process.stdout:
            process.stdout.close()


def until(condition: Any, *, seconds: float = 30.0) -> Any:
    """Wait until ``condition()`` is true and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come true in time")
