"""The filter of system calls, run by an interpreter of its own: what is denied, by what, and what is not."""

from __future__ import annotations

import struct

import pytest

from core.sandbox.seccomp import denied_calls, program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = ("x86_64", "aarch64")
#: What a measurement does all the time: read, write, mmap, futex, threads, clocks.
USED = {"x86_64": (0, 1, 9, 11, 13, 24, 39, 60, 202, 228, 231, 234, 262), "aarch64": (63, 64, 222, 98, 93, 94, 113)}
CLONE = {"x86_64": 56, "aarch64": 220}
PRCTL = {"x86_64": 157, "aarch64": 167}
IOCTL = {"x86_64": 16, "aarch64": 29}
OPENAT = {"x86_64": 257, "aarch64": 56}
FCHMODAT = {"x86_64": 268, "aarch64": 53}
THREAD = 0x003D0F00  # what pthread_create asks clone for


def answer(code: bytes, machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the kernel would make of a system call."""
    data = struct.pack("=IIQ6Q", number, arch or AUDIT[machine], 0, *arguments, *([0] * (6 - len(arguments))))
    accumulator, at = 0, 0
    while True:
        op, yes, no, k = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif op == 0x06:
            return int(k)
        else:
            met = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += yes if met else no


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("gpu", [False, True])
def test_what_reaches_beyond_the_process_is_denied_and_what_measuring_needs_is_not(machine: str, gpu: bool) -> None:
    code = program(machine, gpu=gpu)
    assert code is not None and len(code) % 8 == 0 and len(code) // 8 < 4096
    denied = denied_calls(machine)
    for name in ("ptrace", "process_vm_readv", "process_vm_writev", "kexec_load", "bpf", "perf_event_open", "keyctl",
                 "add_key", "request_key", "userfaultfd", "mount", "umount2", "move_mount", "unshare", "setns",
                 "io_uring_setup", "open_by_handle_at", "init_module", "personality", "execve"):  # fmt: skip
        assert answer(code, machine, denied[name]) == EPERM, name
    for number in USED[machine]:
        assert answer(code, machine, number) == ALLOW, number
    assert answer(code, machine, 435) == answer(code, machine, 437) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_but_no_processes_and_no_namespaces(machine: str) -> None:
    code = program(machine)
    assert code is not None
    assert answer(code, machine, CLONE[machine], THREAD) == ALLOW
    assert answer(code, machine, CLONE[machine], 17) == EPERM  # fork: SIGCHLD
    assert answer(code, machine, CLONE[machine], 0x00004111) == EPERM  # vfork
    for new in (0x00020000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(code, machine, CLONE[machine], THREAD | new) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_a_call_is_needed(machine: str) -> None:
    code = program(machine)
    assert code is not None
    assert answer(code, machine, PRCTL[machine], 1, 0) == EPERM  # PR_SET_PDEATHSIG
    assert answer(code, machine, PRCTL[machine], 15) == ALLOW  # PR_SET_NAME
    assert answer(code, machine, IOCTL[machine], 0, 0x5412) == EPERM  # TIOCSTI
    assert answer(code, machine, IOCTL[machine], 0, 0x5413) == ALLOW
    assert answer(code, machine, FCHMODAT[machine], 0, 0, 0o4755) == EPERM
    assert answer(code, machine, FCHMODAT[machine], 0, 0, 0o2755) == EPERM
    assert answer(code, machine, FCHMODAT[machine], 0, 0, 0o755) == ALLOW
    assert answer(code, machine, OPENAT[machine], 0, 0, 0o101, 0o4755) == EPERM
    assert answer(code, machine, OPENAT[machine], 0, 0, 0o101, 0o644) == ALLOW
    # Without O_CREAT the fourth argument is whatever stood in the register.
    assert answer(code, machine, OPENAT[machine], 0, 0, 0, 0o4755) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_a_gpus_driver_keeps_local_sockets_and_nothing_more(machine: str) -> None:
    plain, gpu = program(machine), program(machine, gpu=True)
    assert plain is not None and gpu is not None
    socket, memfd = denied_calls(machine)["socket"], denied_calls(machine)["memfd_create"]
    assert answer(plain, machine, socket, 1) == answer(plain, machine, memfd) == EPERM
    assert answer(gpu, machine, socket, 1) == answer(gpu, machine, memfd) == ALLOW
    for family in (2, 10, 16, 17, 40):
        assert answer(gpu, machine, socket, family) == EPERM


def test_calls_of_another_machine_end_the_process() -> None:
    for machine in MACHINES:
        code = program(machine)
        assert code is not None
        assert answer(code, machine, 0, arch=0x40000003) == KILL
    code = program("x86_64")
    assert code is not None and answer(code, "x86_64", 0x40000000 | 101) == ENOSYS
    assert program("riscv64") is None and denied_calls("riscv64") == {}
