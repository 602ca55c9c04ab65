"""What all measurements share: how much is measured, where, and with what."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import Product
from benchmarks.models import Case
from benchmarks.peers import Peers
from benchmarks.table import BenchError, Row, size
from core.contract import Machine, QuantizeSpec
from core.gguf_header import read_file_header
from jobs.baseline.kld_file import KldShape

#: A base file larger than this is never written: a pass over less says as much.
MOST_KLD_BYTES = 16e9
_SPARE_BYTES = 1e9


def say(text: str) -> None:
    """Tell how far we are, on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """The options of a run of the benchmark."""

    product: Product
    peers: Peers | None
    folder: Path
    machine: Machine
    chunks: int
    rounds: int
    variant: str
    n_ctx: int = 512
    quick: bool = False
    seed: int = 5

    @property
    def threads(self) -> int:
        return self.machine.n_threads

    @property
    def enough(self) -> bool:
        """Whether the numbers mean what the issue asks for."""
        return self.chunks >= 64 and self.rounds >= 3

    def tools(self) -> Peers:
        """llama.cpp's own tools.

        Raises:
            BenchError: there are none.
        """
        if self.peers is None:
            raise BenchError("llama.cpp's own tools are needed for this.")
        return self.peers


@dataclass(slots=True)
class Subject:
    """A model under measurement: its files in the temporary folder, and what was found out about them."""

    case: Case
    setting: Setting
    folder: Path
    n_vocab: int
    variant: Path
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def kld_bytes(self) -> int:
        """Size of a base file of this run."""
        return KldShape(self.setting.n_ctx, self.n_vocab, self.setting.chunks).file_bytes

    def round_of(self, steps: Sequence[Any], number: int) -> list[Any]:
        """A round's steps: every other round the other way round, so that a drift of the machine hits all alike."""
        return list(steps) if number % 2 == 0 else list(reversed(steps))

    def tell(self, what: str, number: int, name: str) -> None:
        """Say which run begins."""
        say(f"[{self.case.name}] {what}, round {number + 1} of {self.setting.rounds}: {name} …")


def prepare(case: Case, setting: Setting, *, files: float) -> Subject:
    """Look whether there is room for ``files`` base files, and make the variant.

    Raises:
        BenchError: no room, or the run is too long for it.
    """
    n_vocab = int(next(t for t in read_file_header(case.reference).tensors if t.name == "token_embd.weight").shape[1])
    folder = setting.folder / case.name
    folder.mkdir()
    subject = Subject(case, setting, folder, n_vocab, case.reference)
    n_bytes = subject.kld_bytes
    if n_bytes > MOST_KLD_BYTES:
        raise BenchError(
            f"A .kld of {setting.chunks} chunks at a vocabulary of {n_vocab:,} takes {size(n_bytes)}; that is more "
            f"than {size(MOST_KLD_BYTES)}, which this benchmark never writes. Give fewer --chunks."
        )
    need = files * n_bytes + 2 * case.reference.stat().st_size + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < need:
        raise BenchError(
            f"{setting.folder} has {size(free)} left, {case.name} with {setting.chunks} chunks needs {size(need)}: "
            "give fewer --chunks, or a larger disk with --work DIR."
        )
    if files:
        say(f"[{case.name}] needs up to {size(need)} in {setting.folder}; {size(free)} are free")
    if setting.variant != "F16":
        say(f"[{case.name}] making {setting.variant} …")
        subject.variant = folder / f"{case.name}-{setting.variant}.gguf"
        setting.product.job(
            QuantizeSpec(
                model=str(case.reference),
                out=str(subject.variant),
                file_type=setting.variant,
                machine=setting.machine,
            )
        )
    return subject
