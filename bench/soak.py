"""Many requests, one in twenty of them faulty: whether memory and descriptors stay where they were.

    ./run bench soak [--requests N] [--json FILE]

A gateway with an `echo` backend in a process of its own; CLIENTS connections ask it, and in every twentieth request
one breaks JSON, framing or a connection, sends too much, asks for what is not there, or leaves. Resident memory and
open descriptors are read after the first fifth, and at the end. The target is 5 MiB of growth over 100,000 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLIENTS, FAULTS, LIMIT = 16, 0.05, 100_000
WARM_UP = 0.2  # of the requests
TARGET_MIB = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (100000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    with gateway() as (pid, port):
        figures = asyncio.run(soak(args.requests, pid, port))
    for name, value in figures.items():
        print(f"{name:24} {value:10.4g}")
    print(f"growth is {'within' if figures['growth_mib'] <= TARGET_MIB else 'OVER'} {TARGET_MIB:g} MiB")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


@contextmanager
def gateway() -> Iterator[tuple[int, int]]:
    """A process that serves, and its port."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{folder}/notify")
        notify.settimeout(30)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
            "NOTIFY_SOCKET": f"{folder}/notify",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
            "GATEWAY_STATE_DIR": f"{folder}/state",
            "GATEWAY_BACKENDS__E__PLUGIN": "echo",
            "GATEWAY_MAX_BODY_BYTES": str(LIMIT),
            "GATEWAY_LOG__LEVEL": "error",
        }
        command = [sys.executable, "-P", "-m", "gateway.cli", "serve"]
        process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def soak(requests: int, pid: int, port: int) -> dict[str, float]:
    began = time.monotonic()
    await ask_many(port, int(requests * WARM_UP))
    early_mib, early_fds = resident_mib(pid), descriptors(pid)
    await ask_many(port, requests - int(requests * WARM_UP))
    late_mib, late_fds = resident_mib(pid), descriptors(pid)
    return {
        "requests": float(requests),
        "per_s": requests / (time.monotonic() - began),
        "early_mib": early_mib,
        "late_mib": late_mib,
        "growth_mib": late_mib - early_mib,
        "early_descriptors": float(early_fds),
        "late_descriptors": float(late_fds),
    }


async def ask_many(port: int, count: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        connection = None
        for _ in left:
            if random.random() < FAULTS:
                await spoil(port)
                continue
            connection = await ask(port, connection)
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GOOD = b'POST /v1/tasks/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"a": 12}'


async def ask(port: int, connection: Connection | None) -> Connection:
    reader, writer = connection or await asyncio.open_connection("127.0.0.1", port)
    writer.write(GOOD)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return reader, writer


def post(path: bytes, body: bytes, *lines: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % (path, size)
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


SPOILT: tuple[Callable[[], bytes], ...] = (
    lambda: post(b"/v1/tasks/echo", b"{"),
    lambda: post(b"/v1/tasks/nobody", b"{}"),
    lambda: post(b"/v1/tasks/echo", b"", length=10 * LIMIT),
    lambda: post(b"/v1/tasks/echo", b"x" * (LIMIT + 1)),
    lambda: post(b"/v1/tasks/echo", b"{}", b"Transfer-Encoding: chunked"),
    lambda: post(b"/v1/tasks/echo", b"{}", b"Host: evil.example"),
    lambda: post(b"/v1/tasks/echo", b"1", length=500),
    lambda: b"nonsense\r\n\r\n",
    lambda: b"\x16\x03\x01\x02\x00\x01",
    lambda: b"POST /v1/tasks/echo HTTP/1.1\r\nHost: loc",
)


async def spoil(port: int) -> None:
    """One faulty request; half of them do not wait for the answer."""
    with suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(random.choice(SPOILT)())
        if random.random() < 0.5:
            async with asyncio.timeout(0.05):
                await reader.read(4096)
        writer.close()


def resident_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


if __name__ == "__main__":
    sys.exit(main())
