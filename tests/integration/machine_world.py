"""The world of the pull machine: a hub whose owners do as they like, and a bot that can be killed at any line.

Owners act on the hub's own folder, so that they can also act in the middle of a cycle of ours. Only measuring is not
real here: figures come from a file's bytes at once. Everything else is the bot's code, its database, the client, HTTP.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace, TracebackType
from typing import Any, Literal, Self

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from huggingface_hub.utils import _http, httpx

import bot
from bot.clock import FakeClock
from bot.commands import common
from bot.commands.common import open_hub
from bot.cycle import Cycle, CycleReport
from bot.hub import base, session
from bot.queue.runners import registry
from bot.queue.runners.base import Stop, Task
from bot.settings import Settings, load_settings
from bot.store import Store
from core.contract import BaselineResult, BaselineSpec, QualityResult, QualitySpec, Result, SpeedResult, SpeedSpec
from core.errors import NonFiniteLogitsError
from core.need import Capacity
from localhub import disk, seed
from localhub.faults import Faults
from localhub.server import HubServer

BOT, BOT_TOKEN, STRANGER = "quantbot", "hf_bot", "passer-by"


@dataclass(frozen=True)
class Owner:
    """Who owns repos, and who acts for them: for an organisation one of its members."""

    name: str
    consented: bool
    acts: str


OWNERS = (Owner("alice", False, "alice"), Owner("bob", True, "bob"), Owner("acme", False, "carol"))
REPOS = ("alice/one-GGUF", "alice/two-GGUF", "bob/one-GGUF", "acme/one-GGUF")
OWNER_OF = {repo: next(owner for owner in OWNERS if repo.startswith(f"{owner.name}/")) for repo in REPOS}

LABELS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
#: The files that owners upload, by number; 0 is the reference. The last one can't be measured.
MARKS = range(8)
BROKEN_MARK = MARKS[-1]
HOUR, DAY = 3600.0, 86_400.0


@functools.cache
def _folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="quantcard-machine-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def gguf(mark: int) -> bytes:
    """A whole small GGUF: unquantized for 0, else Q4_0 with other weights for each number."""
    path = _folder() / f"{mark}.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(8)])
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight"):
        if mark:
            raw = np.full((8, 18), mark, dtype=np.uint8)
            writer.add_tensor(name, raw, raw_shape=(8, 18), raw_dtype=GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, np.full((8, 32), 1, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@functools.cache
def key_of(mark: int) -> str:
    """A file's sha256."""
    return hashlib.sha256(gguf(mark)).hexdigest()


def mark_of(path: Path) -> int:
    """The number of a file."""
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    return next(mark for mark in MARKS if key_of(mark) == key)


def true_kld(mark: int, series: int) -> float:
    """The mean KLD (nats) that measuring a file gives; it is another one in another series of measurements."""
    return 0.0 if mark == 0 else round(0.0007 * 2.0**mark * (1 + series % 3), 7)


class Measuring:
    """Stands in for a runner: answers a job at once, by the file's bytes."""

    name, slots, local_files = "local", 1, True

    def __init__(self) -> None:
        self.series = 0

    def capacity(self) -> Capacity:
        return Capacity(memory=None)

    def run(self, task: Task, *, report: Any, stop: Stop) -> Result:
        spec = task.spec
        if isinstance(spec, BaselineSpec):
            Path(spec.out).write_bytes(b"recorded")
            return BaselineResult(
                path=spec.out, format=spec.format, size_bytes=8, sha256=hashlib.sha256(b"recorded").hexdigest(),
                reference_sha256="0" * 64,
                ppl=_estimate(5.0), n_ctx=512, n_vocab=8, n_chunks=4, n_tokens=1024, environment=_ENVIRONMENT,
            )  # fmt: skip
        mark = mark_of(Path(spec.model))
        if mark == BROKEN_MARK:
            raise NonFiniteLogitsError("INVALID: its logits are no numbers.")
        if isinstance(spec, QualitySpec):
            Path(str(spec.tokens_out)).write_bytes(b"tokens")
            return _quality(true_kld(mark, self.series), spec)
        assert isinstance(spec, SpeedSpec)
        return _speed(100.0 + mark, Path(spec.model).name)


