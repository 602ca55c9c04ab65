"""A Job's command line: bubblewrap around the command, with the volumes at their places. Pure but for a look at `/`.

The image is not used: the Job sees this machine's own programs, read-only, and this installation of Python first on
its PATH. The network is open, as on the Hub.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_OURS = Path(__file__).resolve().parents[1]
#: Folders of `/` that a Job does not see, but for what is named below.
_HIDDEN = frozenset({"proc", "dev", "tmp", "run", "var", "root", "home", "mnt", "media", "srv", "lost+found"})


@dataclass(frozen=True)
class Mount:
    """A folder of ours, and where the Job sees it."""

    source: Path
    target: str
    read_only: bool


def command_line(
    bwrap: str, command: Sequence[str], *, mounts: Sequence[Mount], environment: Mapping[str, str], hub_root: Path
) -> list[str]:
    """What is run. Its own parent's end is its end, whatever happens to that."""
    line = [bwrap, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    root = os.geteuid() == 0
    if root:
        # Root in a container, as on the Hub, may make a sandbox of its own; bubblewrap would take that right away.
        line += ["--cap-add", "ALL"]
    line += [*_system(hub_root), "--proc", "/proc", "--dev", "/dev", *_gpus(), "--dir", "/var/tmp"]
    line += ["--clearenv", "--chdir", "/tmp"]
    for mount in mounts:
        line += ["--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target]
    for name, value in {**_environment(), **environment}.items():
        line += ["--setenv", name, value]
    # Where parts of /proc are covered, as bubblewrap does for root, no sandbox inside can have a /proc.
    fresh = ["/bin/sh", "-c", 'mount -t proc proc /proc 2>/dev/null; exec "$@"', "sh"] if root else []
    return [*line, "--", *fresh, *command]


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONPATH": str(_OURS)}


def _system(hub_root: Path) -> Iterator[str]:
    """This machine's folders, read-only; not the hub's own, where everybody's tokens are."""
    seen = []
    for path in sorted(Path("/").iterdir()):
        if path.name in _HIDDEN:
            continue
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            seen.append(path)
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--tmpfs", "/tmp")
    root = hub_root.resolve()
    if any(root.is_relative_to(path) for path in seen):
        yield from ("--tmpfs", str(root))
    for path in dict.fromkeys(Path(one).resolve() for one in (sys.base_prefix, sys.prefix, _OURS)):
        if not any(path.is_relative_to(other) for other in seen):
            yield from ("--ro-bind", str(path), str(path))


def _gpus() -> Iterator[str]:
    for path in sorted(Path("/dev").glob("nvidia*")):
        yield from ("--dev-bind", str(path), str(path))
