"""Leak test: many requests, one in twenty faulty.

It measures the growth of memory and descriptors.

    ./run bench soak [--requests N] [--json FILE]

A gateway with an `echo` backend runs in its own process, and CLIENTS connections send requests. Every twentieth
request has invalid JSON or framing, breaks its connection, is too large, names an unknown task or model, or is
abandoned. Resident memory and open descriptors are read after the first fifth, and at the end. The target is at most
5 MiB of growth over 100,000 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from _serving import Serving, gateway

CLIENTS, FAULTS, LIMIT = 16, 0.05, 100_000
WARM_UP = 0.2  # of the requests
TARGET_MIB = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="number of requests (100000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    settings = {"BACKENDS__E__PLUGIN": "echo", "MAX_BODY_BYTES": str(LIMIT), "LOG__LEVEL": "error"}
    with gateway(settings) as serving:
        figures = asyncio.run(soak(args.requests, serving))
    for name, value in figures.items():
        print(f"{name:24} {value:10.4g}")
    print(f"growth is {'within' if figures['growth_mib'] <= TARGET_MIB else 'OVER'} {TARGET_MIB:g} MiB")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


async def soak(requests: int, serving: Serving) -> dict[str, float]:
    began = time.monotonic()
    await ask_many(serving.port, int(requests * WARM_UP))
    early_mib, early_fds = serving.resident_mib(), serving.descriptors()
    await ask_many(serving.port, requests - int(requests * WARM_UP))
    late_mib, late_fds = serving.resident_mib(), serving.descriptors()
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
    """Send one faulty request; half of them do not wait for the answer."""
    with suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(random.choice(SPOILT)())
        if random.random() < 0.5:
            async with asyncio.timeout(0.05):
                await reader.read(4096)
        writer.close()


if __name__ == "__main__":
    sys.exit(main())
