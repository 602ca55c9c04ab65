"""Tasks over tiny models, for the tests of runners that measure elsewhere."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bot.queue.runners.base import ModelSource, Stages, Task
from core.contract import BaselineSpec, Machine, ProgressEvent, SpeedSpec
from core.gguf_files import RepoFile
from core.need import Need
from core.sandbox.child import StopReason
from tests.tiny_models import tiny_model

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests for a while. "
ONE_THREAD = Machine(n_threads=1, n_gpu_layers=0)
STAGES = Stages(queued=60, fetching=60, measuring=120, uploading=60)
NEED = Need(
    weights=1 << 20, kv_cache=0, logits=0, compute=0, baseline=0, disk=1 << 20, n_layers=2, largest_layer=1 << 18
)


@dataclass
class Files:
    """A model and texts in a folder that stands for the bot's data folder."""

    folder: Path
    model: Path = field(init=False)
    corpus: Path = field(init=False)
    long_corpus: Path = field(init=False)

    def __post_init__(self) -> None:
        place = self.folder / "models" / "m"
        place.mkdir(parents=True)
        self.model = place / "m-Q8_0.gguf"
        tiny_model(self.model, "llama-tied")
        self.corpus, self.long_corpus = self.folder / "short.txt", self.folder / "long.txt"
        self.corpus.write_text(TEXT * 10)
        self.long_corpus.write_text(TEXT * 8000)

    def task(self, *, name: str = "t", long: bool = False) -> Task:
        """Record a baseline in a folder of its own: a second's work, or minutes of it."""
        spec = BaselineSpec(
            reference=str(self.model),
            corpus=str(self.long_corpus if long else self.corpus),
            out=str(self.folder / "work" / name / "b.kld"),
            format="logits",
            n_ctx=64,
            chunks=-1 if long else 2,
            n_batch=64,
            n_ubatch=64,
            machine=ONE_THREAD,
        )
        return self.of(spec, name=name)

    def of(self, spec: BaselineSpec | SpeedSpec, *, name: str = "t") -> Task:
        """A task with this spec under an id that no other one has."""
        data = self.model.read_bytes()
        file = RepoFile(path=self.model.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        return Task(
            id=f"{name}-{secrets.token_hex(6)}",
            nonce=secrets.token_hex(16),
            spec=spec,
            model=ModelSource(repo_id="owner/m-GGUF", revision="0" * 40, files=(file,)),
            need=NEED,
            stages=STAGES,
        )


class Switch:
    """A stop that a test sets."""

    def __init__(self) -> None:
        self._reason: StopReason | None = None

    @property
    def reason(self) -> StopReason:
        assert self._reason is not None, "asked for before it was set"
        return self._reason

    def set(self, reason: StopReason) -> None:
        self._reason = reason

    def is_set(self) -> bool:
        return self._reason is not None


@dataclass
class Heard:
    """What a runner reported."""

    events: list[ProgressEvent] = field(default_factory=list)

    def __call__(self, event: ProgressEvent) -> None:
        self.events.append(event)

    @property
    def stages(self) -> list[str]:
        """The stages in the order in which they began."""
        return list(dict.fromkeys(event.stage for event in self.events))


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.05)
