"""What a measuring process needs to see: Python, its packages, the system's libraries, devices. And nothing else."""

from __future__ import annotations

import os
import site
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: What a measuring process may know of our environment: where programs and libraries are, and which devices to use.
_KEEP = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LLAMA_CPP_LIB_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TZ")
_KEEP_PREFIXES = ("CUDA_", "GGML_", "OMP_", "GOMP_", "HIP_", "ROCR_", "NVIDIA_")
#: Ours, and what measuring is done with; everything else comes along from the same folders.
_PACKAGES = ("core", "jobs", "numpy", "numba", "llvmlite", "llama_cpp", "pydantic", "pyarrow", "gguf")
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "OpenCL", "vulkan")
_SYS = ("/sys/devices/system/cpu", "/sys/devices/system/node")
#: What CUDA and ROCm read about the cards and the bus.
_SYS_GPU = ("/sys/devices", "/sys/bus", "/sys/class", "/sys/dev", "/sys/module")
_DEVICES = ("nvidia", "kfd", "dri", "dxg")


def scrubbed_environment(home: str) -> dict[str, str]:
    """The child's environment: no token, no setting, no home of ours."""
    kept = {name: value for name, value in os.environ.items() if name in _KEEP or name.startswith(_KEEP_PREFIXES)}
    return {**kept, "HOME": home, "TMPDIR": home, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def gpu_devices() -> tuple[str, ...]:
    """Device files and folders of GPUs that are here."""
    with suppress(OSError):
        return tuple(sorted(str(path) for path in Path("/dev").iterdir() if path.name.startswith(_DEVICES)))
    return ()


def system_paths() -> tuple[str, ...]:
    """Files and folders of the system, of Python and of its packages, as absolute paths; some may be links."""
    return (*_fixed(), *(path for path in _from_environment(os.environ) if Path(path).exists()))


@cache
def _fixed() -> tuple[str, ...]:
    found = [*_SYSTEM, *(f"/etc/{name}" for name in _ETC), *(_SYS_GPU if gpu_devices() else _SYS)]
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)):
        if prefix not in ("/", "/usr"):
            found += [f"{prefix}/{name}" for name in ("bin", "lib", "lib64", "pyvenv.cfg")]
    found += [str(Path(os.__file__).parent), *_links(sys.executable)]
    for name in _PACKAGES:
        found += _package(name)
    return tuple(dict.fromkeys(path for path in found if Path(path).exists()))


def _links(executable: str) -> Iterator[str]:
    """The folders that the chain of links behind Python's own name leads through."""
    path = Path(executable)
    for _ in range(16):
        yield plain_path(path)
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def _package(name: str) -> list[str]:
    """The folder that a package is taken from: all of site-packages, but of any other folder only the package."""
    with suppress(ImportError, ValueError):
        found = find_spec(name)
        if found is not None and found.submodule_search_locations:
            folders = [Path(place) for place in found.submodule_search_locations]
            return [
                str(folder.parent if folder.parent.name in ("site-packages", "dist-packages") else folder)
                for folder in folders
            ]
    return []


def _from_environment(environment: Mapping[str, str]) -> Iterator[str]:
    """Folders of libraries that the environment names; never one that a home lies in."""
    home = os.path.realpath(Path.home())
    named = f"{environment.get('LD_LIBRARY_PATH', '')}:{environment.get('LLAMA_CPP_LIB_PATH', '')}"
    for path in named.split(":"):
        real = os.path.realpath(path) if path else "/"
        if Path(path).is_absolute() and real != home and not f"{home}/".startswith(real.rstrip("/") + "/"):
            yield path
    if site.ENABLE_USER_SITE and Path(site.getusersitepackages()).is_dir():
        yield site.getusersitepackages()


def outermost(paths: Iterable[str]) -> list[str]:
    """Paths without those that lie below another one of them; links are taken for what they are called."""
    kept: list[str] = []
    for path in sorted({plain_path(path) for path in paths}, key=lambda path: (path.count("/"), path)):
        if not any(path == other or path.startswith(other.rstrip("/") + "/") for other in kept):
            kept.append(path)
    return kept


def kernel_files() -> list[str]:
    """What lies in /proc beside the processes and could be written to by its owner, who may be us."""
    found = []
    with suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit() or entry.is_symlink():
                continue
            with suppress(OSError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode) or mode & 0o222:
                    found.append(entry.path)
    return sorted(found)


def closed_on_the_way(path: str) -> str | None:
    """The folder above ``path`` that a user without any right does not get through; None when there is none."""
    for folder in reversed(Path(os.path.realpath(path)).parents):
        if not folder.stat().st_mode & 0o001:
            return str(folder)
    return None


def unreadable(path: str) -> str | None:
    """Where a user without any right is stopped who wants to read ``path``; None when they can."""
    if stopped := closed_on_the_way(path):
        return stopped
    real = Path(os.path.realpath(path))
    wanted = 0o005 if real.is_dir() else 0o004
    return None if real.stat().st_mode & wanted == wanted else str(real)


def plain_path(path: str | Path) -> str:
    """An absolute path without dots; links in it stay."""
    return os.path.normpath(Path(path).absolute())
