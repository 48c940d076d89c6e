"""The systemd side of sd_notify(3): receives the notifications of a service."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

WAIT_S = 20.0


class NotifySocket:
    """A datagram socket at `path`, for `NOTIFY_SOCKET`.

    `received` holds every assignment so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[str] = []
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(WAIT_S)

    def wait_for(self, wanted: str) -> None:
        """Return when a message contains the assignment `wanted`. Raises TimeoutError."""
        while True:
            lines = self._socket.recv(4096).decode().split("\n")
            self.received += lines
            if wanted in lines:
                return

    def count_of(self, wanted: str) -> int:
        """Return how often the assignment `wanted` was received so far, without waiting."""
        self._socket.setblocking(False)
        try:
            while True:
                self.received += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            self._socket.settimeout(WAIT_S)
        return self.received.count(wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)
