"""Shared parts of the benchmarks: a gateway process and its resource usage."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S, STOP_S = 30.0, 60.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A running gateway. `log` is the file with its standard error."""

    pid: int
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resident_mib(self) -> float:
        """Resident memory (VmRSS) of the gateway without its workers."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    def descriptors(self) -> int:
        """The number of open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_s(self) -> float:
        """The processor seconds used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def gateway(settings: Mapping[str, str], *wrapped: str) -> Iterator[Serving]:
    """Run `edge-gateway serve`; `settings` by their last name.

    `wrapped`: a prefix command such as taskset.

    Yields after READY. Raises RuntimeError if the gateway does not start.
    """
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        folder = Path(name)
        notify.bind(f"{folder}/notify")
        notify.settimeout(START_S)
        port = free_port()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
            "NOTIFY_SOCKET": f"{folder}/notify",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_ADMIN_LISTEN": f"unix:{folder}/admin.sock",
            "GATEWAY_STATE_DIR": f"{folder}/state",
            **{f"GATEWAY_{name}": value for name, value in settings.items()},
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*wrapped, *program(), "serve"], env=environ, stderr=log)
        try:
            _await_ready(notify, folder / "log")
            yield Serving(process.pid, port, folder / "log")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)


def _await_ready(notify: socket.socket, log: Path) -> None:
    try:
        while b"READY=1" not in notify.recv(4096):
            pass
    except TimeoutError:
        raise RuntimeError(f"the gateway did not start; its log ends with:\n{log.read_text()[-2000:]}") from None


def program() -> Sequence[str]:
    """Return the console script installed with this Python, or a call of its module."""
    script = Path(sys.executable).parent / "edge-gateway"
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "gateway.cli"]


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the given percentile of the values."""
    return sorted(values)[int(percent / 100 * (len(values) - 1))]
