"""Runs `edge-gateway serve` as a child process with its own environment, which ends with the demo.

Each child has its own process group: Ctrl-C on the terminal reaches only the demo, which then stops the children in
order and kills the remaining processes of each group. If the demo is killed, the kernel kills the children
(PR_SET_PDEATHSIG), and their workers end when their socket closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

READY_WITHIN_S = 20.0
STOPS_WITHIN_S = 5.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Equivalent to the console script, which may not be on the path in a checkout.
_SERVE = [sys.executable, "-P", "-c", "import sys; from gateway.cli import main; sys.exit(main())", "serve"]
# The demo may run inside a systemd service, even a gateway's; the children must not inherit that service's variables.
_NOT_INHERITED = ("GATEWAY_", "LISTEN_")
_NOT_INHERITED_NAMES = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"}
)


class ChildFailed(Exception):
    """A child did not start, or stopped by itself; the message contains the end of its log."""


class ChildGateway:
    """A running gateway. `env` is its whole configuration; its standard error is written to `log_path`."""

    def __init__(self, name: str, env: Mapping[str, str], *, port: int, admin_port: int, folder: Path) -> None:
        self.name = name
        self.port, self.admin_port = port, admin_port
        self.log_path = folder / f"{name}.log"
        self._env = {
            **_inheritable(os.environ),
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
            "GATEWAY_STATE_DIR": str(folder / f"{name}-state"),
            "GATEWAY_LOG__FORMAT": "json",
            **env,
        }

    async def __aenter__(self) -> Self:
        with self.log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_SERVE,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=die_with_parent(),
            )
        try:
            await self._ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stop()

    async def watch(self) -> None:
        """Never return; raise ChildFailed when the child stops by itself."""
        status = await self._process.wait()
        raise self._failure(f"stopped by itself with status {status}")

    def log_tail(self, lines: int = 15, width: int = 400) -> str:
        """The last lines of the log, each truncated to `width`."""
        text = self.log_path.read_text(errors="replace")
        return "\n".join(line[:width] for line in text.splitlines()[-lines:])

    async def _ready(self) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while not await _is_ready(f"http://127.0.0.1:{self.port}/readyz"):
                    if self._process.returncode is not None:
                        raise self._failure(f"ended with status {self._process.returncode} while it started")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self._failure(f"was not ready within {READY_WITHIN_S:g} s") from None

    def _failure(self, reason: str) -> ChildFailed:
        return ChildFailed(f"the {self.name} gateway {reason}; the end of {self.log_path}:\n{self.log_tail()}")

    async def _stop(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOPS_WITHIN_S):
                    await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


async def _is_ready(url: str) -> bool:
    try:
        async with aiohttp.request("GET", url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def _inheritable(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_NOT_INHERITED) and name not in _NOT_INHERITED_NAMES
    }


def die_with_parent() -> Callable[[], None]:
    """A `preexec_fn` that has the kernel kill the new process when this one ends, even if it has ended already."""
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()  # looked up before the fork

    def between_fork_and_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return between_fork_and_exec


# ── ports ────────────────────────────────────────────────────────────────────────────────────────


def choose_ports(preferred: int, count: int = 2) -> list[int]:
    """`preferred` and the ports after it if all are free, else any free ports."""
    if preferred and all(_is_free(preferred + n) for n in range(count)):
        return [preferred + n for n in range(count)]
    with contextlib.ExitStack() as held:  # all open at once, so that the ports differ
        return [held.enter_context(contextlib.closing(_listening(0))).getsockname()[1] for _ in range(count)]


def _is_free(port: int) -> bool:
    try:
        _listening(port).close()
    except OSError:
        return False
    return True


def _listening(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock
