"""Looks at this machine: disk, memory, limits, ports, packages, what killed processes left. Reads, and tidies up."""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

#: Names of temporary folders that our processes make and remove.
TEMPORARY = ("quantcard-job-", "quantcard-dataset-", "quantcard-doctor-", "quantcard-remote-", "quantcard-try-")
_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "gpfs",
    "beegfs",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.gcsfuse",
)
#: What takes in a process whose parent is gone, besides process 1.
_INITS = frozenset({"systemd", "init", "tini", "dumb-init", "docker-init", "catatonit"})
_MOST_FILES = 200_000


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A folder on its disk; sizes in bytes. ``error`` is why it can't be written, ``kind`` the file system's type."""

    path: Path
    free: int
    total: int
    free_files: int | None = None
    kind: str = ""
    error: str = ""
    same_disk_temp: bool = True

    @property
    def network(self) -> bool:
        """Whether another machine holds it."""
        return is_network(self.kind)


def look_at_folder(path: Path) -> FolderFacts:
    """Room, type, and whether a file can be written, forced to the disk and renamed there.

    A folder that is not there yet is judged by the nearest one above that is.
    """
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    room = os.statvfs(there)
    error = ""
    try:
        with tempfile.NamedTemporaryFile(prefix=".quantcard-doctor-", dir=there, delete=False) as file:
            target = Path(f"{file.name}.renamed")
            try:
                file.write(b"quantcard doctor\n" * 512)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(target)
            finally:
                for left in (Path(file.name), target):
                    left.unlink(missing_ok=True)
    except OSError as failed:
        error = failed.strerror or str(failed)
    return FolderFacts(
        path=path,
        free=room.f_bavail * room.f_frsize,
        total=room.f_blocks * room.f_frsize,
        free_files=room.f_favail if room.f_files else None,
        kind=mount_kind(there),
        error=error,
        same_disk_temp=there.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev,
    )


def is_network(kind: str) -> bool:
    """Whether a file system of this type is on another machine."""
    return kind.startswith(_NETWORK)


def mount_kind(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that holds a path, or "" where the kernel does not tell."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind, resolved = -1, "", path.resolve()
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].encode().decode("unicode_escape", errors="replace"))
        # The last of several mounts on one point is the one that is seen.
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def folder_size(path: Path) -> int | None:
    """Bytes in a folder, or None where there are too many files to count."""
    total, seen = 0, 0
    for folder, _, names in os.walk(path):
        for name in names:
            seen += 1
            if seen > _MOST_FILES:
                return None
            with suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Main memory in bytes; ``limit`` is the container's, where it has one."""

    total: int
    available: int
    limit: int | None = None
    swap: int = 0


def look_at_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> MemoryFacts:
    """What the kernel tells of memory.

    Raises:
        OSError: it tells nothing here (not Linux).
    """
    told = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.split()[1:] == ["kB"]:
            told[name] = int(value.split()[0]) * 1024
    limits = [limit for file in _limit_files(proc, cgroups) if (limit := _number(file)) is not None]
    limit = min((one for one in limits if 0 < one < told["MemTotal"]), default=None)
    return MemoryFacts(told["MemTotal"], told["MemAvailable"], limit, told.get("SwapTotal", 0))


def _limit_files(proc: Path, cgroups: Path) -> list[Path]:
    """Every file that may hold a limit of ours: version 1's, and version 2's from our own group up."""
    found = [cgroups / "memory" / "memory.limit_in_bytes", cgroups / "memory.max"]
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                group = cgroups / line[3:].strip().lstrip("/")
                found += [one / "memory.max" for one in (group, *group.parents) if one.is_relative_to(cgroups)]
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def file_limits() -> tuple[int, int]:
    """How many files this process may have open: now, and at most."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The address that 'serve' listens on. ``ours``: a service of this project answers there."""

    host: str
    port: int
    free: bool
    ours: bool = False
    error: str = ""