_ENVIRONMENT: Any = {
    "llama_cpp": "llama.cpp 0c1e570", "backend": "CPU", "system_info": "AVX2 = 1", "cpu": "a CPU", "gpu": None,
    "driver": None, "n_threads": 8, "n_gpu_layers": 0, "repack": True,
}  # fmt: skip
_TAILS = ("p99_9", "p99", "p95", "p90", "p75", "median", "p25", "p10", "p5", "p1", "p0_1", "min")


def _estimate(value: float) -> Any:
    return {"value": value, "stderr": 1e-6}


def _quality(kld: float, spec: QualitySpec) -> QualityResult:
    moments = {"mean": kld, "stderr": kld / 1000, "max": 9 * kld, **dict.fromkeys(_TAILS, kld)}
    return QualityResult.model_validate(
        {
            "scoring": "llama-cpp" if spec.as_llama_cpp else "unclipped",
            "ppl": _estimate(5.0 + kld), "ppl_base": _estimate(5.0), "ppl_ratio": _estimate(1.0 + kld),
            "ln_ppl_ratio": _estimate(kld), "ppl_cor": 0.99,
            "kld": {name: value for name, value in moments.items() if name not in ("p75", "p25")},
            "delta_p": {"rms": kld, "rms_stderr": kld / 1000, **moments}, "same_top": _estimate(1 - min(kld, 0.9)),
            "n_tokens": 1024, "n_chunks": 4, "protocol": {"n_ctx": 512}, "environment": _ENVIRONMENT,
        }
    )  # fmt: skip


def _speed(rate: float, name: str) -> SpeedResult:
    shared = {
        "model_filename": name, "model_type": "llama", "model_size": 1, "model_n_params": 1, "n_batch": 512,
        "n_ubatch": 512, "n_threads": 8, "type_k": "f16", "type_v": "f16", "n_gpu_layers": 0, "flash_attn": "auto",
        "n_depth": 0, "test_time": "2026-11-21T12:00:00Z", "avg_ns": 1, "stddev_ns": 1, "avg_ts": rate,
        "stddev_ts": 0.1, "samples_ns": [1], "samples_ts": [rate],
    }  # fmt: skip
    tests = [{**shared, "n_prompt": prompt, "n_gen": gen} for prompt, gen in ((512, 0), (0, 128))]
    return SpeedResult.model_validate({"tests": tests, "environment": _ENVIRONMENT})


@contextmanager
def quick(measuring: Measuring) -> Iterator[pytest.MonkeyPatch]:
    """Measuring as above; nothing waits (no pause between tries, no fsync of the hub's), and dry runs are silent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.RUNNERS, "local", lambda *_: measuring)
        at_once = SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic, time=time.time)
        patch.setattr(base, "time", at_once)
        patch.setattr(_http, "time", at_once)
        patch.setattr(disk._Durability, "on", False)
        patch.setattr(common, "say", lambda *_: None)
        yield patch


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """The client waits this long for an answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "TIMEOUT", httpx.Timeout(seconds))
        _http.close_session()
        yield
    _http.close_session()


@functools.cache
def learned() -> Path:
    """A folder with the database of a bot that measured every file once and knows no repo any more."""
    folder = _folder() / "learned"
    with quick(Measuring()), World(folder, template=False) as world:
        names = {f"m-{mark}.gguf": gguf(mark) for mark in MARKS if mark}
        seed.upload_files(world.root, "someone/all-GGUF", {"m-F16.gguf": gguf(0), **names})
        with Store(world.db) as store:
            store.repos.follow("someone", consented=False, now=world.clock.now())
        report = world.cycle(publish=False)
        assert report.jobs_done == 2 * len(MARKS) - 1 and report.jobs_dead == 2, report
        with Store(world.db) as store:
            for table in ("follows", "requests", "keyed", "pulls", "publishing"):
                store.db.conn.execute(f"DELETE FROM {table}")
            store.db.conn.execute("UPDATE variants SET state = 'removed'")
            store.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


#: Where a killed bot dies: anywhere, or where it decides, writes to the Hub or remembers what it wrote.
Scope = Literal["anywhere", "publishing"]
_BOT = str(Path(bot.__path__[0]))
_PUBLISHING = tuple(
    f"{_BOT}/{name}"
    for name in ("publish/", "cycle.py", "hub/client.py", "store/results.py", "store/answers.py", "store/publishing.py")
)
_DIED, _FAILED = 77, 78
#: How often the same line counts: a repo comes after a repo, but a card has hundreds of lines.
_ROUNDS = 3


