"""Watching ten thousand repos: requests, CPU time and memory of a first sync, an idle poll and one after changes.

The Hub is localhub on loopback, in a process of its own; the bot runs in another, everything but the measuring.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from benchmarks.children import ROOT, high_water, run
from benchmarks.setting import say
from benchmarks.table import Row, Target, at_most

OWNERS = 20
REPOS, QUICK_REPOS = 10_000, 200
_TOKEN = "hf_benchmark"


def watching_title(repos: int) -> str:
    """What stands above the table."""
    return f"watch: {repos:,} repos of {OWNERS} owners, polled from the Hub in a folder"


def measure_watching(folder: Path, *, repos: int = REPOS) -> list[Row]:
    """Seed a hub, then poll it three times: everything is new, nothing changed, one repo in a hundred changed."""
    from localhub import seed
    from localhub.server import HubServer

    root = folder / "hub"
    say(f"seeding {repos:,} repos …")
    seed.create_user(root, "watcher", token=_TOKEN)
    each = repos // OWNERS
    seed.many_repos(root, _repos(folder, each))
    changed = max(1, repos // 100)
    with HubServer(root) as hub:
        say("first sync …")
        first = _poll(folder, hub.url)
        say("idle poll …")
        idle = _poll(folder, hub.url)
        step = max(1, each * OWNERS // changed)
        names = [_name(number // each, number % each) for number in range(0, each * OWNERS, step)][:changed]
        seed.many_repos(root, ((name, {"more-Q4_K_M.gguf": _gguf(folder, repos + i)}) for i, name in enumerate(names)))
        say(f"poll after {len(names)} changes …")
        after = _poll(folder, hub.url)
    return [*_rows(first, idle, after, repos=each * OWNERS, changed=len(names))]


def _rows(
    first: dict[str, Any], idle: dict[str, Any], after: dict[str, Any], *, repos: int, changed: int
) -> Iterator[Row]:
    def requests(figure: str, poll: dict[str, Any], limit: int, text: str) -> Row:
        return Row(
            figure,
            f"{poll['api']:,} requests",
            f"{limit:,}",
            target=Target(text, limit),
            value=poll["api"],
            samples=poll,
        )

    def headers(poll: dict[str, Any], files: int) -> Row:
        read = poll["files"]
        return Row("– headers", f"{read:,} ranges", f"{files:,} files", ratio=read / files, target=at_most(3))

    def counted(poll: dict[str, Any], expected: int) -> None:
        # A poll that misses repos would cost little indeed.
        assert poll["changed"] == expected, f"{poll['changed']} looked into, not {expected}: {poll['errors']}"

    counted(first, repos)
    counted(idle, 0)
    counted(after, changed)
    yield requests("first sync", first, repos + OWNERS, "≤ 1 a repo + listings")
    yield Row(
        "– headers", f"{first['files']:,} ranges", f"{repos:,} files", ratio=first["files"] / repos, target=at_most(3)
    )
    yield Row("– time, CPU time", f"{first['wall']:.0f} s, {first['cpu']:.0f} s")
    yield Row(
        "– peak memory",
        f"{first['peak'] / 1e6:.0f} MB",
        "500 MB",
        target=Target("< 500 MB", 500e6),
        value=first["peak"],
    )
    yield requests("idle poll", idle, OWNERS, "≤ 1 an owner")
    yield Row("– CPU time", f"{idle['cpu']:.2f} s", "5 s", target=Target("< 5 s", 5.0), value=idle["cpu"])
    yield Row("– time, peak memory", f"{idle['wall']:.2f} s, {idle['peak'] / 1e6:.0f} MB")
    yield requests(f"{changed} changed", after, OWNERS + 3 * changed, "≤ 20 + 3 × changed")
    yield Row(
        "– headers", f"{after['files']} ranges", f"{changed} files", ratio=after["files"] / changed, target=at_most(3)
    )
    yield Row("– CPU time", f"{after['cpu']:.2f} s")


def _name(owner: int, number: int) -> str:
    return f"owner-{owner:02d}/model-{number:05d}-GGUF"


def _repos(folder: Path, each: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    for owner in range(OWNERS):
        for number in range(each):
            card = f"---\nbase_model: org/model-{number:05d}\nlicense: mit\n---\n# Model {number}\n"
            mark = owner * each + number
            yield _name(owner, number), {"model-Q4_K_M.gguf": _gguf(folder, mark), "README.md": card.encode()}


_made: dict[Path, bytes] = {}


def _gguf(folder: Path, mark: int) -> bytes:
    """A small whole GGUF of its own; made once, then only its mark is changed."""
    marker = b"mark-0123456789"
    if folder not in _made:
        path = folder / "small.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_type("model")
        writer.add_string("general.name", marker.decode())
        writer.add_token_list([f"token{i}" for i in range(64)])
        for layer in range(4):
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", np.zeros((4, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _made[folder] = path.read_bytes()
        path.unlink()
    return _made[folder].replace(marker, f"mark-{mark:010d}".encode())


def _poll(folder: Path, endpoint: str) -> dict[str, Any]:
    """One cycle without the measuring, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUANTCARD_", "HF_", "TMPDIR"))}
    ended = run(
        [sys.executable, "-m", "benchmarks.watching", endpoint, str(folder / "bot.db")],
        name="the poll",
        environment={**kept, "PYTHONPATH": str(ROOT)},
    )
    told = json.loads(ended.printed.splitlines()[-1])
    return {**told, "peak": max(told["peak"], ended.peak_bytes), "wall": ended.wall}


def _child(endpoint: str, db: Path) -> None:
    from bot.clock import SystemClock
    from bot.commands.common import open_hub
    from bot.cycle import Cycle, CycleReport
    from bot.settings import load_settings
    from bot.store import Store

    settings = load_settings(db=db, hf_endpoint=endpoint, hf_token=_TOKEN)
    hub = open_hub(settings)
    with Store(db) as store:
        for owner in range(OWNERS):
            store.repos.follow(f"owner-{owner:02d}", consented=False, now=time.time())
        cycle = Cycle(
            store,
            hub,
            settings,
            SystemClock(),
            tell_job=lambda _: None,
            tell=lambda text: print(text, file=sys.stderr),
            stop=threading.Event(),
        )
        report = CycleReport(poll=cycle.poll())
        cycle.plan()
        cycle.publish(report)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "api": hub.budget.requests["api"],
                "files": hub.budget.requests["resolvers"],
                "changed": len(report.poll.changed),
                "errors": [f"{what}: {error}" for what, error in report.poll.errors][:5],
                "cpu": used.ru_utime + used.ru_stime,
                "peak": high_water("self"),
            }
        )
    )


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]))
