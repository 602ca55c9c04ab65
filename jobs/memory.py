"""Peak memory of this process: resident (VmHWM) and on the GPU (NVML)."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_rss_bytes() -> int:
    """The process's own high-water mark of resident memory (VmHWM).

    Not ``ru_maxrss``: that one survives exec, so a child of a large parent would inherit the parent's peak.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_rss() -> None:
    """Start the high-water mark again from what is resident now (Linux; elsewhere the peak is the process's)."""
    with suppress(OSError):
        _CLEAR_REFS.write_text("5")


class PeakVram:
    """Samples this process's VRAM over all NVIDIA GPUs while the block runs; ``bytes`` is None without NVML.

    In a sandbox this process has another number than the one that the driver knows: then it is what the GPUs' use
    grew by, which is ours as long as nothing else begins to use them.
    """

    def __init__(self, *, interval: float = 0.05) -> None:
        self.bytes: int | None = None
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            import pynvml

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception:
            # No NVML, no driver, no GPU: nothing to sample.
            return self

        def in_all() -> int:
            found = 0
            for handle in handles:
                with suppress(pynvml.NVMLError):
                    found += pynvml.nvmlDeviceGetMemoryInfo(handle).used
            return found

        own, before = os.getpid(), in_all()

        def sample() -> None:
            while True:
                used = 0
                for handle in handles:
                    with suppress(pynvml.NVMLError):
                        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                            if process.pid == own and process.usedGpuMemory:
                                used += process.usedGpuMemory
                used = used or in_all() - before
                if used > 0:
                    self.bytes = max(self.bytes or 0, used)
                if self._stop.wait(self._interval):
                    return

        self._thread = threading.Thread(target=sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
