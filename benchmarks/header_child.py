"""One header read in a process of its own, so that its memory is its own.

``python -m benchmarks.header_child audit|peer`` takes its arguments as JSON on stdin and prints JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

REPO = "bench/headers-GGUF"


def high_water() -> int:
    """This process's VmHWM in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def audit(endpoint: str, file: str) -> dict[str, Any]:
    """Audit a file on a hub as the bot does: the repo's list is known, the header is not."""
    from bot.hub.client import Hub
    from bot.intake.headers import audit_variant
    from core.gguf_files import group_variants

    hub = Hub(endpoint=endpoint, token=None)
    detail = hub.detail(REPO)
    variant = next(one for one in group_variants(detail.files) if one.name == file)
    before = high_water()
    started = time.perf_counter()
    found = audit_variant(hub, REPO, detail.summary.sha or "main", variant)
    spent = time.perf_counter() - started
    if found.inspection is None:
        raise SystemExit(found.note or "it can't be audited")
    return {
        "seconds": spent,
        "ranges": found.ranges,
        "bytes": found.bytes_read,
        "tensors": found.inspection.n_tensors,
        "before": before,
        "peak": high_water(),
    }


def peer(path: str) -> dict[str, Any]:
    """Read the same header with gguf's own reader."""
    from gguf import GGUFReader

    started = time.perf_counter()
    found = GGUFReader(path)
    return {
        "seconds": time.perf_counter() - started,
        "tensors": len(found.tensors),
        "peak": high_water(),
    }


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(audit(**given) if sys.argv[1] == "audit" else peer(**given), sys.stdout)
