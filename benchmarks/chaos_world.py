"""The world of the chaos run: a Hub in a folder, the real service over it, and whoever kills it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_judge import ENDED, Verdict, below, judge, lives, program, started_below
from benchmarks.children import ROOT
from benchmarks.setting import say
from benchmarks.table import BenchError

LABELS = ("Q8_0", "Q4_K_M", "Q4_0", "Q6_K")
_BOT, _TOKEN = "quantbot", "hf_chaos"
_MODEL = ROOT / "localhub" / "demo_model" / "quantcard-demo-F16.gguf"
#: What tells copies of a file apart: this name in the header, replaced by one of the same length.
_NAME = b"Quantcard Demo"
_PROTOCOL = """
[protocol.chaos]
corpus = {{ path = "{corpus}" }}
n_ctx = 128
chunks = 8
n_batch = 128
n_ubatch = 128
n_prompt = 16
n_gen = 4
repetitions = 1
"""
#: Seconds without any progress after which the run has failed; and for the end after a SIGTERM.
_STALLED_S, _END_S = 180.0, 60.0
#: Seconds that a moment that was wished for is waited for.
_MOMENT_S = 5.0
_ANY = "service, at any moment"
#: How often which kill comes.
KINDS = {
    "service, while it starts": 15,
    _ANY: 20,
    "service, with an output just finished": 15,
    "service, with a job just ended": 10,
    "service, while a file is fetched": 8,
    "a child": 20,
    "service and a child": 6,
    "everything at once": 6,
}
LAST = "service, after its last job"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much chaos.

    ``variants``: files beside the reference, each with two jobs; they come in ``waves``, some repos at a time.
    ``pause_s``: the longest that a kill at a random moment waits for it.
    """

    kills: int
    variants: int
    repos: int
    waves: int
    labels: tuple[str, ...] = LABELS
    seed: int = 5
    limit_s: float = 3 * 3600.0
    pause_s: float = 3.0

    @property
    def jobs(self) -> int:
        """What the repos call for: quality and speed of each file and of the reference, and one baseline."""
        return 2 * (self.variants + 1) + 1


@dataclass
class Told:
    """What a run tells."""

    verdict: Verdict
    kills: Counter[str] = field(default_factory=Counter)
    #: What the killed children were.
    victims: Counter[str] = field(default_factory=Counter)
    #: Process number and time of each start of the service.
    starts: list[tuple[int, float]] = field(default_factory=list)
    #: Seconds that the longest-living child outlived its service.
    outlived: float = 0.0
    seconds: float = 0.0


