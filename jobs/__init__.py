"""Measures. Runs on the GPU box with no token and no network: gets paths, gives figures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Told how far a job is: stage, done, total.
Progress = Callable[[str, int, int], None]


def _cache_folder() -> str:
    """Where compiled kernels are kept if not beside the source: a place that nobody else can write to."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = base / "quantcard" / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return str(folder)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="quantcard-numba-")


# numba reads this when it is imported. Where the source's folder can't be written (a system install, a sandbox), it
# would refuse to compile anything that is to be cached.
if "NUMBA_CACHE_DIR" not in os.environ and not os.access(Path(__file__).parent, os.W_OK):
    os.environ["NUMBA_CACHE_DIR"] = _cache_folder()
