"""Two monitors: one for a blocked event loop, one for connections that leave the site.

`LoopMonitor` schedules a beat every 5 ms. The delay of a beat, minus the time in which the thread was ready but had no
processor (schedstat in proc(5)), is how long the loop was blocked. Meanwhile a second thread records the blocking line.

`ConnectionGuard` receives each connection attempt as an audit event (PEP 578) before it is made, and refuses those to
public addresses. Libraries that connect in C code bypass audit events; their connections are found in /proc/net/tcp.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

BEAT_S = 0.005
MAX_BLOCKED_S = 0.020
_STDLIB = sysconfig.get_paths()["stdlib"]

# RFC 1918, RFC 4193, loopback and IPv6 link-local, as a backend of site `edge` may connect to.
_PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10",
    )
]  # fmt: skip


class LoopMonitor:
    """Measures how long the loop is blocked while it is entered.

    longest_s: the longest blocking, in seconds. where: the line of code that blocked.
    """

    def __enter__(self) -> Self:
        self.longest_s, self.where = 0.0, ""
        self._loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._blocking_line, self._is_over = "", threading.Event()
        self._had_gc = gc.isenabled()
        gc.disable()  # a garbage collection of the whole process would be blamed on the backend
        self._at, self._unscheduled = time.monotonic(), self._unscheduled_s()
        self._handle = self._loop.call_later(BEAT_S, self._beat)
        self._watcher = threading.Thread(target=self._watch, name="loop monitor")
        self._watcher.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.cancel()
        self._is_over.set()
        self._watcher.join()
        self._measure()
        if self._had_gc:
            gc.enable()

    def _beat(self) -> None:
        self._measure()
        self._handle = self._loop.call_later(BEAT_S, self._beat)

    def _measure(self) -> None:
        now, unscheduled = time.monotonic(), self._unscheduled_s()
        blocked_s = now - self._at - BEAT_S - (unscheduled - self._unscheduled)
        if blocked_s > self.longest_s:
            self.longest_s, self.where = blocked_s, self._blocking_line
        self._at, self._unscheduled, self._blocking_line = now, unscheduled, ""

    def _unscheduled_s(self) -> float:
        """Return the seconds for which this thread was ready but not running; 0 if the kernel does not count them."""
        with suppress(OSError, IndexError, ValueError):
            return int(self._schedstat.read_text().split()[1]) / 1e9
        return 0.0

    def _watch(self) -> None:
        while not self._is_over.wait(BEAT_S):
            if not self._blocking_line and time.monotonic() - self._at > MAX_BLOCKED_S:
                frame = sys._current_frames().get(self._thread_id)
                self._blocking_line = _place(frame)


def _place(frame: FrameType | None) -> str:
    """Return the innermost line that is not in the standard library."""
    while (
        frame is not None
        and frame.f_code.co_filename.startswith(_STDLIB)
        and "site-packages" not in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""


class ConnectionGuard:
    """Refuses connections to public addresses while it is entered. refused: the addresses that were tried."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="connection guard")

    def __enter__(self) -> Self:
        _install_audit_hook()
        _active_guards.append(self)
        self._watcher.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _active_guards.remove(self)
        self._is_over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._is_over.wait(MAX_BLOCKED_S):
            mine = _own_sockets()
            for table in ("tcp", "tcp6"):
                with suppress(OSError):
                    text = Path(f"/proc/self/net/{table}").read_text()
                    self.refused += [where for inode, where in public_peers(text) if inode in mine]

    def check(self, sock: socket.socket, address: Any) -> None:
        """Raise PermissionError for a public address."""
        if (
            sock.family not in (socket.AF_INET, socket.AF_INET6)
            or not isinstance(address, tuple)
            or _is_private(address[0])
        ):
            return
        where = f"{address[0]}:{address[1]}"
        self.refused.append(where)
        raise PermissionError(f"the conformance kit refused a connection to {where}, which is not on this site")


def public_peers(table: str) -> Iterator[tuple[str, str]]:
    """Yield the inode and the peer of every connection to a public address in /proc/net/tcp or tcp6."""
    for row in table.splitlines()[1:]:
        columns = row.split()
        packed, _, port = columns[2].partition(":")
        words = [bytes.fromhex(packed[at : at + 8]) for at in range(0, len(packed), 8)]
        if sys.byteorder == "little":
            words = [word[::-1] for word in words]
        address = str(ipaddress.ip_address(b"".join(words)))
        if not _is_private_address(address):
            yield columns[9], f"[{address}]:{int(port, 16)}" if ":" in address else f"{address}:{int(port, 16)}"


def _own_sockets() -> set[str]:
    """Return the inodes of this process's sockets."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            kind, _, inode = os.readlink(f"/proc/self/fd/{fd}").partition(":[")
            found.add(inode.rstrip("]") if kind == "socket" else "")
    return found


_active_guards: list[ConnectionGuard] = []
_is_hook_installed = False


def _install_audit_hook() -> None:
    """Install the audit hook on the first call; Python cannot remove an audit hook, so all guards share it."""
    global _is_hook_installed
    if not _is_hook_installed:
        _is_hook_installed = True
        sys.addaudithook(_on_audit_event)


def _on_audit_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _active_guards and event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        for guard in tuple(_active_guards):
            guard.check(arguments[0], arguments[1])


def _is_private(host: str) -> bool:
    with suppress(ValueError):
        return _is_private_address(host)
    with suppress(OSError):
        return all(_is_private_address(str(found[4][0])) for found in socket.getaddrinfo(host, None))
    return True  # the name does not resolve, so the connection fails


def _is_private_address(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_unspecified or any(
        address in network for network in _PRIVATE if network.version == address.version
    )
