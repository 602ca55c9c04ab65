"""Judges this machine: Python and packages, disk, memory, open files, the port. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bot.doctor.finding import Finding, bad, clean, ok, some, warn
from bot.doctor.probes import FolderFacts, Leftover, MemoryFacts, PackageFacts, PortFacts
from core.format import size

_GB = 1_000_000_000
#: Below these a baseline or a model of common size does not fit; a full disk stops everything.
_DISK_BAD, _DISK_WARN, _TEMP_WARN = 1 * _GB, 20 * _GB, 1 * _GB
_FILES_WARN = 10_000
_MEMORY_BAD, _MEMORY_WARN = 1 * _GB, 4 * _GB
_OPEN_FILES = 1024


def judge_packages(facts: PackageFacts) -> list[Finding]:
    """Python's version and the installed packages."""
    where = "the lock" if facts.locked else "what the package asks for"
    install = "tools/setup.sh run" if facts.locked else "pip install --upgrade quantcard"
    if not facts.supported:
        return [bad(f"Python {facts.python} is too old.", "Install Python 3.11 or newer (see docs/install.md).")]
    missing = [f"{name} {wanted}" for name, version, wanted in facts.different if not version]
    if missing:
        return [bad(f"Python {facts.python}; {len(missing)} packages are missing: {some(missing)}.", f"Run {install}.")]
    if facts.different:
        listed = some(f"{name} {version} ({wanted})" for name, version, wanted in facts.different)
        return [
            warn(
                f"Python {facts.python}; {len(facts.different)} of {facts.n_packages} packages differ from {where}: "
                f"{listed}.",
                f"Run {install}, unless they were changed on purpose.",
            )
        ]
    return [ok(f"Python {facts.python}; {facts.n_packages} packages are as {where}.")]


def judge_disk(
    data: FolderFacts, temp: FolderFacts, *, budget: int | None = None, used: int | None = None
) -> list[Finding]:
    """Room and rights in the data folder and in the temporary one.

    Args:
        budget: bytes that may lie in the data folder by the settings, where they say so.
        used: bytes that lie in it now, where that is known.
    """
    found = []
    room = f"{size(data.free)} of {size(data.total)} are free in the data folder {data.path}"
    if data.kind:
        room += f" ({clean(data.kind, limit=30)})"
    if data.error:
        found.append(
            bad(
                f"The data folder {data.path} can't be written: {data.error}.",
                f"Make it writable for this user: chown -R $(id -u) {data.path}; or set QUANTCARD_DATA_DIR.",
            )
        )
    elif data.free < _DISK_BAD:
        found.append(bad(f"Only {room}.", "Free some space, or set QUANTCARD_DATA_DIR to a larger disk."))
    elif data.free_files is not None and data.free_files < _FILES_WARN:
        found.append(
            bad(
                f"Only {data.free_files:,} more files can be made in the data folder {data.path}.",
                "Remove small files from that disk (df -i), or set QUANTCARD_DATA_DIR to another.",
            )
        )
    elif budget is not None and data.free + (used or 0) < budget:
        found.append(
            warn(
                f"{room}, {size(used or 0)} are used, but the disk budget is {size(budget)}: the disk will be full "
                "before the budget is.",
                "Lower the budget, or free some space.",
            )
        )
    elif data.free < _DISK_WARN:
        found.append(warn(f"Only {room}: many models will not fit.", "Free some space, or set QUANTCARD_DATA_DIR."))
    else:
        said = f"; the budget is {size(budget)}, {size(used or 0)} used" if budget is not None else ""
        found.append(ok(f"{room}{said}; files can be written, forced to the disk and renamed there."))
    if data.network and not data.error:
        found.append(
            warn(
                f"The data folder is on a network file system ({clean(data.kind, limit=30)}): models load "
                "slowly, and speed tests suffer.",
                "Set QUANTCARD_DATA_DIR to a local disk.",
            )
        )
    if temp.error:
        found.append(
            bad(f"The temporary folder {temp.path} can't be written: {temp.error}.", "Set TMPDIR to one that can be.")
        )
    elif temp.free < _TEMP_WARN:
        found.append(
            warn(
                f"Only {size(temp.free)} are free in the temporary folder {temp.path}.",
                "Free some space, or set TMPDIR.",
            )
        )
    return found


