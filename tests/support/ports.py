"""Ports for programs that cannot be started on port 0; no two test processes of this machine are given the same port.

The ports lie below the kernel's ephemeral range (32768 on Linux), so no outgoing connection and no socket bound to
port 0 takes a port between the choice and the program's start, or while the program restarts. Each process takes a
block of its own. An abstract Unix socket marks the block as taken, and the kernel frees it when the process ends.
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Iterator

FIRST, BLOCK, BLOCKS = 20_000, 400, 30


@functools.cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """The mark of this process's block, and its ports over and over."""
    for number in range(BLOCKS):
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            mark.bind(f"\0edge-gateway-test-ports-{number}")
        except OSError:
            mark.close()
            continue
        first = FIRST + number * BLOCK
        return mark, itertools.cycle(range(first, first + BLOCK))
    raise RuntimeError(f"{BLOCKS} test processes run on this machine")


def free_port() -> int:
    """A TCP port of loopback that is not in use."""
    _, ports = _block()
    for port in itertools.islice(ports, BLOCK):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port in this process's block")
