"""The start time of a gateway, and its memory when idle.

    ./run bench start [--runs N] [--json FILE]

It starts real `edge-gateway serve` processes, one after the other, and measures from outside: the time from exec to
systemd's READY and to the first 200 from /readyz, the processor time until then, and, SETTLE_S later, the resident and
the proportional set size of the gateway and of its workers. The figures are medians of N runs. A first run is not
counted: it compiles the modules, as an installation does.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from _serving import free_port, program

READY_TARGET_S, RSS_TARGET_MB = 0.6, 60.0  # for `echo`
POLL_S = 0.005
PATIENCE_S = 30.0
SETTLE_S = 1.0  # workers after the first may still be starting at READY
NOT_INHERITED = ("GATEWAY_", "PYTHONDONTWRITEBYTECODE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

SCENARIOS: Mapping[str, Mapping[str, str]] = {
    "echo": {"E__PLUGIN": "echo"},
    "local, 2 workers": {"E__PLUGIN": "local", "E__SLOTS": "2"},
    "http, unreachable": {"C__PLUGIN": "http", "C__URL": "http://127.0.0.1:9", "C__MODELS": "m"},
}


class Run(NamedTuple):
    """One start. Times in seconds since exec, sizes in MB (10^6 bytes).

    Worker sizes are summed.
    """

    ready_s: float
    readyz_s: float
    cpu_s: float
    rss_mb: float
    pss_mb: float
    workers: int
    workers_rss_mb: float
    workers_pss_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="starts per configuration (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    print(HEAD, flush=True)
    start(SCENARIOS["echo"])
    found = {}
    for name, backends in SCENARIOS.items():
        found[name] = median([start(backends) for _ in range(args.runs)])
        print(row(name, found[name]), flush=True)
    print(verdict(found["echo"]))
    if args.json:
        args.json.write_text(json.dumps({name: run._asdict() for name, run in found.items()}, indent=1) + "\n")
    return 0


def median(runs: Iterable[Run]) -> Run:
    return Run(*(statistics.median(values) for values in zip(*runs, strict=True)))


# ── one start ────────────────────────────────────────────────────────────────────────────────────


def start(backends: Mapping[str, str]) -> Run:
    """Start a gateway, measure it, stop it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{folder}/notify")
        with gateway(backends, Path(folder)) as (process, port, began):
            ready_s, readyz_s = await_ready(notify, port, began, process)
            cpu_s = cpu_time_s(process.pid)
            time.sleep(SETTLE_S)
            workers = children(process.pid)
            return Run(
                ready_s,
                readyz_s,
                cpu_s,
                rss_mb(process.pid),
                pss_mb(process.pid),
                len(workers),
                sum(map(rss_mb, workers)),
                sum(map(pss_mb, workers)),
            )


@contextmanager
def gateway(backends: Mapping[str, str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """Run a gateway process; yields it with its port and start time."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    environ = inherited | {
        "NOTIFY_SOCKET": f"{folder}/notify",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
        "GATEWAY_STATE_DIR": f"{folder}/state",
        **{f"GATEWAY_BACKENDS__{name}": value for name, value in backends.items()},
    }
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*program(), "serve"], env=environ, stderr=log)
    try:
        yield process, port, began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def await_ready(
    notify: socket.socket, port: int, began: float, process: subprocess.Popen[bytes]
) -> tuple[float, float]:
    """Return the seconds to READY, and to a 200 from /readyz."""
    ready_s = readyz_s = None
    while ready_s is None or readyz_s is None:
        if process.poll() is not None or time.monotonic() - began > PATIENCE_S:
            raise SystemExit("the gateway did not start; try `edge-gateway serve` with the same variables")
        if ready_s is None and select.select([notify], [], [], POLL_S)[0] and b"READY=1" in notify.recv(4096):
            ready_s = time.monotonic() - began
        if readyz_s is None and says_ready(port):
            readyz_s = time.monotonic() - began
    return ready_s, readyz_s


def says_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


# ── figures from /proc ───────────────────────────────────────────────────────────────────────────


def cpu_time_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def rss_mb(pid: int) -> float:
    return kilobytes(Path(f"/proc/{pid}/status"), "VmRSS") * 1024 / 1e6


def pss_mb(pid: int) -> float:
    return kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss") * 1024 / 1e6


def kilobytes(file: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{key}:"))


# ── the table ────────────────────────────────────────────────────────────────────────────────────

HEAD = f"{'backend':20} {'READY s':>8} {'readyz s':>9} {'cpu s':>6} {'RSS MB':>7} {'PSS MB':>7}  workers (RSS, PSS MB)"


def row(name: str, run: Run) -> str:
    workers = f"{run.workers:g} ({run.workers_rss_mb:.1f}, {run.workers_pss_mb:.1f})" if run.workers else "none"
    times = f"{run.ready_s:8.2f} {run.readyz_s:9.2f} {run.cpu_s:6.2f}"
    return f"{name:20} {times} {run.rss_mb:7.1f} {run.pss_mb:7.1f}  {workers}"


def verdict(echo: Run) -> str:
    def judged(value: float, target: float) -> str:
        return "within" if value <= target else "OVER"

    return (
        f"\necho: READY is {judged(echo.ready_s, READY_TARGET_S)} {READY_TARGET_S} s, "
        f"RSS is {judged(echo.rss_mb, RSS_TARGET_MB)} {RSS_TARGET_MB:g} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
