"""Children that a plugin forks in a worker: they must not use the worker's socket and event loop.

A forked child continues in the middle of a task with a copy of everything: without this module it would end the task a
second time, or read the next task. A child loses the socket and the event loop's file when it is forked, and exits when
the plugin's code returns to the worker program, with the status that a program of its own would have. A fork made by
native code runs no Python hook; the gateway recognises frames of such a child by its process id, and kills the worker.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress

_children_of: set[int] = set()  # holds the worker's process id in its forked children


def cut_off_children(fds: Iterable[int]) -> None:
    """In each child forked from now on, replace the descriptors `fds` by the null device."""
    worker, shared = os.getpid(), tuple(fds)

    def cut_off() -> None:
        _children_of.add(worker)
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for fd in shared:
                os.dup2(null, fd, inheritable=False)  # not closed: the number could become another file
            os.close(null)

    os.register_at_fork(after_in_child=cut_off)


def exit_if_child(exc: BaseException | None = None) -> None:
    """In a forked child, end the process as if the plugin's code was its whole program. exc: what that code raised.

    The interpreter's own end is left out: it would run the exit handlers of the worker.
    """
    if not _children_of:
        return
    status: object = 0
    if isinstance(exc, SystemExit):
        status = exc.code
    elif exc is not None:
        traceback.print_exception(exc)
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(status or 0) & 0xFF)
