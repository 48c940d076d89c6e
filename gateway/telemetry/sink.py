"""The log's output: writes lines without blocking, so that its reader can neither block nor end the gateway.

A line is written at once if possible. If it cannot be written (the reader is stuck or gone, the disk is full), it is
buffered and retried with the next line and at every tick. Beyond MAX_BUFFERED_BYTES lines are dropped and counted. When
the buffer is written, one line reports the number of dropped lines.
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

MAX_BUFFERED_BYTES = 1 << 20
RETRY_S = 0.01

Write = Callable[[bytes | bytearray], int]


class Sink:
    """Writes lines to a duplicate of a file descriptor. Never blocks, never raises; any thread may call it.

    on_dropped(count): called with the number of dropped lines once lines can be written again; it may log.
    close(): closes the duplicate; call it after the last line.
    """

    def __init__(self, fd: int, on_dropped: Callable[[int], None]) -> None:
        self._write, self.close = open_nonblocking(fd)
        self._on_dropped = on_dropped
        self._queue: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._dropped = 0

    def msg(self, line: bytes) -> None:
        """Write the line and its end of line, or buffer it, or drop and count it."""
        self._queue.append(line)
        self.flush()

    debug = info = warning = error = critical = exception = msg

    def flush(self) -> None:
        """Write as much as can be written now."""
        # No thread waits for the lock: its holder checks the queue again after releasing it. So a `__del__` that logs
        # while the garbage collector runs inside this method does not deadlock.
        while self._lock.acquire(blocking=False):
            try:
                self._write_buffered()
                while self._queue:
                    self._write_or_buffer(self._queue.popleft() + b"\n")
            finally:
                self._lock.release()
            if not self._queue:
                return

    def flush_within(self, seconds: float) -> None:
        """Write the last lines; retry for at most `seconds` while they cannot be written."""
        until = time.monotonic() + seconds
        self.flush()
        while self._buffer and time.monotonic() < until:
            time.sleep(RETRY_S)
            self.flush()

    def _write_buffered(self) -> None:
        if self._buffer:
            del self._buffer[: self._try_write(self._buffer)]
        if self._dropped and not self._buffer:
            count, self._dropped = self._dropped, 0
            self._on_dropped(count)  # a line that it logs is only queued, because this thread holds the lock

    def _write_or_buffer(self, line: bytes) -> None:
        if not self._buffer:
            written = self._try_write(line)
            if written < len(line):
                self._buffer += line[written:]
        elif len(self._buffer) + len(line) <= MAX_BUFFERED_BYTES:
            self._buffer += line
        else:
            self._dropped += 1
            metrics.LOG_DROPPED.inc()

    def _try_write(self, data: bytes | bytearray) -> int:
        try:
            return self._write(data)
        except OSError:  # EAGAIN, ENOSPC, EPIPE, EIO: each may be temporary
            return 0


def open_nonblocking(fd: int) -> tuple[Write, Callable[[], None]]:
    """Duplicate `fd`; returns a function that writes without blocking, and a function that closes the duplicate.

    The first returns the number of bytes written, and raises OSError as write(2) does.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(fd))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.close
    write: Callable[[int, bytes | bytearray], int] = os.write
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        own = os.dup(fd)
    else:
        try:  # O_NONBLOCK belongs to the open file, which the parent may share: so it is opened anew
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # no /proc, another user's terminal, or a named pipe without a reader
            own, write = os.dup(fd), _write_pages
    return partial(write, own), partial(os.close, own)


def _write_pages(fd: int, data: bytes | bytearray) -> int:
    """Write page by page: POLLOUT means that a page of a pipe is free, so that writing PIPE_BUF does not block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    done = 0
    while done < len(data) and poll.poll(0):
        done += os.write(fd, data[done : done + select.PIPE_BUF])
    return done
