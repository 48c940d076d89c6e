"""A scriptable HTTP upstream on a raw socket, for any kind of faulty answer.

    async with Upstream(answer(json={"ok": True})) as upstream:
        upstream.url                    # http://127.0.0.1:PORT
        upstream.requests[-1].headers   # the last request: method, path, headers (lower-cased), body
        upstream.script = reset()       # applies from the next request
        upstream.connections            # number of accepted connections

A script is `async def script(talk: Talk) -> None`; it answers one request (`talk.request`) by `talk.send(bytes)`,
and may `talk.cut()` (FIN), `talk.reset()` (RST) or wait for `talk.gone()` (the client disconnected). A connection
serves several requests, unless the script ends it. Ready-made scripts are below; `by_path` and `in_turn` combine them.
"""

from __future__ import annotations

import asyncio
import gzip
import json as stdlib_json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

Script = Callable[["Talk"], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return stdlib_json.loads(self.body)


@dataclass
class Talk:
    """One request, with methods to answer it."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send data. Raises ConnectionError if the client has disconnected."""
        self.writer.write(data)
        await self.writer.drain()

    def cut(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        while await self.reader.read(65536):
            pass


class Upstream:
    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._name = name
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._name}:{self.port}"

    @property
    def posted(self) -> list[Request]:
        """The requests without the gateway's own probes and lists."""
        return [request for request in self.requests if request.method == "POST"]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            while not writer.is_closing() and (request := await read_request(reader)) is not None:
                self.requests.append(request)
                await self.script(Talk(request, reader, writer))
        except (ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            self._talks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request, or None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


# --- framing ----------------------------------------------------------------------------------------------------------


def head(status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CHUNKED = ("Transfer-Encoding", "chunked")
JSON = ("Content-Type", "application/json")
EVENTS = ("Content-Type", "text/event-stream")


def whole(
    body: bytes = b"",
    *,
    status: int = 200,
    content_type: str | None = "application/json",
    headers: Iterable[tuple[str, str]] = (),
    length: int | None = None,
) -> bytes:
    """Return a whole answer; `length` sets a wrong Content-Length."""
    fields = [*headers, ("Content-Length", str(len(body) if length is None else length))]
    if content_type is not None:
        fields.append(("Content-Type", content_type))
    return head(status, fields) + body


# --- scripts ----------------------------------------------------------------------------------------------------------


def answer(body: bytes = b"", *, json: Any = None, **options: Any) -> Script:
    """Send a whole answer: `json` or `body`.

    Options: `status`, `content_type`, `headers`, and `length` for a wrong Content-Length.
    """
    return sends(whole(stdlib_json.dumps(json).encode() if json is not None else body, **options))


def sends(*pieces: bytes) -> Script:
    """Send exactly these bytes, one write each."""

    async def script(talk: Talk) -> None:
        for piece in pieces:
            await talk.send(piece)

    return script


def sends_and_cuts(*pieces: bytes) -> Script:
    """Send these bytes, then close the connection."""

    async def script(talk: Talk) -> None:
        await sends(*pieces)(talk)
        talk.cut()

    return script


def cut() -> Script:
    """Close the connection without an answer."""
    return sends_and_cuts()


def reset(*pieces: bytes) -> Script:
    """Send these bytes, if any, then a RST."""

    async def script(talk: Talk) -> None:
        await sends(*pieces)(talk)
        talk.reset()

    return script


def stall(*pieces: bytes, gone: asyncio.Event | None = None) -> Script:
    """Send these bytes, then stall until the client disconnects; then set `gone`."""

    async def script(talk: Talk) -> None:
        await sends(*pieces)(talk)
        try:
            await talk.gone()
        except ConnectionError:
            pass
        finally:
            if gone is not None:
                gone.set()
            talk.cut()

    return script


def endless(start: bytes, piece: bytes) -> Script:
    """Send `start`, then `piece` without end."""

    async def script(talk: Talk) -> None:
        await talk.send(start)
        while True:
            await talk.send(piece)

    return script


def sse(*data: Any, done: bool = True, end: bytes = LAST_CHUNK) -> Script:
    """Send an event for each of `data`, then [DONE] and the end of the body.

    Strings are sent unchanged.
    """
    return sends(sse_bytes(*data, done=done) + end)


def sse_bytes(*data: Any, done: bool = True) -> bytes:
    """Return the head of a stream and an event for each of `data`."""
    texts = [item if isinstance(item, str) else stdlib_json.dumps(item) for item in data]
    events = [f"data: {text}\n\n".encode() for text in (*texts, *(["[DONE]"] if done else []))]
    return head(200, [EVENTS, CHUNKED]) + b"".join(chunk(event) for event in events)


def gzip_bomb(size: int) -> Script:
    """Send `size` zeros as gzip, about 1000 times smaller."""
    return answer(gzip.compress(bytes(size), 9), headers=[("Content-Encoding", "gzip")])


def by_path(scripts: Mapping[str, Script], otherwise: Script | None = None) -> Script:
    """Select a script by path; `otherwise`, or 404, for any other path."""
    missing = otherwise or answer(json={"error": {"message": "no such path"}}, status=404)

    async def script(talk: Talk) -> None:
        await scripts.get(talk.request.path, missing)(talk)

    return script


def in_turn(*scripts: Script) -> Script:
    """Run one script per request, in order; the last one repeats."""
    left = list(scripts)

    async def script(talk: Talk) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(talk)

    return script
