"""A fake network service for tests of backends that call an upstream.

    async with FakeNetwork() as network:
        network.answer("/v1/read", json={"text": "hello"})
        ...                                     # a backend that calls network.url
        network.requests[-1].json               # the last request
        with network.failing("error"):          # one of FAULTS
            ...

Its sockets are real, on loopback. A path without a configured response is answered 404.
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

# Faults of the network and the service, as they appear in messages of the conformance kit.
FAULTS: Mapping[str, str] = {
    "refused": "connections are refused",
    "cut": "the connection is closed before a response",
    "reset": "the connection is reset in the middle of a response",
    "nonsense": "the response is not HTTP",
    "error": "the response is 500 with a plain text body",
    "shapeless": "the response is 200 with an unexpected body",
    "silence": "no response is sent",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One received request; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded JSON body. Raises ValueError."""
        return stdlib_json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The response for a path. events: the data of server-sent events. after_s: seconds to wait before each."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[str] | None = None
    after_s: float = 0.0


class FakeNetwork:
    """A service on loopback, used as an async context manager. requests: the requests received so far."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._responses: dict[str, Response] = {}
        self._fault: str | None = None
        self._server: asyncio.Server | None = None
        self._port = 0
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

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
        """Set the response for `path`: `json`, the bytes in `body`, or a stream of `events`.

        after_s: seconds to wait before the response, or before each event.
        """
        self._responses[path] = Response(
            body=stdlib_json.dumps(json).encode() if body is None else body,
            status=status,
            content_type=content_type,
            headers=headers or {},
            events=events,
            after_s=after_s,
        )

    @contextlib.contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        """Fail in the manner of `fault`, one of FAULTS; open connections are closed before and after.

        Raises ValueError for an unknown fault.
        """
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
        """Close every connection and wait until all are closed."""
        handlers = list(self._connections)
        self._drop()
        await asyncio.gather(*handlers, return_exceptions=True)

    # ── the service ──────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._port))
        self._port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._on_connection, sock=sock)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _drop(self) -> None:
        for handler, writer in self._connections.items():
            _reset(writer)
            handler.cancel()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._connections[handler] = writer
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # closed by the client or by the test
        finally:
            del self._connections[handler]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "refused":
            return _reset(writer)
        while not writer.is_closing():
            request = await _read(reader)
            if self._fault is not None:
                return await _fail(self._fault, reader, writer)
            self.requests.append(request)
            await _send(self._responses.get(request.path.partition("?")[0], Response(status=404, body=b"null")), writer)


async def _read(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _send(response: Response, writer: asyncio.StreamWriter) -> None:
    if response.events is None:
        await asyncio.sleep(response.after_s)
        writer.write(_head(response, [f"Content-Length: {len(response.body)}"]) + response.body)
    else:
        writer.write(_head(response, ["Content-Type: text/event-stream", "Connection: close"]))
        for event in response.events:
            await asyncio.sleep(response.after_s)
            writer.write(f"data: {event}\n\n".encode())
            await writer.drain()
        writer.close()
    await writer.drain()


def _head(response: Response, more: Sequence[str]) -> bytes:
    kind = [] if response.events is not None else [f"Content-Type: {response.content_type}"]
    lines = [f"HTTP/1.1 {response.status} Fake", *kind, *more, *(f"{n}: {v}" for n, v in response.headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _fail(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if fault == "reset":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        _reset(writer)
    elif fault == "silence":
        await reader.read()
    elif fault in _FAULT_RESPONSES:
        status, content_type, body = _FAULT_RESPONSES[fault]
        await _send(Response(status=status, content_type=content_type, body=body), writer)
    elif fault == "nonsense":
        writer.write(b"\x00\xff not HTTP\r\n\r\n")
        await writer.drain()


_FAULT_RESPONSES = {
    "error": (500, "text/plain", b"Internal Server Error"),
    "shapeless": (200, "application/json", b'["an", "unexpected", "body"'),
}


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as for a port without a listener."""
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
