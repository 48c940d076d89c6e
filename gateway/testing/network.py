"""A network with one service on it that does as it is told, for backends that ask somebody else.

    async with FakeNetwork() as network:
        network.answer("/v1/read", json={"text": "hello"})
        ...                                     # a backend whose URL is network.url
        network.requests[-1].json               # what it was asked
        with network.failing("error"):          # one of FAULTS
            ...

Its sockets are real ones, on loopback. A request that nothing was said about is answered 404.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as stdlib_json
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

# What can go wrong between a backend and whom it asks.
FAULTS: Mapping[str, str] = {
    "refused": "connections are refused",
    "cut": "the connection ends instead of an answer",
    "reset": "the connection is reset in the middle of an answer",
    "nonsense": "the answer is not HTTP",
    "error": "the answer is 500 with a page of text",
    "shapeless": "the answer is 200 and not what was agreed",
    "silence": "nothing is answered, ever",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived; header names are lower-cased."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body decoded. Raises ValueError."""
        return stdlib_json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a path is answered with. events: sent as server-sent events, each after `after_s` seconds."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[str] | None = None
    after_s: float = 0.0


class FakeNetwork:
    """See the module. `url` is where the service is; `requests`, what it was asked so far."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._replies: dict[str, Reply] = {}
        self._fault: str | None = None
        self._server: asyncio.Server | None = None
        self._port = 0
        self._talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.disconnect()
        self._close()

    @property
    def url(self) -> str:
        """The service's base URL."""
        return f"http://127.0.0.1:{self._port}"

    def answer(
        self,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        events: Sequence[str] | None = None,
        after_s: float = 0.0,
    ) -> None:
        """Answer `path` so from now on: with `json`, with a `body`, or as a stream of `events`."""
        self._replies[path] = Reply(
            body=stdlib_json.dumps(json).encode() if body is None else body,
            status=status,
            content_type=content_type,
            headers=headers or {},
            events=events,
            after_s=after_s,
        )

    @contextlib.contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        """Fail so for a while; `fault` is one of FAULTS. Connections that are open are closed before and after."""
        if fault not in FAULTS:
            raise ValueError(f"no fault is called {fault!r}; there are: {', '.join(FAULTS)}")
        self._fault = fault
        self._drop()
        try:
            yield
        finally:
            self._fault = None
            self._drop()

    async def disconnect(self) -> None:
        """Close every connection, and wait until they are."""
        talks = list(self._talks)
        self._drop()
        await asyncio.gather(*talks, return_exceptions=True)

    # ── the service ──────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._port))
        self._port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._accepted, sock=sock)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _drop(self) -> None:
        for talk, writer in self._talks.items():
            _reset(writer)
            talk.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks[talk] = writer
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other end, or the test, has ended it
        finally:
            del self._talks[talk]
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "refused":
            return _reset(writer)
        while not writer.is_closing():
            request = await _read(reader)
            if self._fault is not None:
                return await _fail(self._fault, reader, writer)
            self.requests.append(request)
            await _send(self._replies.get(request.path.partition("?")[0], Reply(status=404, body=b"null")), writer)


async def _read(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _send(reply: Reply, writer: asyncio.StreamWriter) -> None:
    if reply.events is None:
        await asyncio.sleep(reply.after_s)
        writer.write(_head(reply, [f"Content-Length: {len(reply.body)}"]) + reply.body)
    else:
        writer.write(_head(reply, ["Content-Type: text/event-stream", "Connection: close"]))
        for event in reply.events:
            await asyncio.sleep(reply.after_s)
            writer.write(f"data: {event}\n\n".encode())
            await writer.drain()
        writer.close()
    await writer.drain()


def _head(reply: Reply, more: Sequence[str]) -> bytes:
    kind = [] if reply.events is not None else [f"Content-Type: {reply.content_type}"]
    lines = [f"HTTP/1.1 {reply.status} Told", *kind, *more, *(f"{n}: {v}" for n, v in reply.headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _fail(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if fault == "reset":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        _reset(writer)
    elif fault == "silence":
        await reader.read()
    elif fault in _ANSWERS:
        status, content_type, body = _ANSWERS[fault]
        await _send(Reply(status=status, content_type=content_type, body=body), writer)
    elif fault == "nonsense":
        writer.write(b"\x00\xff what is it?\r\n\r\n")
        await writer.drain()


_ANSWERS = {
    "error": (500, "text/plain", b"Internal Server Error"),
    "shapeless": (200, "application/json", b'["not", "what", "was", "agreed"'),
}


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a service that is not there does."""
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