def look_at_port(host: str, port: int) -> PortFacts:
    """Whether the port can be listened on; where it is taken, whether it is our own service that has it."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as tried:
            # As the service does: a connection that is just ending is no hindrance.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
        return PortFacts(host, port, free=True)
    except OSError as failed:
        taken = failed.errno == errno.EADDRINUSE
        return PortFacts(
            host, port, free=False, ours=taken and _answers(host, port), error=failed.strerror or str(failed)
        )


def _answers(host: str, port: int) -> bool:
    """Whether /healthz there is our service's."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    shown = f"[{shown}]" if ":" in shown else shown
    try:
        with build_opener(ProxyHandler({})).open(f"http://{shown}:{port}/healthz", timeout=2.0) as response:
            told = json.loads(response.read(1 << 16))
        return isinstance(told, dict) and "ok" in told and "jobs" in told
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """Installed packages beside what they should be: (name, installed or "", wanted)."""

    python: str
    supported: bool
    n_packages: int
    different: tuple[tuple[str, str, str], ...] = ()
    locked: bool = True


def look_at_packages(lock: Path | None) -> PackageFacts:
    """Compare with the lock, or where there is none (an installed wheel) with what the package itself asks for."""
    from packaging.requirements import InvalidRequirement, Requirement

    locked = lock is not None and lock.is_file()
    if locked and lock is not None:
        asked = lock.read_text(encoding="utf-8").splitlines()
    else:
        asked = [one for one in metadata.requires("quantcard") or [] if "extra ==" not in one]
    different, n = [], 0
    for line in asked:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        n += 1
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or not wanted.specifier.contains(version, prereleases=True):
            different.append((wanted.name, version, str(wanted.specifier)))
    return PackageFacts(platform.python_version(), sys.version_info[:2] >= (3, 11), n, tuple(different), locked=locked)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that a killed process left behind; ``age`` in seconds since it was last written to."""

    path: Path
    size: int
    age: float


def temporary_leftovers(older_than: float, folder: Path | None = None) -> list[Leftover]:
    """Our temporary folders that nobody can still be at work in."""
    found = []
    place = folder or Path(tempfile.gettempdir())
    with suppress(OSError):
        for path in place.iterdir():
            if path.name.startswith(TEMPORARY):
                found += _left(path, older_than)
    return sorted(found, key=lambda one: -one.age)


def partial_leftovers(data: Path, older_than: float) -> list[Leftover]:
    """Half-written files in the data folder that nobody writes to any more."""
    found: list[Leftover] = []
    seen = 0
    for folder, _, names in os.walk(data):
        for name in names:
            seen += 1
            if seen > _MOST_FILES:
                return found
            if name.endswith((".part", ".incomplete", ".tmp")):
                found += _left(Path(folder) / name, older_than)
    return sorted(found, key=lambda one: -one.age)


def _left(path: Path, older_than: float) -> list[Leftover]:
    with suppress(OSError):
        state = path.lstat()
        if os.getuid() not in (0, state.st_uid):
            return []
        age = time.time() - state.st_mtime
        if age > older_than:
            return [Leftover(path, (folder_size(path) or 0) if path.is_dir() else state.st_size, age)]
    return []


def _takes_in(proc: Path, pid: int) -> bool:
    """Whether a process is one that takes in others' children."""
    return pid == 1 or (proc / str(pid) / "comm").read_text().strip() in _INITS


def orphans(proc: Path = Path("/proc")) -> list[int]:
    """Measuring processes of this user (of any, for root) whose parent is gone."""
    found: list[int] = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            if os.getuid() not in (0, entry.stat().st_uid):
                continue
            command = (entry / "cmdline").read_bytes().split(b"\0")
            # The name in the second field may hold anything, so fields are counted after it.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"-m" in command and b"jobs.run" in command and _takes_in(proc, parent):
                found.append(int(entry.name))
    return sorted(found)
