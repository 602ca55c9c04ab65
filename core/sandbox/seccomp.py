"""The system calls that no measurement needs, as a BPF program for x86-64 and AArch64. Pure: bytes and numbers.

A list of what is denied, not of what is allowed: CUDA, ROCm, numba and libc each need others, and those change. What
is denied is what reaches beyond the process: other processes, namespaces, mounts, the network, the kernel's own
machinery, and files that outlive their mode bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_EPERM, _ENOSYS = 1, 38
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH = 0, 4
_CLONE_THREAD = 0x00010000
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; CLONE_NEWTIME only goes by clone3 and unshare.
_CLONE_NEW = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_PR_SET_PDEATHSIG = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
#: S_ISUID and S_ISGID: as root in a namespace of our own, a job could leave a program that is root's for everybody.
_SET_ID = 0o6000
_MAKES = 0o100 | 0x400000  # O_CREAT, __O_TMPFILE
_X32 = 0x40000000
_AF_UNIX = 1
_FOR_GPUS = frozenset({"socket", "memfd_create"})


@dataclass(frozen=True, slots=True)
class _Machine:
    audit: int
    denied: dict[str, int]
    #: Answered with 'not there', so that libc takes another way (clone3 keeps its flags in memory; so does openat2).
    absent: dict[str, int]
    clone: int
    prctl: int
    ioctl: int
    #: Number of the system call: (index of the flags that make a file or None, index of the mode).
    modes: dict[int, tuple[int | None, int]]


#: The same numbers on every machine.
_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "open_tree_attr": 467,
}
# fmt: off
_X86_64 = _Machine(
    audit=0xC000003E,
    denied=_COMMON | {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_send_signal": 424,
        "kexec_load": 246, "kexec_file_load": 320, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "add_key": 248, "request_key": 249, "keyctl": 250, "mount": 165, "umount2": 166, "pivot_root": 155,
        "chroot": 161, "unshare": 272, "setns": 308, "open_by_handle_at": 304, "name_to_handle_at": 303,
        "create_module": 174, "init_module": 175, "delete_module": 176, "finit_module": 313, "personality": 135,
        "swapon": 167, "swapoff": 168, "reboot": 169, "acct": 163, "quotactl": 179, "syslog": 103,
        "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305, "iopl": 172, "ioperm": 173,
        "modify_ldt": 154, "lookup_dcookie": 212, "fanotify_init": 300, "nfsservctl": 180, "sethostname": 170,
        "setdomainname": 171, "uselib": 134, "sysfs": 139, "_sysctl": 156, "vhangup": 153, "mknod": 133,
        "mknodat": 259, "socket": 41, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319,
        "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
    },
    absent={"clone3": 435, "openat2": 437, "fchmodat2": 452},
    clone=56, prctl=157, ioctl=16,
    modes={2: (1, 2), 257: (2, 3), 85: (None, 1), 90: (None, 1), 91: (None, 1), 268: (None, 2)},
)
_AARCH64 = _Machine(
    audit=0xC00000B7,
    denied=_COMMON | {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "pidfd_send_signal": 424,
        "kexec_load": 104, "kexec_file_load": 294, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "add_key": 217, "request_key": 218, "keyctl": 219, "mount": 40, "umount2": 39, "pivot_root": 41,
        "chroot": 51, "unshare": 97, "setns": 268, "open_by_handle_at": 265, "name_to_handle_at": 264,
        "init_module": 105, "delete_module": 106, "finit_module": 273, "personality": 92,
        "swapon": 224, "swapoff": 225, "reboot": 142, "acct": 89, "quotactl": 60, "syslog": 116,
        "settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266,
        "lookup_dcookie": 18, "fanotify_init": 262, "nfsservctl": 42, "sethostname": 161, "setdomainname": 162,
        "vhangup": 58, "mknodat": 33, "socket": 198, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180,
        "memfd_create": 279, "execve": 221, "execveat": 281,
    },
    absent={"clone3": 435, "openat2": 437, "fchmodat2": 452},
    clone=220, prctl=167, ioctl=29,
    modes={56: (2, 3), 52: (None, 1), 53: (None, 2)},
)
# fmt: on
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64, "arm64": _AARCH64}


def denied_calls(machine: str) -> dict[str, int]:
    """Names and numbers of what is answered with EPERM whatever its arguments; empty for an unknown machine."""
    return dict(_MACHINES[machine].denied) if machine in _MACHINES else {}


def program(machine: str, *, gpu: bool = False) -> bytes | None:
    """The filter as an array of ``struct sock_filter``, or None for a machine that we know no numbers of.

    Args:
        machine: ``platform.machine()``.
        gpu: leave sockets inside this machine and files in memory, which drivers of GPUs may use.
    """
    known = _MACHINES.get(machine)
    if known is None:
        return None
    code = [_op(_LOAD, _ARCH), _op(_JEQ, known.audit, 1, 0), _op(_RET, _KILL), _op(_LOAD, _NR)]
    if machine == "x86_64":
        code += [_op(_JGE, _X32, 0, 1), _op(_RET, _ERRNO | _ENOSYS)]
    for name, number in known.denied.items():
        if gpu and name in _FOR_GPUS:
            continue
        code += [_op(_JEQ, number, 0, 1), _op(_RET, _ERRNO | _EPERM)]
    for number in known.absent.values():
        code += [_op(_JEQ, number, 0, 1), _op(_RET, _ERRNO | _ENOSYS)]
    # Threads, but no processes: what is to end with the job can't leave anything behind.
    thread = [_op(_JSET, _CLONE_THREAD, 1, 0), *_deny()]
    code += _when(known.clone, [_load(0), *thread, _op(_JSET, _CLONE_NEW, 0, 1), *_deny()])
    if gpu:
        code += _when(known.denied["socket"], [_load(0), _op(_JEQ, _AF_UNIX, 1, 0), *_deny()])
    code += _when(known.prctl, [_load(0), _op(_JEQ, _PR_SET_PDEATHSIG, 0, 1), *_deny()])
    code += _when(known.ioctl, [_load(1), _op(_JEQ, _TIOCSTI, 1, 0), _op(_JEQ, _TIOCLINUX, 0, 1), *_deny()])
    for number, (flags, mode) in known.modes.items():
        checks = [_load(mode), _op(_JSET, _SET_ID, 0, 1), *_deny()]
        if flags is not None:
            checks = [_load(flags), _op(_JSET, _MAKES, 0, len(checks)), *checks]
        code += _when(number, checks)
    return b"".join([*code, _op(_RET, _ALLOW)])


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _load(argument: int) -> bytes:
    """The low half of an argument; both machines are little-endian."""
    return _op(_LOAD, 16 + 8 * argument)


def _deny() -> list[bytes]:
    return [_op(_RET, _ERRNO | _EPERM)]


def _when(number: int, checks: list[bytes]) -> list[bytes]:
    """Checks of one system call's arguments; what passes them is allowed."""
    return [_op(_JEQ, number, 0, len(checks) + 1), *checks, _op(_RET, _ALLOW)]
