"""What a measuring process does to itself before it reads anything: ``python -m core.sandbox.inside CONFIG MODULE``.

It takes away what only the process itself can take away (system calls, children, core dumps) and then becomes MODULE.
Nothing of the job is read, and nothing heavy imported, before that. It holds at every level, also without a sandbox.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import runpy
import signal
import struct
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.sandbox import landlock
from core.sandbox.seccomp import program

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_MODE_FILTER = 2
_SECCOMP = {"x86_64": 317, "aarch64": 277, "arm64": 277}
#: All threads at once; and no slower memory for it (kernels before 5.16 take filters as a wish for mitigations, which
#: would show in the speeds that we measure).
_TSYNC, _SPEC_ALLOW = 1, 4
#: What the process exits with when it can't make itself safe: nothing was read yet.
UNSAFE_EXIT = 97


@dataclass(frozen=True, slots=True)
class Config:
    """How tight it has to be.

    Args:
        parent: the process that must still be our parent; 0: it is not known (a PID namespace).
        file_bytes: the largest file.
        data_bytes: private writable memory that may be asked for; 0: any.
        processes: what RLIMIT_NPROC is set to; 0: it counts more than this job here.
        must_filter: end where system calls can't be filtered.
        gpu: leave what GPU drivers call.
        fence: leave only some files, by Landlock.
        reads, writes: what Landlock leaves, where it is asked for.
    """

    parent: int = 0
    file_bytes: int = 0
    data_bytes: int = 0
    processes: int = 0
    must_filter: bool = False
    gpu: bool = False
    fence: bool = False
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def dumps(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self), separators=(",", ":"))


def confine(config: Config) -> None:
    """Take this process's rights away.

    Raises:
        OSError: a part that must work does not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    linux = sys.platform == "linux"
    if linux:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if config.parent and os.getppid() != config.parent:
        sys.exit(UNSAFE_EXIT)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value in (
        (resource.RLIMIT_FSIZE, config.file_bytes),
        (resource.RLIMIT_DATA, config.data_bytes),
        (resource.RLIMIT_NPROC, config.processes),
    ):
        if value:
            _, hard = resource.getrlimit(name)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(name, (value, value))
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as file:
        # Where memory runs out, the kernel is to take this process and not the service.
        file.write("1000")
    if not linux:
        return
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    if config.fence:
        landlock.restrict(reads=config.reads, writes=(*config.writes, "/proc/self"))
    if not _filtered(libc, gpu=config.gpu) and config.must_filter:
        raise OSError("this kernel, or this kind of machine, has no filter of system calls (seccomp)")


def _filtered(libc: ctypes.CDLL, *, gpu: bool) -> bool:
    code = program(platform.machine(), gpu=gpu)
    if code is None:
        return False
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a length and, aligned, a pointer.
    described = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    number = _SECCOMP[platform.machine()]
    for flags in (_TSYNC | _SPEC_ALLOW, _TSYNC):
        if libc.syscall(number, 1, flags, described) == 0:
            return True
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, described, 0, 0) == 0)


def main() -> None:
    """Entry point: confine, then become the module that is named."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    config = Config(**given)
    try:
        confine(config)
    except OSError as error:
        print(f"sandbox: {error.strerror or error}", file=sys.stderr)
        sys.exit(UNSAFE_EXIT)
    sys.argv = sys.argv[2:]
    if sys.argv[0] == "-":
        # Only tried out.
        print("confined")
        return
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
