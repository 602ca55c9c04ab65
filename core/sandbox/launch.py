"""How a job's process is started at each level: its command, its environment, and what is to be undone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import SandboxError, StorageError
from core.sandbox.inside import UNSAFE_EXIT, Config
from core.sandbox.levels import Level, Limits
from core.sandbox.reach import (
    closed_on_the_way,
    gpu_devices,
    kernel_files,
    outermost,
    plain_path,
    scrubbed_environment,
    system_paths,
    unreadable,
)
from core.sandbox.scratch import scratch_folder
from core.sandbox.users import own_user

_NOBODY = "65534"
#: Seconds that a trial may take on a machine that is busy.
_TRIAL_S = 60.0
#: What Landlock leaves of /proc and /dev to a job with a user of its own.
_PROC = tuple(f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "driver", "devices", "modules", "version"))
_DEV = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")


@dataclass(frozen=True, slots=True)
class Launch:
    """What to hand to :class:`subprocess.Popen`."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    #: The job's own user, where it has one.
    user: int | None = None
    #: Whether an exit code above 128 stands for a signal, as a shell writes it.
    shell_codes: bool = False


@contextmanager
def launched(
    level: Level,
    module: Sequence[str],
    *,
    scratch: Path,
    reads: Sequence[Path],
    writes: Sequence[Path],
    limits: Limits,
) -> Iterator[Launch]:
    """A way to start ``module`` that holds as long as the block runs.

    Args:
        module: a module's name and its arguments; "-" to try the sandbox out and end.
        scratch: the job's own folder, empty.
        reads: what it may read; what is not there is left out.
        writes: folders that it may also write to.

    Raises:
        SandboxError: something can't be read by the user that the job would run as.
    """
    for name in ("home", "tmp", "shm"):
        (scratch / name).mkdir(exist_ok=True)
    home = scratch / "home"
    there = [plain_path(path) for path in reads if path.exists()]
    folders = [plain_path(path) for path in writes]
    # Promised but untouched memory counts too, so this only ends what no measurement asks for; the watchdog is exact.
    data = 2 * limits.memory_bytes + (4 << 30) if limits.memory_bytes and not gpu_devices() else 0
    gpu = bool(gpu_devices())
    shared: dict[str, Any] = {"file_bytes": limits.output_bytes, "data_bytes": data, "gpu": gpu}
    environment = scrubbed_environment(str(home)) | {"NUMBA_CACHE_DIR": str(scratch / "kernels")}
    if level == "bubblewrap":
        config = Config(**shared)
        argv = _wrapped(scratch, there, folders) + _python(config, module)
        yield Launch(tuple(argv), environment, {"start_new_session": True}, shell_codes=True)
    elif level == "uid":
        _require_open(there, [str(scratch), *folders])
        with own_user([scratch, *map(Path, folders)]) as user:
            config = Config(
                **shared,
                parent=os.getpid(),
                processes=limits.threads,
                must_filter=True,
                fence=True,
                reads=(*system_paths(), *_PROC, *there),
                writes=(str(scratch), *folders, *_DEV, *gpu_devices()),
            )
            options = {"start_new_session": True, "user": user, "group": user, "extra_groups": []}
            yield Launch(tuple(_python(config, module)), environment, options, user=user)
    else:
        config = Config(**shared, parent=os.getpid())
        yield Launch(tuple(_python(config, module)), environment, {"start_new_session": True})


def _require_open(reads: Sequence[str], writes: Sequence[str]) -> None:
    """Raise :class:`SandboxError` where a user without any right would not get to these files and folders."""
    stops = [(path, unreadable(path)) for path in reads] + [(path, closed_on_the_way(path)) for path in writes]
    for path, stopped in stops:
        if stopped is not None:
            raise SandboxError(
                f"{Path(path).name} can't be reached by the unprivileged user that a stranger's file is measured as: "
                f"{stopped} is closed to others. Open it (chmod o+x, a file o+r), or install bubblewrap."
            )


def _python(config: Config, module: Sequence[str]) -> list[str]:
    # -P: a folder called "jobs" where the operator happens to stand is not ours.
    return [sys.executable, "-P", "-m", "core.sandbox.inside", config.dumps(), *module]


def bubblewrap() -> str | None:
    """Where the program is."""
    return shutil.which("bwrap")


@cache
def _options() -> str:
    """What this version of bubblewrap says that it can do."""
    done = subprocess.run(
        [bubblewrap() or "bwrap", "--help"], capture_output=True, text=True, timeout=_TRIAL_S, check=False
    )
    return done.stdout + done.stderr


def _wrapped(scratch: Path, reads: Sequence[str], writes: Sequence[str]) -> list[str]:
    """bubblewrap's command line. Later mounts lie over earlier ones, so what is writable comes last."""
    argv = [bubblewrap() or "bwrap", "--unshare-all", "--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY]
    argv += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    if "--disable-userns" in _options():
        argv.append("--disable-userns")
    argv += ["--proc", "/proc"]
    for path in kernel_files():
        # As root we would own these, in whatever namespace: core_pattern alone is a way out.
        argv += ["--ro-bind-try", path, path]
    argv += ["--dev", "/dev", "--bind", str(scratch / "tmp"), "/tmp", "--bind", str(scratch / "shm"), "/dev/shm"]
    for device in gpu_devices():
        argv += ["--dev-bind-try", device, device]
    argv += _seen(system_paths())
    for path in reads:
        argv += ["--ro-bind", path, path]
    for folder in [str(scratch), *writes]:
        argv += ["--bind", folder, folder]
    here = str(Path.cwd())
    # Paths may be relative to where we stand; of that folder nothing is seen.
    return [*argv, "--dir", here, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", here, "--"]


def _seen(paths: Sequence[str]) -> Iterator[str]:
    """Read-only binds under the names that are used and, where links lead elsewhere, under the real ones."""
    named = outermost(paths)
    real = [found for path in named if (found := os.path.realpath(path)) != path]
    whole = [path for path in outermost([*named, *real]) if not Path(path).is_symlink()]
    for path in whole:
        yield from ("--ro-bind", path, path)
    for path in named:
        if Path(path).is_symlink() and not any(path.startswith(f"{other}/") for other in whole):
            yield from ("--symlink", str(Path(path).readlink()), path)


def try_out(level: Level) -> str | None:
    """Start a process at ``level`` that does nothing. Why it can't be done, or None."""
    if level == "bubblewrap" and bubblewrap() is None:
        return "bubblewrap is not installed"
    if level == "uid" and os.geteuid() != 0:
        return "only root can run a job as another user"
    try:
        with (
            scratch_folder() as scratch,
            launched(level, ["-"], scratch=scratch, reads=[], writes=[], limits=Limits(seconds=_TRIAL_S)) as launch,
        ):
            done = subprocess.run(
                launch.argv,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TRIAL_S,
                check=False,
                **launch.options,
            )
    except (OSError, subprocess.SubprocessError, SandboxError, StorageError) as error:
        return f"{level} does not work here ({error})"
    if done.returncode == 0 and "confined" in done.stdout:
        return None
    said = " ".join((done.stderr or "").split())[-200:] or f"code {done.returncode}"
    return f"{level} does not work here ({'unsafe: ' if done.returncode == UNSAFE_EXIT else ''}{said})"
