"""Where a job fits: on one GPU, on several, with a part of its layers there, on the CPU, or nowhere. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.need import Capacity, Need, Placement

#: Of a device's memory, what is planned with; the rest is for what others hold and for uneven splits.
_SHARE: Final = 0.95
#: What CUDA and its libraries hold on each GPU beside llama.cpp's own buffers.
_GPU_CONTEXT: Final = 700 << 20


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A machine can't take a job; ``reason`` is a sentence with the figures."""

    reason: str


def place(need: Need, capacity: Capacity) -> Placement | TooLarge:
    """How to lay a job on a machine.

    In this order: the whole model on one GPU, on as few GPUs as it takes, as many layers as all GPUs hold with the
    rest in main memory, everything in main memory.
    """
    if capacity.disk is not None and need.disk > capacity.disk:
        return TooLarge(f"It takes {_gb(need.disk)} on disk; {_gb(capacity.disk)} is what there is.")
    room = None if capacity.memory is None else int(_SHARE * capacity.memory)
    vram = sorted((int(_SHARE * size) for size in capacity.vram), reverse=True)
    for found in (_whole(need, vram), _partly(need, vram)):
        if found is not None and (room is None or found.memory <= room):
            return found
    if room is None or need.memory <= room:
        return Placement(n_gpu_layers=0, n_gpus=0, memory=need.memory, vram=0)
    return TooLarge(_reason(need, capacity))


def on_each_gpu(need: Need) -> int:
    """Bytes that every GPU takes that has layers of the model, beside them."""
    return need.compute + need.baseline + _GPU_CONTEXT


def _host(need: Need) -> int:
    """Main memory of a run whose layers are all on GPUs: the embeddings stay with the CPU."""
    return need.process + need.logits + need.outside_layers + need.compute


def _layer(need: Need) -> int:
    """Bytes of one layer at most, its cache included."""
    return max(1, need.largest_layer + -(-need.kv_cache // max(1, need.n_layers)))


def _whole(need: Need, vram: list[int]) -> Placement | None:
    fixed, model = on_each_gpu(need), need.weights + need.kv_cache
    if vram and fixed + model <= vram[0]:
        return Placement(n_gpu_layers=-1, n_gpus=1, memory=_host(need), vram=fixed + model)
    if not need.n_layers:
        return None
    # Layers are not cut: each GPU takes whole ones, and the head and the like count as so many more.
    layer = _layer(need)
    wanted, have = need.n_layers + -(-need.outside_layers // layer), 0
    for n_gpus, size in enumerate(vram, start=1):
        have += max(0, size - fixed) // layer
        if n_gpus > 1 and have >= wanted:
            # llama.cpp splits layers by what each GPU has free.
            fullest = fixed + layer + model * vram[0] // sum(vram[:n_gpus])
            return Placement(n_gpu_layers=-1, n_gpus=n_gpus, memory=_host(need), vram=min(vram[0], fullest))
    return None


def _partly(need: Need, vram: list[int]) -> Placement | None:
    """As many layers as fit, the head not among them."""
    if not need.n_layers:
        return None
    fixed, layer = on_each_gpu(need), _layer(need)
    held = [max(0, size - fixed) // layer for size in vram]
    n = min(sum(held), need.n_layers)
    if n == 0:
        return None
    used = [count for count in held if count]
    memory = need.memory - n * ((need.weights - need.outside_layers) // need.n_layers + need.kv_cache // need.n_layers)
    return Placement(
        n_gpu_layers=n, n_gpus=len(used), memory=max(memory, _host(need)), vram=fixed + min(n, used[0]) * layer
    )


def _reason(need: Need, capacity: Capacity) -> str:
    parts = ", ".join(
        f"{name} {_gb(size)}"
        for name, size in (
            ("weights", need.weights),
            ("KV cache", need.kv_cache),
            ("buffers", need.logits + need.compute + need.process),
            ("the baseline's head", need.baseline),
        )
        if size >= 5e7
    )
    has = f"{_gb(capacity.memory or 0)} of memory"
    if capacity.vram:
        gpus = " and ".join(_gb(size) for size in sorted(capacity.vram, reverse=True))
        has += f" and {'a GPU' if len(capacity.vram) == 1 else f'{len(capacity.vram)} GPUs'} with {gpus}"
    else:
        has += " and no GPU"
    return (
        f"It takes {_gb(need.memory)} of memory ({parts}); the largest machine has {has}. "
        "Add a runner with a larger one."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
