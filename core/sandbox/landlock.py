"""Landlock: the kernel's own list of the files that this process may still reach. Needs no right and no program."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE = 1 << 14
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
#: Everything about files that each version of the interface knows: 13 rights, then refer, then truncate.
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1}
_FILES_NOW = (1 << 15) - 1
_NET, _SCOPES = 0b11, 0b11


def version() -> int:
    """The interface's version in this kernel; 0 where there is none."""
    found = _libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, int(found))


def restrict(*, reads: Iterable[str], writes: Iterable[str]) -> bool:
    """Leave this thread, and all it starts, only these files and folders and what is below them.

    Needs ``no_new_privs``. What is not there is passed over.

    Returns:
        False where the kernel has no Landlock.

    Raises:
        OSError: it has, and refused.
    """
    abi = version()
    if not abi:
        return False
    handled = _FILES.get(abi, _FILES_NOW)
    attributes = struct.pack("=QQQ", handled, _NET if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = _called(_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint(0))
    try:
        for path in reads:
            _allow(rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in writes:
            _allow(rules, path, handled)
        _called(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0))
    finally:
        os.close(rules)
    return True


def _allow(rules: int, path: str, rights: int) -> None:
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not Path(f"/proc/self/fd/{file}").is_dir():
                rights &= _ON_FILES
            rule = ctypes.c_char_p(struct.pack("=Qi", rights, file))
            _called(_ADD, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0))
        finally:
            os.close(file)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _called(number: int, *arguments: object) -> int:
    found = int(_libc().syscall(number, *arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found
