"""How the local runner lays a job on this machine's GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.queue.runners.base import ModelSource, Stages, Task
from bot.queue.runners.local import LocalRunner
from bot.settings import load_settings
from core.contract import Machine, SpeedSpec
from core.errors import TooLargeError
from core.gguf_files import RepoFile
from core.need import Capacity, Need

GB = 10**9
NEED = Need(
    weights=32 * GB, kv_cache=GB, logits=0, compute=GB, baseline=0, disk=32 * GB, n_layers=32, largest_layer=GB,
    outside_layers=0,
)  # fmt: skip


class Here(LocalRunner):
    def __init__(self, tmp_path: Path, capacity: Capacity) -> None:
        super().__init__(load_settings(db=tmp_path / "q.db", unsafe_no_sandbox=True))
        self.there = capacity

    def capacity(self) -> Capacity:
        return self.there


def layers(tmp_path: Path, capacity: Capacity, *, need: Need | None = NEED, **machine: Any) -> int:
    source = ModelSource("o/r", "1", (RepoFile("m-Q4_K_M.gguf", 32 * GB, "a" * 64),))
    spec = SpeedSpec(model="m.gguf", machine=Machine(**machine))
    task = Task("id", "0" * 32, spec, source, need, Stages(1, 1, 1, 1))
    return Here(tmp_path, capacity)._placed(task).machine.n_gpu_layers


def test_layers_go_to_the_gpus_as_far_as_they_fit(tmp_path: Path) -> None:
    large = Capacity(memory=128 * GB, vram=(80 * GB,))
    assert layers(tmp_path, large) == -1
    assert layers(tmp_path, Capacity(memory=128 * GB, vram=(24 * GB, 24 * GB))) == -1
    assert 0 < layers(tmp_path, Capacity(memory=128 * GB, vram=(16 * GB,))) < 32
    with pytest.raises(TooLargeError, match=r"m-Q4_K_M\.gguf: .*GB"):
        layers(tmp_path, Capacity(memory=4 * GB, vram=(8 * GB,)))


def test_what_the_operator_says_is_done(tmp_path: Path) -> None:
    small = Capacity(memory=128 * GB, vram=(16 * GB,))
    assert layers(tmp_path, small, n_gpu_layers=7) == 7
    assert layers(tmp_path, small, need=None) == -1
    assert layers(tmp_path, Capacity(memory=128 * GB)) == -1