class World:
    """A hub, its people, the bot's database, and the time as the bot sees it."""

    def __init__(self, folder: Path, *, template: bool = True) -> None:
        self.folder, self.root, self.db = folder, folder / "hub", folder / "bot.db"
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = FakeClock(float(int(time.time())))
        self.faults = Faults()
        self._corpus = folder / "corpus.txt"
        self._corpus.write_text("A corpus.\n")
        if template:
            shutil.copyfile(learned() / "bot.db", self.db)
            shutil.copytree(learned() / "data", folder / "data")
        for owner in OWNERS:
            if owner.acts != owner.name:
                seed.create_user(self.root, owner.name, is_org=True, members=(owner.acts,))
            seed.create_user(self.root, owner.acts, token=f"hf_{owner.acts}")
        seed.create_user(self.root, BOT, token=BOT_TOKEN)
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
            "db": self.db,
            "data_dir": self.folder / "data",
            "hf_endpoint": self.server.url,
            "hf_token": BOT_TOKEN,
            "corpus": self._corpus,
            "download_ahead": 0,
            **more,
        }
        return load_settings(**given)

    def follow_all(self) -> None:
        with Store(self.db) as store:
            for owner in OWNERS:
                store.repos.follow(owner.name, consented=owner.consented, now=self.clock.now())

    def lose_database(self) -> None:
        """The operator starts over: what was measured is there, everything about pulls is not."""
        for path in self.folder.glob("bot.db*"):
            path.unlink()
        shutil.copyfile(learned() / "bot.db", self.db)
        self.follow_all()

    def pass_time(self, seconds: float) -> None:
        """Move the clock; what the Hub said of its budget is over by then."""
        self.clock.time += seconds
        session._budgets.clear()

    def cycle(self, **more: Any) -> CycleReport:
        """One cycle of a new process."""
        self.clock.time += 1
        settings = self.settings(**more)
        with Store(self.db) as store:
            return Cycle(
                store,
                open_hub(settings),
                settings,
                self.clock,
                tell_job=lambda _: None,
                tell=lambda _: None,
                stop=threading.Event(),
            ).run()

    def die(self, kill: Callable[[], None], **more: Any) -> bool:
        """A cycle of a process in which ``kill`` sets a trap first; whether it ran into it."""
        told = self.folder / "died.txt"
        child = os.fork()
        if child == 0:
            try:
                kill()
                self.cycle(**more)
                os._exit(0)
            except KeyboardInterrupt:
                os._exit(_DIED)
            except BaseException:
                told.write_text(traceback.format_exc())
            finally:
                os._exit(_FAILED)
        self.clock.time += 1
        status = _wait(child)
        if status not in (0, _DIED):
            raise AssertionError(f"The cycle ended in {status}: {told.read_text() if told.exists() else ''}")
        return status == _DIED


def _wait(child: int) -> int:
    """A child's exit status; one that hangs is killed."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def kill_at(line: int, scope: Scope = "anywhere", *, interrupt: bool = False) -> None:
    """End this process before the ``line``-th line of our code in this thread; of a loop's lines the first rounds.

    ``interrupt``: it is asked to end instead, so that what is in ``finally`` is still done.
    """
    left = line
    files = (_BOT,) if scope == "anywhere" else _PUBLISHING
    seen: Counter[tuple[str, int]] = Counter()

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno)
            seen[place] += 1
            left -= seen[place] <= _ROUNDS
            if left == 0:
                if interrupt:
                    raise KeyboardInterrupt
                os._exit(_DIED)
        return on_line

    def on_call(frame: FrameType, _event: str, _: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(files) else None

    sys.settrace(on_call)


def kill_in(function: str) -> None:
    """End this process where it calls this function (``Class.method``) of ours."""

    def on_call(frame: FrameType, _event: str, _: Any) -> None:
        if frame.f_code.co_qualname == function and frame.f_code.co_filename.startswith(_BOT):
            os._exit(_DIED)

    sys.settrace(on_call)
