"""What a job needs (estimated in :mod:`core.sizes`) and what a machine has (:mod:`core.placing`). Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that measuring one variant takes at most, estimated from its header before anything is fetched.

    The parts add up where they lie on one device; a layer that moves to a GPU takes its weights and its cache along.
    """

    weights: int
    kv_cache: int
    logits: int
    compute: int
    #: The reference's output head and the baseline's rows in flight, for quality jobs.
    baseline: int
    #: On disk: the files themselves and what the job writes.
    disk: int
    n_layers: int
    #: Weights of the largest layer, and of what stands outside the layers (embeddings, head).
    largest_layer: int = 0
    outside_layers: int = 0
    #: The measuring process itself, with the vocabulary's tables; never on a GPU.
    process: int = 0
    #: Resident for a while on top, but let go of when memory is short: the file's pages of weights that the CPU keeps
    #: in another layout.
    reclaimable: int = 0

    @property
    def memory(self) -> int:
        """Bytes of main memory, everything on the CPU."""
        return self.weights + self.kv_cache + self.logits + self.compute + self.baseline + self.process

    @property
    def peak(self) -> int:
        """The most bytes that the process may show as resident; a limit on it must not lie below."""
        return self.memory + self.reclaimable


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a runner's machine has, in bytes. None: not known, so nothing is refused for it."""

    memory: int | None
    #: Each GPU's memory; empty: no GPU.
    vram: tuple[int, ...] = ()
    disk: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """How a job is laid on a machine: layers on the GPUs (-1: all), and how many GPUs.

    ``memory`` and ``vram`` are bytes: of main memory, and of the fullest GPU.
    """

    n_gpu_layers: int
    n_gpus: int
    memory: int
    vram: int
