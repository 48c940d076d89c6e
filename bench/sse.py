"""The latency a relay adds to stream events: this gateway, aiohttp, nginx.

    ./run bench sse [--seconds S] [--events-per-s N] [--json FILE]

An upstream sends N events per second on each of 1 and of 32 streams, at staggered times. Each event carries the time
it was sent; a client records the time of arrival. Upstream, relay and client are separate processes on one machine,
so they share the monotonic clock. The added latency is the median of a relay minus the median without a relay. The
rounds of all relays alternate; the medians cover all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from _serving import free_port, gateway

TARGET_MS = 0.3  # added at the median, 32 streams
STREAMS = (1, 32)
ROUNDS = 3
PATIENCE_S = 30.0
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = ('data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
         '{"content":"%d"},"logprobs":null,"finish_reason":null}]}\n\n')  # fmt: skip
ENDING = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each round (4)")
    parser.add_argument("--events-per-s", type=float, default=25.0, help="events per second on each stream (25)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        asyncio.run(ROLES[args.role[0]](*args.role[1:]))
        return 0
    found = measured(args.seconds, args.events_per_s)
    print(*table(found), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measured(seconds: float, events_per_s: float) -> dict[str, dict[str, dict[str, float]]]:
    """Return the milliseconds per event, by relay and number of streams."""
    latencies: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        upstream = stack.enter_context(role("upstream", str(seconds), str(events_per_s)))
        ways = {"no relay": upstream}
        ways["plain aiohttp"] = stack.enter_context(role("relay", str(upstream)))
        if (nginx := shutil.which("nginx", path=SEARCHED)) is not None:
            ways["nginx"] = stack.enter_context(nginx_relay(nginx, upstream))
        cloud = {"PLUGIN": "http", "URL": f"http://127.0.0.1:{upstream}", "MODELS": "m", "SLOTS": "64"}
        settings = {f"BACKENDS__CLOUD__{name}": value for name, value in cloud.items()}
        ways["gateway"] = stack.enter_context(gateway(settings | {"LOG__LEVEL": "error"})).port
        for _ in range(ROUNDS):
            for streams in STREAMS:
                for way, port in ways.items():
                    latencies.setdefault((way, streams), []).extend(asyncio.run(listen(port, streams)))
    return {
        way: {str(streams): summary(latencies[way, streams], latencies["no relay", streams]) for streams in STREAMS}
        for way in ways
    }


def summary(ours: list[float], direct: list[float]) -> dict[str, float]:
    p50, p99 = statistics.median(ours), statistics.quantiles(ours, n=100)[98]
    return {"p50_ms": p50, "p99_ms": p99, "added_p50_ms": p50 - statistics.median(direct), "events": len(ours)}


def table(found: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield f"{'':16}{'streams':>8}{'p50 ms':>9}{'p99 ms':>9}{'added p50 ms':>14}{'events':>8}"
    for way, by_streams in found.items():
        for streams, row in by_streams.items():
            figures = f"{row['p50_ms']:9.3f}{row['p99_ms']:9.3f}{row['added_p50_ms']:14.3f}{row['events']:8.0f}"
            yield f"{way:16}{streams:>8}{figures}"
    if "nginx" not in found:
        yield "nginx is not installed: skipped"
    added = found["gateway"]["32"]["added_p50_ms"]
    yield f"target: at most {TARGET_MS} ms added at 32 streams; {'met' if added <= TARGET_MS else 'missed'}"


# ── the client ───────────────────────────────────────────────────────────────────────────────────


async def listen(port: int, streams: int) -> list[float]:
    """Return the milliseconds of each event, over a number of concurrent streams."""
    return [each for heard in await asyncio.gather(*[one_stream(port) for _ in range(streams)]) for each in heard]


async def one_stream(port: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    heard = []
    while b"[DONE]" not in (line := await reader.readline()):
        if not line:
            raise ConnectionError("the stream was cut")
        _, found, rest = line.partition(b'"content":"')
        if found:
            heard.append((time.monotonic_ns() - int(rest[: rest.index(b'"')])) / 1e6)
    writer.close()
    return heard[1:]  # the first event waits for the connections


# ── the upstream and the relays ──────────────────────────────────────────────────────────────────


async def upstream(seconds: str, events_per_s: str) -> None:
    """Print the port, then send events to every client."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            lines = head.decode().lower().split("\r\n")
            await reader.readexactly(next(int(line[15:]) for line in lines if line.startswith("content-length:")))
            writer.write(HEAD)
            due = time.monotonic() + random.random() / float(events_per_s)
            for _ in range(int(float(seconds) * float(events_per_s))):
                await asyncio.sleep(due - time.monotonic())
                due += 1 / float(events_per_s)
                writer.write(chunked((CHUNK % time.monotonic_ns()).encode()))
            writer.write(chunked(ENDING) + b"0\r\n\r\n")

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def plain_relay(port: str) -> None:
    """A minimal aiohttp relay: forwards bytes unread."""
    import aiohttp
    from aiohttp import web

    async def relay(request: web.Request) -> web.StreamResponse:
        url = f"http://127.0.0.1:{port}{request.path}"
        async with session.post(url, data=await request.read()) as got:
            response = web.StreamResponse(headers={"Content-Type": got.headers["Content-Type"]})
            await response.prepare(request)
            async for piece in got.content.iter_any():
                await response.write(piece)
            await response.write_eof()
        return response

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    app = web.Application()
    app.router.add_post("/{path:.*}", relay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


ROLES = {"upstream": upstream, "relay": plain_relay}


@contextmanager
def role(*words: str) -> Iterator[int]:
    """Run this file as another process; yields its port."""
    process = subprocess.Popen([sys.executable, __file__, "--role", *words], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx_relay(nginx: str, upstream_port: int) -> Iterator[int]:
    """Run nginx in front of the upstream; yields its port when it accepts connections."""
    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        process = subprocess.Popen([nginx, "-p", home, "-c", str(nginx_config(Path(home), port, upstream_port))])
        try:
            until = time.monotonic() + PATIENCE_S
            while not accepts(port):
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError(f"nginx does not listen on {port}")
            yield port
        finally:
            process.terminate()
            process.wait()


def accepts(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    time.sleep(0.05)
    return False


def nginx_config(home: Path, port: int, upstream_port: int) -> Path:
    file = home / "nginx.conf"
    file.write_text(f"""
daemon off; pid {home}/pid; error_log stderr crit; worker_processes 1;
events {{}}
http {{
  access_log off; client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
  uwsgi_temp_path {home}; scgi_temp_path {home};
  upstream there {{ server 127.0.0.1:{upstream_port}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://there; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}""")
    return file


if __name__ == "__main__":
    sys.exit(main())
