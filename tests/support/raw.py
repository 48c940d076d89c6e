"""HTTP as bytes on a socket, for messages client libraries do not support."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """A received answer. `body` is everything after the head, framing included."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def post(path: str, body: bytes = b"", *lines: str, host: str = "localhost", length: int | None = None) -> bytes:
    """Return a POST of `body`; `lines` are further header lines, written unchanged."""
    size = len(body) if length is None else length
    head = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {size}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


async def answered(url: str, data: bytes) -> Answer:
    """Send `data` and read one answer.

    Content-Length or the end of the connection delimits it.
    """
    async with connected(url) as (reader, writer):
        writer.write(data)
        return await read_answer(reader)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    status, headers = await read_head(reader)
    length = headers.get("content-length")
    body = await reader.read() if length is None else await reader.readexactly(int(length))
    return Answer(status, headers, body)


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return all bytes up to the end of the connection, by FIN or reset."""
    pieces = []
    try:
        while piece := await reader.read(65536):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)
