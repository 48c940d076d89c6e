"""Notifications to systemd, and the sockets it passes. Outside systemd, every function does nothing.

Protocol: sd_notify(3), sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
import time

_FIRST_FD = 3


def notify(*lines: str) -> bool:
    """Send assignments such as `READY=1` to the service manager; False if it could not be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto("\n".join(lines).encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        return False
    return True


def notify_reloading() -> bool:
    """Announce a reload, with the clock reading that systemd 253 and later require."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


_watchdog_fed_at = float("-inf")


def feed_watchdog() -> bool:
    """Notify the watchdog that the loop runs. Call it from the loop, at any rate; False if no notification was due."""
    global _watchdog_fed_at
    every_s = _watchdog_s() / 3
    now = time.monotonic()
    if not every_s or now - _watchdog_fed_at < every_s:
        return False
    _watchdog_fed_at = now
    return notify("WATCHDOG=1")


def _watchdog_s() -> float:
    usec = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(usec) / 1e6 if usec.isdigit() and is_ours else 0.0


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that systemd passed to this process, non-blocking; an empty list without activation."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    passed = []
    for fd in range(_FIRST_FD, _FIRST_FD + count):
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        passed.append(listener)
    return passed
