"""What a Ray cluster's nodes have, and what a task asks of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bot.queue.runners.base import Task
from core.errors import RunnerUnavailableError
from core.need import Capacity
from core.placing import TooLarge, place

#: Declared by the operator on nodes whose GPUs Ray does not know by name: GB of each GPU.
VRAM_RESOURCE = "quantcard_vram_gb"
_KIND = "accelerator_type:"
#: GB of one GPU, the smaller one where a name stands for two.
_VRAM_GB = {
    "K80": 11,
    "P4": 8,
    "P100": 12,
    "T4": 15,
    "V100": 16,
    "A10G": 23,
    "L4": 23,
    "L40S": 47,
    "A100": 40,
    "A100-40G": 40,
    "A100-80G": 80,
    "H100": 80,
    "H200": 140,
    "H20": 95,
    "B200": 180,
    "GB200": 180,
    "RTX-PRO-6000": 95,
}


@dataclass(frozen=True, slots=True)
class Node:
    """What a node was declared with: bytes of memory (None: not said), CPUs, bytes of each of its GPUs."""

    memory: int | None
    cpus: int
    vram: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """What is reserved for a task: CPUs, GPUs, bytes of memory (0: not known)."""

    num_cpus: int
    num_gpus: int
    memory: int


def nodes_of(states: Iterable[dict[str, Any]], resource: str) -> list[Node]:
    """The nodes that are alive and take jobs, from the state API's rows; what can't be read is left out.

    Args:
        resource: the custom resource that counts memory in GB; empty: Ray's own. Nodes without it take no jobs.
    """
    found = []
    for state in states:
        total = state.get("resources_total")
        if state.get("state") != "ALIVE" or not isinstance(total, dict):
            continue
        numbers = {str(name): float(n) for name, n in total.items() if isinstance(n, int | float)}
        if resource and resource not in numbers:
            continue
        memory = numbers[resource] * 1e9 if resource else numbers.get("memory")
        found.append(Node(None if memory is None else int(memory), int(numbers.get("CPU", 0)), _vram(numbers)))
    return found


def _vram(numbers: dict[str, float]) -> tuple[int, ...]:
    """Bytes of each GPU; none where nobody said how much the GPUs have."""
    each = numbers.get(VRAM_RESOURCE)
    if each is None:
        kinds = [name.removeprefix(_KIND) for name in numbers if name.startswith(_KIND)]
        each = min((_VRAM_GB[kind] for kind in kinds if kind in _VRAM_GB), default=0)
    return (int(each * 1e9),) * int(numbers.get("GPU", 0)) if each else ()


def largest(nodes: Iterable[Node]) -> Node | None:
    """The node that takes the largest jobs: by GPU memory, then by memory."""
    return max(nodes, key=lambda node: (sum(node.vram), node.memory or 0), default=None)


def capacity_of(node: Node | None) -> Capacity:
    """A node as the planner sees it."""
    return Capacity(memory=None) if node is None else Capacity(memory=node.memory, vram=node.vram)


def asked_of(task: Task, nodes: list[Node]) -> Ask:
    """What to reserve: the memory it needs, the GPUs its layers go to, and the cores it uses.

    With threads left to the machine a job uses a whole node: it asks for all cores of the smallest node that fits, so
    that nothing else is put beside it, which would make its speeds wrong.

    Raises:
        RunnerUnavailableError: no node that is known takes it.
    """
    gpus, memory = _laid(task, nodes)
    fit = [node for node in nodes if (node.memory is None or node.memory >= memory) and len(node.vram) >= gpus]
    cpus = task.spec.machine.n_threads or min((node.cpus for node in fit or nodes), default=1)
    return Ask(num_cpus=max(1, cpus), num_gpus=gpus, memory=memory)


def _laid(task: Task, nodes: list[Node]) -> tuple[int, int]:
    """GPUs and bytes of memory, as the planner lays the task on the largest node."""
    best = capacity_of(largest(nodes))
    vram = () if task.spec.machine.n_gpu_layers == 0 else best.vram
    if task.need is None:
        return min(1, len(vram)), 0
    found = place(task.need, Capacity(memory=best.memory, vram=vram))
    if isinstance(found, TooLarge):
        raise RunnerUnavailableError(f"No node of the Ray cluster takes the job now. {found.reason}")
    return found.n_gpus, found.memory
