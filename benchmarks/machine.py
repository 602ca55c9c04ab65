"""Says what machine and which builds the numbers are of."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers import Peers, cmake_flags
from benchmarks.setting import Setting
from benchmarks.table import size
from jobs.llama import _cpu_name, physical_cores

ROOT = Path(__file__).resolve().parents[1]


def describe(setting: Setting, environment: Mapping[str, Any], libraries: list[str]) -> dict[str, str]:
    """What goes under the tables, as (name, value).

    Args:
        environment: of a result, if there is one: what llama.cpp found.
        libraries: the files that both sides loaded.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = f"{physical_cores()} cores, {setting.threads} threads used"
    facts = {
        "machine": f"{_cpu_name()}, {cores}, {size(memory)} of memory, {platform.system()} {platform.release()}",
        "llama.cpp": _llama(setting.peers),
        "CMake flags": setting.peers.flags if setting.peers else cmake_flags(),
        "quantcard": _commit(),
        "measured": f"{setting.chunks} chunks of {setting.n_ctx}, {setting.rounds} rounds, variant {setting.variant}",
    }
    if environment:
        facts["llama.cpp's features"] = str(environment["system_info"])
        if environment.get("gpu"):
            facts["GPU"] = f"{environment['gpu']}, driver {environment['driver']}"
    if libraries:
        facts["loaded by both sides"] = ", ".join(libraries)
    if not setting.enough:
        facts["note"] = "fewer than 64 chunks or 3 rounds: a try, not a measurement"
    return facts


def _llama(peers: Peers | None) -> str:
    mine = f"llama-cpp-python {version('llama-cpp-python')}"
    return f"{mine}, llama.cpp {peers.version()}" if peers else mine


def _commit() -> str:
    """The checkout's commit, and whether files differ from it; the package's version where there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=20
        )
        return done.stdout.strip() or version("quantcard")
    except (OSError, subprocess.SubprocessError):
        return version("quantcard")
