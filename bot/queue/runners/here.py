"""What this machine has: memory, GPUs, disk."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from core.need import Capacity

_CGROUP = Path("/sys/fs/cgroup")


def capacity_here(data: Path) -> Capacity:
    """What jobs on this machine may take, in bytes; ``disk`` is what is free where ``data`` lies."""
    disk = None
    for folder in (data, *data.parents):
        if folder.is_dir():
            with suppress(OSError):
                disk = shutil.disk_usage(folder).free
            break
    return Capacity(memory=_memory(), vram=_vram(), disk=disk)


def _memory() -> int | None:
    """Main memory, or what a container may take of it."""
    found = []
    with suppress(OSError):
        if total := re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            found.append(int(total[1]) * 1024)
    found += _limits()
    return min(found, default=None)


def _limits() -> list[int]:
    """Limits of the control groups that we are in, of either version; the kernel's 'none' is a very large number."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers == "":
                base, name = _CGROUP, "memory.max"
            elif "memory" in controllers.split(","):
                base, name = _CGROUP / "memory", "memory.limit_in_bytes"
            else:
                continue
            # In a container the path may be the host's, and only the root is there.
            places = [base / own.strip("/"), *(base / own.strip("/")).parents, base]
            for place in places:
                with suppress(OSError, ValueError):
                    if place.is_relative_to(base):
                        found.append(int((place / name).read_text()))
    return found


@cache
def _vram() -> tuple[int, ...]:
    """The memory of each NVIDIA GPU that jobs may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            return tuple(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
        finally:
            pynvml.nvmlShutdown()
    except Exception:
        # NVML raises its own family of errors, and none of them means more than 'no NVIDIA GPU here'.
        return ()
