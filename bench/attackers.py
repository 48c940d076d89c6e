"""Slowloris: the effect of 200 slow clients, and the time until they are closed.

    ./run bench attackers [--attackers N] [--json FILE]

A third of them sends a request head at one byte per second, a third sends a body so, and a third requests a large
answer and reads none of it. An ordinary client in its own process sends `echo` requests before and during the attack;
the figure is the ratio of its p99 latencies. An attacker is gone when its connection has ended, by FIN or reset. The
targets are a ratio of 1.5, and 25 s after the attacker's first byte.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from _serving import Serving, gateway, percentile

P99_TARGET, GONE_TARGET_S = 1.5, 25.0
LARGE = 1_000_000  # bytes of an unread answer: more than the kernel buffers hold
PAUSE_S = 0.005  # between two requests of the ordinary client, so that it adds little load
PATIENCE_S = 60.0
ASK = b'POST /v1/tasks/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"a": 12}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attackers", type=int, default=200, help="number of attackers (200)")
    parser.add_argument("--seconds", type=float, default=25.0, help="duration of each phase (25)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--ordinary", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ordinary:
        print(json.dumps(asyncio.run(ordinary(args.ordinary, args.seconds))))
        return 0
    with gateway({"BACKENDS__E__PLUGIN": "echo", "LOG__LEVEL": "error"}) as serving:
        found = asyncio.run(measured(serving, args.attackers, args.seconds))
    for name, value in found.items():
        print(f"{name:28} {value:10.4g}")
    print(f"targets: p99 at most {P99_TARGET} times, gone within {GONE_TARGET_S:g} s")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


async def measured(serving: Serving, attackers: int, seconds: float) -> dict[str, float]:
    await another_process(serving.port, 2.0)
    before = await another_process(serving.port, seconds)
    memory = serving.resident_mib()
    attacks = [asyncio.create_task(attacked(serving.port, n)) for n in range(attackers)]
    during = await another_process(serving.port, seconds)
    peak = serving.resident_mib()
    gone = await asyncio.gather(*attacks)
    kinds = {each.__name__: [took for n, took in enumerate(gone) if kind_of(n) is each] for each in KINDS}
    return {
        "undisturbed_p50_ms": percentile(before, 50) * 1000,
        "undisturbed_p99_ms": percentile(before, 99) * 1000,
        "disturbed_p50_ms": percentile(during, 50) * 1000,
        "disturbed_p99_ms": percentile(during, 99) * 1000,
        "p99_ratio": percentile(during, 99) / percentile(before, 99),
        "memory_added_mib": peak - memory,
        **{f"{name}_gone_s": max(took) for name, took in kinds.items() if took},
    }


async def another_process(port: int, seconds: float) -> list[float]:
    """Run `ordinary` in its own process, so that this one does not disturb it."""
    command = (sys.executable, __file__, "--ordinary", str(port), "--seconds", str(seconds))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return list(json.loads(out))


async def ordinary(port: int, seconds: float) -> list[float]:
    """Send requests on one connection; returns the seconds of each answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    until, took = time.monotonic() + seconds, []
    while time.monotonic() < until:
        began = time.perf_counter()
        writer.write(ASK)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        took.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_S)
    writer.close()
    return took


# ── attackers ────────────────────────────────────────────────────────────────────────────────────


def slow_head() -> Iterator[bytes]:
    """Send a head without end."""
    yield b"POST /v1/tasks/echo HTTP/1.1\r\nHost: localhost\r\nX-Drip: "
    while True:
        yield b"a"


def slow_body() -> Iterator[bytes]:
    """Send a body that takes a day."""
    yield b"POST /v1/tasks/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    while True:
        yield b" "


def no_reader() -> Iterator[bytes]:
    """Request a large answer and read none of it."""
    yield b"POST /v1/tasks/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % LARGE
    yield b'"' + b"x" * (LARGE - 2) + b'"'
    while True:
        yield b""


KINDS: tuple[Callable[[], Iterator[bytes]], ...] = (slow_head, slow_body, no_reader)


def kind_of(number: int) -> Callable[[], Iterator[bytes]]:
    return KINDS[number % len(KINDS)]


async def attacked(port: int, number: int) -> float:
    """Attack until the connection has ended. Returns the seconds since its first byte."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        began = time.monotonic()
        for piece in kind_of(number)():
            if is_gone(sock) or time.monotonic() - began > PATIENCE_S:
                break
            try:
                await loop.sock_sendall(sock, piece)
            except ConnectionError:
                break
            await asyncio.sleep(0 if len(piece) > 1 else 1)
    return time.monotonic() - began


def is_gone(sock: socket.socket) -> bool:
    """Whether the other side has closed or reset the connection."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
