"""Judges the sandbox that strangers' files are run in. Pure, but for :func:`look_at_sandbox`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bot.doctor.finding import Finding, bad, clean, ok, warn
from core.sandbox.levels import Level, Wanted, best_sandbox

_INSTALL = "apt-get install bubblewrap (or dnf, pacman, apk: the package has that name everywhere)"


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """What there is to build a sandbox of.

    ``level`` is the best that works, ``why`` what stands in the way of a better one; ``bwrap`` where the program is.
    The switches are the kernel's: None where it has no such switch.
    """

    level: Level
    why: str = ""
    bwrap: str | None = None
    root: bool = False
    userns_clone: int | None = None
    apparmor_restricts: int | None = None
    max_user_namespaces: int | None = None


def look_at_sandbox(*, wanted: Wanted = "auto", proc: Path = Path("/proc")) -> SandboxFacts:
    """Which level works here (or whether the wanted one does), and the switches that decide it."""
    found = best_sandbox(unsafe=True, wanted=wanted)
    kernel = proc / "sys" / "kernel"
    return SandboxFacts(
        level=found.level,
        why=found.why,
        bwrap=shutil.which("bwrap"),
        root=os.geteuid() == 0,
        userns_clone=_switch(kernel / "unprivileged_userns_clone"),
        apparmor_restricts=_switch(kernel / "apparmor_restrict_unprivileged_userns"),
        max_user_namespaces=_switch(proc / "sys" / "user" / "max_user_namespaces"),
    )


def _switch(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def judge_sandbox(facts: SandboxFacts, *, accepted: bool = False) -> list[Finding]:
    """Which level strangers' files get, and how to get a better one.

    Args:
        accepted: whether the settings say that files may be run without one.
    """
    if facts.level == "bubblewrap":
        return [
            ok(
                f"Strangers' files are run in bubblewrap ({facts.bwrap or 'bwrap'}): no network, no home, nothing of "
                "this machine but the model."
            )
        ]
    better = how_to_get_bubblewrap(facts)
    why = f" ({clean(facts.why, limit=300)})" if facts.why else ""
    if facts.level == "uid":
        return [warn(f"Strangers' files are run as a user of their own, not in bubblewrap{why}.", better)]
    if accepted:
        return [warn(f"Strangers' files are run without a sandbox, as the settings say{why}.", better)]
    return [bad(f"There is no sandbox here, so that strangers' files are not measured{why}.", better)]


def how_to_get_bubblewrap(facts: SandboxFacts) -> str:
    """The command that leads to bubblewrap, by what stands in its way."""
    if facts.bwrap is None:
        return f"{_INSTALL}."
    if facts.userns_clone == 0:
        return "As root: sysctl -w kernel.unprivileged_userns_clone=1 (and in /etc/sysctl.d, to keep it)."
    if facts.max_user_namespaces == 0:
        return "As root: sysctl -w user.max_user_namespaces=16384 (and in /etc/sysctl.d, to keep it)."
    if facts.apparmor_restricts:
        return (
            "As root: give bwrap an AppArmor profile that allows user namespaces (Ubuntu: apt-get install "
            "apparmor-profiles), or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0."
        )
    return (
        "bwrap is there but fails: in a container allow user namespaces (Docker: --security-opt "
        "seccomp=unconfined --security-opt apparmor=unconfined, or --cap-add SYS_ADMIN)."
    )
