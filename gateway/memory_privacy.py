"""Keeps the memory of a process, and the secrets in its environment, from other processes of the same user.

A process that is not dumpable (prctl(2), PR_SET_DUMPABLE) leaves no core file, and only root can attach a debugger to
it or read its /proc/PID/mem and /proc/PID/environ. An exec makes the new program dumpable again.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps() -> None:
    """Make this process not dumpable, and allow no core file for it and its children.

    Write to files under /proc/self first: they belong to root from then on.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def take_variables(prefix: str) -> dict[str, str]:
    """Return the environment, and remove from it each variable whose name begins with `prefix`, in any case.

    Child processes do not inherit these variables, and /proc/PID/environ shows their names without values.
    """
    environ = dict(os.environ)
    _overwrite(prefix)
    for name in environ:
        if name.upper().startswith(prefix):
            del os.environ[name]
    return environ


def _overwrite(prefix: str) -> None:
    """Zero the values where the kernel stored them at exec: unsetenv(3) removes only the pointers to them."""
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while entries and (address := entries[index]):
        name, _, value = ctypes.string_at(address).partition(b"=")
        if name.upper().startswith(prefix.encode()):
            ctypes.memset(address + len(name) + 1, 0, len(value))
        index += 1
