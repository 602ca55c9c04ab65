"""Watches a job from outside: its time, memory, threads and files; ends it where it takes too much."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.sandbox.levels import Limits
from core.sandbox.scratch import used

#: Seconds between looks at the process, and at its files.
_EVERY, _FILES_EVERY = 0.1, 1.0
_MOST_FILES = 10_000
_FIELD = re.compile(r"^(RssAnon|RssShmem|VmSwap|Threads):\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and all below it take now."""

    memory: int
    threads: int


def usage(pid: int) -> Usage:
    """What a process and its descendants take: memory that is theirs alone (no mapped files), and threads."""
    memory, threads = 0, 0
    for one in [pid, *descendants(pid)]:
        with suppress(OSError):
            found = {name: int(value) for name, value in _FIELD.findall(Path(f"/proc/{one}/status").read_text())}
            threads += found.pop("Threads", 0)
            memory += sum(found.values()) * 1024
    return Usage(memory, threads)


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                children = (task / "children").read_text().split()
                found += map(int, children)
                waiting += map(int, children)
    return found


def oom_kills() -> int:
    """How many processes the kernel has ended on this machine for want of memory, ever."""
    with suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


class Watchdog:
    """Calls ``kill`` once when a limit is passed or ``stopped`` says so; ``reason`` then says why.

    Args:
        folders: what the job writes to; only what is added to them counts.
    """

    def __init__(
        self,
        pid: int,
        limits: Limits,
        *,
        folders: Sequence[Path],
        stopped: Callable[[], bool],
        kill: Callable[[], None],
    ) -> None:
        self.reason: str | None = None
        self.stopped = False
        self._pid, self._limits, self._folders = pid, limits, folders
        self._asked, self._kill = stopped, kill
        self._before = used(folders, most_files=_MOST_FILES)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._done.set()
        self._thread.join(timeout=10)

    def too_much(self, reason: str) -> None:
        """End the job for what somebody else saw."""
        if self.reason is None:
            self.reason = reason
            self._kill()

    def _watch(self) -> None:
        started = looked = time.monotonic()
        while not self._done.wait(_EVERY):
            now = time.monotonic()
            if self._asked():
                self.stopped = True
                self._kill()
                return
            reason = self._over(now - started)
            if reason is None and now - looked >= _FILES_EVERY:
                looked = now
                reason = self._over_on_disk()
            if reason is not None:
                self.too_much(reason)
                return

    def _over(self, seconds: float) -> str | None:
        if seconds > self._limits.seconds:
            return f"it took longer than {self._limits.seconds:.0f} s"
        taken = usage(self._pid)
        most = self._limits.memory_bytes
        if most is not None and taken.memory > most:
            return f"it took more memory than {gigabytes(most)}"
        if taken.threads > self._limits.threads:
            return f"it started more than {self._limits.threads} threads"
        return None

    def _over_on_disk(self) -> str | None:
        size, n = used(self._folders, most_files=_MOST_FILES + self._before[1])
        if size - self._before[0] > self._limits.output_bytes:
            return f"it wrote more than {gigabytes(self._limits.output_bytes)}"
        if n - self._before[1] > _MOST_FILES:
            return f"it made more than {_MOST_FILES} files"
        return None


def gigabytes(n: int) -> str:
    """A size as people say it."""
    return f"{n / 1e9:.3g} GB"
