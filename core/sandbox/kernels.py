"""Compiled kernels for the sandbox: made once by a process that reads no stranger's file, and copied for each job.

A job that could write to them would write machine code that the next job runs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from core.sandbox.reach import scrubbed_environment

_COMPILE_S = 600.0
#: Machines and versions whose code is kept beside the present one's.
_KEPT = 8
_making = threading.Lock()


def copy_kernels(to: Path) -> None:
    """Put compiled kernels into a job's own folder; where they can't be had, the job compiles them itself."""
    source = _kernels()
    if source is not None:
        with suppress(OSError):
            shutil.copytree(source, to, copy_function=shutil.copyfile)
            return
    to.mkdir(exist_ok=True)


def _kernels() -> Path | None:
    with _making:
        return _made()


@cache
def _made() -> Path | None:
    """The folder of what was compiled for this source, Python and machine; made where it is not there."""
    with suppress(OSError, subprocess.SubprocessError):
        place = _place()
        folder = place / _key()
        if not folder.is_dir():
            _make(folder)
            _forget_old(place, keep=folder)
        return folder
    return None


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as name:
        made = Path(name) / "kernels"
        made.mkdir()
        subprocess.run(
            [sys.executable, "-P", "-m", "jobs.warm"],
            env=scrubbed_environment(name) | {"NUMBA_CACHE_DIR": str(made)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_COMPILE_S,
            check=True,
        )
        try:
            made.rename(folder)
        except OSError:
            # Where another process was faster, its folder holds the same.
            if not folder.is_dir():
                raise


def _forget_old(place: Path, *, keep: Path) -> None:
    """Remove what was compiled for sources of long ago, and what a compiler that was killed left."""
    for left in place.glob(".making-*"):
        if time.time() - left.stat().st_mtime > _COMPILE_S:
            shutil.rmtree(left, ignore_errors=True)
    found = [folder for folder in place.iterdir() if not folder.name.startswith(".") and folder != keep]
    for folder in sorted(found, key=lambda folder: folder.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path:
    """A folder that only we can write to: beside the sources, as numba has it, or in our cache."""
    found = find_spec("jobs")
    for package in (found.submodule_search_locations or []) if found else []:
        folder = Path(package) / "__pycache__" / "kernels"
        if os.access(package, os.W_OK):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                return folder
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = base / "quantcard" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"{folder} may be written to by others")
    return folder


def _key() -> str:
    """What compiled code depends on: the sources and where they lie, Python, the compiler, the processor."""
    told = [sys.version, platform.machine(), _processor()]
    for name in ("numba", "llvmlite", "numpy"):
        with suppress(ImportError):
            from importlib.metadata import version

            told.append(version(name))
    jobs = find_spec("jobs")
    for folder in (jobs.submodule_search_locations or []) if jobs else []:
        for path in sorted(Path(folder).glob("*.py")):
            if path.name in ("kernel.py", "warm.py"):
                told += [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:32]


def _processor() -> str:
    with suppress(OSError):
        for block in Path("/proc/cpuinfo").read_text().split("\n\n"):
            kept = [line for line in block.splitlines() if line.startswith(("model name", "flags", "Features", "CPU"))]
            return "\n".join(kept)
    return platform.processor()
