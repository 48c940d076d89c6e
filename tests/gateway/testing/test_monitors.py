from __future__ import annotations

import asyncio
import socket
import time

import pytest

from gateway.testing.monitors import MAX_BLOCKED_S, ConnectionGuard, LoopMonitor, public_peers

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 101 1 0 20 4 30 10 -1
   2: 0F02000A:9C41 077100CB:01BB 02 00000000:00000000 00:00000000 00000000     0        0 102 1 0 20 4 30 10 -1
"""


def test_public_peers_are_read_from_the_kernels_tcp_table() -> None:
    assert list(public_peers(TABLE)) == [("102", "203.0.113.7:443")]


def test_ipv6_peers_are_read_and_mapped_addresses_count_as_ipv4() -> None:
    row = "   0: {local} {remote}:01BB 01 0:0 00:0 0 0 0 7 1"
    public = "B80D0120000000000000000001000000"  # 2001:db8::1
    mapped = "0000000000000000FFFF00000100000A"  # ::ffff:10.0.0.1
    local = "00000000000000000000000001000000:1F90"
    table = "\n".join(["head", row.format(local=local, remote=public), row.format(local=local, remote=mapped)])
    assert list(public_peers(table)) == [("7", "[2001:db8::1]:443")]


@pytest.mark.parametrize("address", [("203.0.113.7", 80), ("8.8.8.8", 53), ("169.254.169.254", 80)])
def test_connection_to_a_public_address_is_refused_before_it_is_made(address: tuple[str, int]) -> None:
    with (
        ConnectionGuard() as guard,
        socket.socket() as sock,
        pytest.raises(PermissionError, match="kit refused"),
    ):
        sock.connect(address)
    assert guard.refused == [f"{address[0]}:{address[1]}"]


def test_private_connections_are_allowed() -> None:
    with ConnectionGuard() as guard, socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert guard.refused == []


async def test_blocked_loop_is_reported_with_the_blocking_line() -> None:
    with LoopMonitor() as monitor:
        since = time.thread_time()  # as in `longest_s`, time without a processor does not count
        while (
            not monitor._blocking_line or time.thread_time() - since < 2 * MAX_BLOCKED_S
        ):  # busy-wait blocks the loop on purpose
            pass
    assert monitor.longest_s > MAX_BLOCKED_S
    assert "test_monitors.py:" in monitor.where


class Counted(LoopMonitor):
    def __init__(self) -> None:
        self.beats = asyncio.Semaphore(0)

    def _beat(self) -> None:
        super()._beat()
        self.beats.release()


async def test_waiting_loop_is_not_reported_as_blocked() -> None:
    stalls = []
    for _ in range(3):  # repeated, as other load on the machine may stall the loop
        with Counted() as found:
            for _ in range(10):
                await found.beats.acquire()
        stalls.append(found.longest_s)
    assert min(stalls) < MAX_BLOCKED_S
