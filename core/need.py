"""What a job needs and what a machine has; who fits where is decided in :mod:`core.sizes`. Pure values."""

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

    @property
    def memory(self) -> int:
        """Bytes of main memory, everything on the CPU."""
        return self.weights + self.kv_cache + self.logits + self.compute + self.baseline


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a runner's machine has, in bytes. None: not known, so nothing is refused for it."""

    memory: int | None
    #: Each GPU's memory; empty: no GPU.
    vram: tuple[int, ...] = ()
    disk: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """How a job is laid on a machine: layers on the GPUs (-1: all), and how many GPUs."""

    n_gpu_layers: int
    n_gpus: int
    memory: int
    vram: int
