"""Where the log's lines go, such that whoever reads them, or does not, can neither stop nor end the gateway.

A line is written at once where it can be. Where it cannot (a reader that does not read, a full disk, a reader that
is gone) it waits, is tried again with the next line and at every tick, and has company up to MAX_WAITING_BYTES; what
comes then is counted. Once all that waited is written, a line tells how many are missing.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from gateway.telemetry import metrics

MAX_WAITING_BYTES = 1 << 20
PAUSE_S = 0.01

Put = Callable[[bytes | bytearray], int]


class Sink:
    """Writes lines to a file descriptor, of which it has a duplicate. Never waits, never raises; for any thread.

    tell(count): so many lines were dropped; it may log. close: the duplicate, after the last line.
    """

    def __init__(self, fd: int, tell: Callable[[int], None]) -> None:
        self._put, self.close = writing_to(fd)
        self._tell = tell
        self._coming: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._dropped = 0

    def msg(self, line: bytes) -> None:
        """Write it, with its end of line; or keep it; or count it."""
        self._coming.append(line)
        self.flush()

    debug = info = warning = error = critical = exception = msg

    def flush(self) -> None:
        """Write what can be written now."""
        # Nobody waits for the lock: who has it looks again after giving it back. So a `__del__` that logs while the
        # collector runs in the middle of this is served, too.
        while self._lock.acquire(blocking=False):
            try:
                self._catch_up()
                while self._coming:
                    self._take(self._coming.popleft() + b"\n")
            finally:
                self._lock.release()
            if not self._coming:
                return

    def flush_within(self, seconds: float) -> None:
        """The last words: wait for so long where they cannot be written."""
        until = time.monotonic() + seconds
        self.flush()
        while self._waiting and time.monotonic() < until:
            time.sleep(PAUSE_S)
            self.flush()

    def _catch_up(self) -> None:
        if self._waiting:
            del self._waiting[: self._written(self._waiting)]
        if self._dropped and not self._waiting:
            count, self._dropped = self._dropped, 0
            self._tell(count)  # what it logs is only taken note of, since we have the lock

    def _take(self, line: bytes) -> None:
        if not self._waiting:
            written = self._written(line)
            if written < len(line):
                self._waiting += line[written:]
        elif len(self._waiting) + len(line) <= MAX_WAITING_BYTES:
            self._waiting += line
        else:
            self._dropped += 1
            metrics.LOG_DROPPED.inc()

    def _written(self, data: bytes | bytearray) -> int:
        try:
            return self._put(data)
        except OSError:  # EAGAIN, ENOSPC, EPIPE, EIO: whatever it is, it may pass
            return 0


def writing_to(fd: int) -> tuple[Put, Callable[[], None]]:
    """A function that writes what can be written at once and says how much that was; and one that closes.

    The first raises OSError, as write(2) does.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(fd))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.close
    write: Callable[[int, bytes | bytearray], int] = os.write
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        own = os.dup(fd)
    else:
        try:  # O_NONBLOCK belongs to the open file, which we may share with our parent: so we open it ourselves
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # no /proc, another user's terminal, or a named pipe without a reader
            own, write = os.dup(fd), _write_what_fits
    return partial(write, own), partial(os.close, own)


def _write_what_fits(fd: int, data: bytes | bytearray) -> int:
    """poll(2) says whether a page of a pipe is free, so that so much can be written without waiting."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    done = 0
    while done < len(data) and room.poll(0):
        done += os.write(fd, data[done : done + select.PIPE_BUF])
    return done