class World:
    """A Hub, a service over it, and whoever kills it."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.db, self.data, self.tmp = folder / "bot.db", folder / "data", folder / "tmp"
        self._chance = random.Random(plan.seed)
        self._kills: Counter[str] = Counter()
        self._victims: Counter[str] = Counter()
        self._starts: list[tuple[int, float]] = []
        self._outlived = 0.0
        self._service: subprocess.Popen[bytes] | None = None
        self._waves = 0
        self._began = 0.0
        self._url = ""
        self._quants: dict[str, bytes] = {}

    def play(self) -> Told:
        """All of it; whatever was started has ended at the end."""
        from localhub.server import HubServer

        began = self._began = time.monotonic()
        self._prepare()
        with HubServer(self.folder / "hub") as hub, self._ended():
            self._url = hub.url
            self._start()
            for number in range(self.plan.kills):
                self._one_kill(number)
            self._next_waves(self.plan.waves)
            self._wait(lambda: self._count("1") == self.plan.jobs and not self._open(), "its jobs end")
            if self.plan.kills:
                self._kill_service(LAST)
                self._start()
            self._come_to_rest()
            verdict = judge(self.folder, self._url, _TOKEN, self._repos(), _BOT)
        told = Told(verdict, self._kills, self._victims, self._starts, self._outlived)
        told.seconds = time.monotonic() - began
        return told

    def _prepare(self) -> None:
        from bot.store import Store
        from localhub import seed

        self.tmp.mkdir(parents=True)
        # Another user may have to get there.
        for place in (self.folder.parent, self.folder):
            place.chmod(0o755)
        corpus = _MODEL.with_name("heldout.txt")
        (self.folder / "protocols.toml").write_text(_PROTOCOL.format(corpus=corpus))
        seed.create_user(self.folder / "hub", _BOT, token=_TOKEN)
        self._quants = {label: _quantized(self.folder, label) for label in self.plan.labels}
        self._next_waves(1)
        with Store(self.db) as store:
            for repo in self._repos():
                store.repos.follow(repo.split("/")[0], consented=False, now=time.time())

    def _repos(self) -> list[str]:
        return [f"owner-{number}/demo-{number}-GGUF" for number in range(self.plan.repos)]

    def _next_waves(self, wanted: int) -> None:
        """Upload the repos of the first ``wanted`` waves, as far as they are not there."""
        from localhub import seed

        for number, repo in enumerate(self._repos()):
            wave = number * self.plan.waves // self.plan.repos
            if not self._waves <= wave < wanted:
                continue
            files: dict[str, Path | bytes] = {"demo-F16.gguf": _MODEL, "README.md": _card(number)}
            for one in range(number, self.plan.variants, self.plan.repos):
                label = self.plan.labels[one // self.plan.repos % len(self.plan.labels)]
                renamed = self._quants[label].replace(_NAME, f"Copy {one:09d}".encode(), 1)
                files[f"demo-{one:04d}-{label}.gguf"] = renamed
            seed.upload_files(self.folder / "hub", repo, files, durable=False)
        self._waves = max(self._waves, wanted)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("QUANTCARD_", "HF_", "TMPDIR"))
        }
        settings = {
            "db": self.db,
            "data_dir": self.data,
            "protocols": self.folder / "protocols.toml",
            "protocol": "chaos",
            "dataset": f"{_BOT}/results",
            "local_slots": 2,
            "threads": 1,
            "lease_s": 20,
            "poll_interval_s": 10,
            "port": 0,
            # So that there are moments at which a small file is being fetched.
            "download_ahead_mb_per_s": 6,
            "pulls_per_hour": 1000,
            "unsafe_no_sandbox": "true",
        }
        return {
            **kept,
            **{f"QUANTCARD_{name.upper()}": str(value) for name, value in settings.items()},
            "HF_ENDPOINT": self._url,
            "HF_TOKEN": _TOKEN,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "TMPDIR": str(self.tmp),
            "PYTHONPATH": str(ROOT),
        }

    def _start(self) -> None:
        with (self.folder / "serve.log").open("ab") as log:
            self._service = subprocess.Popen(
                [sys.executable, "-m", "bot.cli", "serve"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._starts.append((self._service.pid, time.time()))

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """Nothing that was started here lives on, whatever happens."""
        try:
            yield
        finally:
            if self._service is not None and self._service.poll() is None:
                self._service.kill()
                self._service.wait()
            for pid in started_below(self.folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # When to kill what.

    def _one_kill(self, number: int) -> None:
        plan = self.plan
        kind = self._chance.choices([*KINDS], weights=[*KINDS.values()])[0]
        self._next_waves(1 + number * plan.waves // plan.kills)
        if number % 10 == 0:
            ended = self._count(f"state IN {ENDED}")
            say(f"{number} kills, {ended} jobs ended, {time.monotonic() - self._began:.0f} s")
        if kind == "service, while it starts":
            time.sleep(self._chance.uniform(0.0, self.plan.pause_s + 1.0))
        else:
            # As many kills in the first half of the work as in the second; and it has to get on between them.
            due = 0.9 * plan.jobs * number / plan.kills
            self._wait(lambda: self._count(f"state IN {ENDED}") >= due, f"{due:.0f} jobs end")
            kind = self._moment(kind)
        if kind == "a child":
            until = time.monotonic() + 4 * _MOMENT_S
            while not (killed := self._kill_child(kind)) and time.monotonic() < until:
                self._check()
                time.sleep(0.05)
            if killed:
                return
            kind = _ANY
        if kind == "service and a child" and not self._kill_child(None):
            kind = _ANY
        self._kill_service(kind)
        self._start()

    def _moment(self, kind: str) -> str:
        """Wait for the moment that a kill is meant for, but not for long; what kind of a kill it is now."""
        done = self._count("state = 'done'")
        comes: dict[str, Callable[[], bool]] = {
            "service, with an output just finished": lambda: (
                _holds(self.data / "work", "*/*.parquet") or _holds(self.data / "work", "*/*.gguf")
            ),
            "service, with a job just ended": lambda: self._count("state = 'done'") > done,
            "service, while a file is fetched": lambda: _holds(self.data / "models", "**/*.part"),
        }
        if kind not in comes:
            time.sleep(self._chance.uniform(0.0, self.plan.pause_s))
            return kind
        until = time.monotonic() + _MOMENT_S
        while not comes[kind]():
            self._check()
            if time.monotonic() > until:
                return _ANY
            time.sleep(0.002)
        time.sleep(self._chance.uniform(0.0, 0.05))
        return kind

    def _kill_child(self, kind: str | None) -> bool:
        """Kill a random process below the service; one that measures the only baseline is let live its third time."""
        assert self._service is not None
        there = sorted(below(self._service.pid))
        if not there or self._count("kind = 'baseline' AND attempts >= 2 AND state <> 'done'"):
            return False
        pid = self._chance.choice(there)
        name = program(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._victims[name] += 1
        if kind is not None:
            self._kills[kind] += 1
        return True

    def _kill_service(self, kind: str) -> None:
        self._check()
        assert self._service is not None
        children = below(self._service.pid)
        self._service.kill()
        if kind == "everything at once":
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._service.wait()
        killed = time.monotonic()
        self._kills[kind] += 1
        while any(map(lives, children)) and time.monotonic() < killed + _MOMENT_S:
            time.sleep(0.005)
        self._outlived = max(self._outlived, time.monotonic() - killed)

    # How far it is.

    def _check(self) -> None:
        """Raise :class:`BenchError` where the service has ended by itself, or all of it takes too long."""
        if self._service is not None and self._service.poll() is not None:
            raise BenchError(f"The service ended by itself (code {self._service.returncode}): {self._last_words()}")
        if time.monotonic() > self._began + self.plan.limit_s:
            raise BenchError(f"It took longer than {self.plan.limit_s:.0f} s: {self._last_words()}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        seen, since = -1, time.monotonic()
        while not condition():
            self._check()
            if (now := self._count("state IN ('done')")) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() > since + _STALLED_S:
                raise BenchError(f"In {_STALLED_S:.0f} s nothing went on until {what}: {self._last_words()}")
            time.sleep(0.05)

    def _come_to_rest(self) -> None:
        """Let it publish, end it as a system does, and see that it ends well."""
        assert self._service is not None
        repos = len(self._repos())
        self._wait(lambda: self._ask("SELECT COUNT(*) FROM pulls") >= repos, "the pulls are opened")
        exported = "SELECT COUNT(*) FROM keyed WHERE name = 'export' AND value = 'done'"
        self._wait(lambda: self._ask(exported) > 0, "the dataset is written")
        self._service.send_signal(signal.SIGTERM)
        try:
            code = self._service.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            raise BenchError(f"SIGTERM did not end it in {_END_S:.0f} s: {self._last_words()}") from None
        if code:
            raise BenchError(f"SIGTERM ended it with code {code}: {self._last_words()}")

    def _open(self) -> int:
        return self._count(f"state NOT IN {ENDED}")

    def _count(self, where: str) -> int:
        return self._ask(f"SELECT COUNT(*) FROM jobs WHERE {where}")

    def _ask(self, question: str) -> int:
        with closing(sqlite3.connect(self.db, timeout=30)) as connection:
            return int(connection.execute(question).fetchone()[0])

    def _last_words(self) -> str:
        lines = (self.folder / "serve.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:])[-800:]


def _quantized(folder: Path, label: str) -> bytes:
    """The demo's model as this type."""
    from bot.queue.runners.local import run_job
    from core.contract import QuantizeSpec

    path = folder / f"{label}.gguf"
    run_job(QuantizeSpec(model=str(_MODEL), out=str(path), file_type=label), timeout=300)
    made = path.read_bytes()
    path.unlink()
    return made


def _card(number: int) -> bytes:
    return f"---\nbase_model: nobody/demo-{number}\nlicense: mit\n---\n# Demo {number}\n\nSome words.\n".encode()


def _holds(folder: Path, pattern: str) -> bool:
    """Whether there is such a file; folders may go while they are looked through."""
    with suppress(OSError):
        return any(True for _ in folder.glob(pattern))
    return False