def judge_memory(facts: MemoryFacts) -> list[Finding]:
    """Main memory, and the container's limit on it."""
    within = facts.limit if facts.limit is not None else facts.total
    available = min(facts.available, within)
    found = f"{size(available)} of {size(within)} of memory are available"
    if facts.limit is not None:
        found += f" (the container's limit; the machine has {size(facts.total)})"
    if available < _MEMORY_BAD:
        return [bad(f"Only {found}: measurements will be killed.", "End other programs, or raise the limit.")]
    if available < _MEMORY_WARN:
        return [warn(f"{found}: models of 3 GB and more will not fit.", "Use a larger machine, or another runner.")]
    if facts.swap > facts.total // 4 and facts.swap > 0:
        return [ok(f"{found}; with {size(facts.swap)} of swap, a model that does not fit gets slow instead of dying.")]
    return [ok(f"{found}.")]


def judge_open_files(now: int, most: int) -> list[Finding]:
    """The limit on open files."""
    if now >= _OPEN_FILES:
        return [ok(f"{now:,} files may be open at once.")]
    higher = f"ulimit -n {min(most, 4096)}" if most >= _OPEN_FILES else "ulimit -Hn, as root"
    return [
        warn(
            f"Only {now:,} files may be open at once (at most {most:,}).",
            f"Raise it: {higher}, or LimitNOFILE=4096 in the service's unit.",
        )
    ]


def judge_port(facts: PortFacts) -> list[Finding]:
    """Whether 'serve' can listen."""
    where = f"{facts.host}:{facts.port}"
    if facts.port == 0:
        return [ok("Any free port is taken.")]
    if facts.free:
        return [ok(f"{where} is free for 'quantcard serve'.")]
    if facts.ours:
        return [ok(f"'quantcard serve' is listening on {where}.")]
    if facts.port < 1024 and "ermission" in facts.error:
        return [
            bad(
                f"{where} can't be listened on: {facts.error}.",
                "Set QUANTCARD_PORT to 1024 or more, and put a proxy before it.",
            )
        ]
    return [
        bad(
            f"{where} can't be listened on: {clean(facts.error)}.",
            f"See what listens there (ss -ltnp sport = :{facts.port}), or set QUANTCARD_PORT.",
        )
    ]


def judge_leftovers(
    temporary: Sequence[Leftover],
    partial: Sequence[Leftover],
    orphaned: Sequence[int],
    *,
    overdue: int,
    late: float | None,
    lease_s: float,
) -> list[Finding]:
    """What killed processes left behind.

    Args:
        overdue: jobs whose lease has run out; ``late`` seconds ago the first of them.
        lease_s: how long a lease is.
    """
    found = []
    if temporary:
        found.append(_left("temporary folders of ended jobs", temporary, recursive=True))
    if partial:
        found.append(_left("half-written files", partial, recursive=False))
    if orphaned:
        listed = " ".join(map(str, orphaned[:20]))
        found.append(warn(f"{len(orphaned)} measuring processes run on without a parent ({listed}).", f"kill {listed}"))
    if overdue and late is not None and late > 2 * lease_s:
        found.append(
            warn(
                f"{overdue} jobs are held by workers that were not heard of for {_ago(late)}.",
                "Start 'quantcard serve' or 'quantcard run --once': they are put back at once.",
            )
        )
    return found or [ok("No leftovers of killed jobs: no temporary folders, half-written files or processes.")]


def _left(what: str, left: Sequence[Leftover], *, recursive: bool) -> Finding:
    folder = left[0].path.parent
    listed = " ".join(_quoted(one.path) for one in left[:5])
    return warn(
        f"{len(left)} {what} ({size(sum(one.size for one in left))}, the oldest {_ago(left[0].age)} old) lie in "
        f"{folder}{'' if recursive else ' and below'}.",
        f"rm -{'r' if recursive else ''}f {listed}{' …' if len(left) > 5 else ''}",
    )


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
