"""Read the body of a whole response: bounded, decompressed.

Reading stops at the first byte that makes the body invalid.
The body is held once, and only as long as it can still be valid.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from io import BytesIO

from gateway.plugin import BackendUnavailable

from ..transport.exceptions import bad_response
from ..transport.exchange import Exchange
from .json_scan import JsonScanner

STEP_BYTES = 32 << 10  # processed without a break for the event loop
GZIP = 0x1F


class NotJson(Exception):
    """The body is not JSON, or not of the expected type."""


async def read_body(exchange: Exchange, max_bytes: int, scanner: JsonScanner | None = None) -> bytes:
    """Return the whole body, decompressed.

    Raises NotJson if the scanner rejects it, BackendUnavailable, and exceptions of aiohttp.
    """
    with BytesIO() as buffer:  # returns its bytes without a copy; an exception does not keep them alive
        async with aclosing(read_pieces(exchange, max_bytes)) as pieces:
            async for piece in pieces:
                if scanner is not None and not scanner.feed(piece):
                    raise NotJson
                buffer.write(piece)
        if scanner is not None and not scanner.is_complete:
            raise NotJson
        return buffer.getvalue()


async def read_pieces(exchange: Exchange, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body piece by piece as it arrives, decompressed.

    Raises BackendUnavailable, and exceptions of aiohttp.
    `max_bytes` bounds the declared length, the bytes received and the bytes decompressed (decompression bombs).
    Without a declared length it also bounds the framing of the chunks.
    """
    declared = exchange.response.content_length
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)
    decompressor, size = decompressor_for(exchange), 0
    while chunk := await exchange.read():
        framed = exchange.response.upstream_connection.received_bytes if declared is None else 0
        if max(exchange.received_bytes, framed) > max_bytes:
            raise _too_large(max_bytes)
        for piece in decompressor.feed(chunk) if decompressor else _slices(chunk):
            size += len(piece)
            if size > max_bytes:
                raise _too_large(max_bytes)
            yield piece
            if len(chunk) > STEP_BYTES or len(piece) == STEP_BYTES:
                await asyncio.sleep(0)
    if decompressor and exchange.received_bytes:
        decompressor.finish()


def _too_large(max_bytes: int) -> BackendUnavailable:
    return bad_response(f"returned a response of more than {max_bytes} bytes")


def _slices(chunk: bytes) -> Iterator[bytes]:
    if len(chunk) <= STEP_BYTES:
        yield chunk
        return
    for start in range(0, len(chunk), STEP_BYTES):
        yield chunk[start : start + STEP_BYTES]


def decompressor_for(exchange: Exchange) -> Decompressor | None:
    """Return a decompressor if the body is compressed.

    Some upstreams compress in spite of `Accept-Encoding: identity`.
    """
    coding = exchange.response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise bad_response(
            f"returned Content-Encoding {coding[:20]} in spite of Accept-Encoding: identity; turn its compression off"
        )
    return Decompressor()


class Decompressor:
    """Decompresses gzip, zlib or raw deflate, in small steps.

    gzip may have any number of members (RFC 1952 §2.2).
    """

    def __init__(self) -> None:
        self._inner = zlib.decompressobj()
        self._first: int | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decompressed pieces of the chunk.

        Raises BackendUnavailable if the chunk is corrupt.
        """
        try:
            yield from self._decompress(chunk)
        except zlib.error as exc:
            raise _corrupt() from exc

    @property
    def is_finished(self) -> bool:
        """Whether the data so far is whole."""
        return self._inner.eof

    def finish(self) -> None:
        """Raise BackendUnavailable if the data is truncated."""
        if not self._inner.eof:
            raise bad_response("returned a compressed response that is cut short")

    def _decompress(self, rest: bytes) -> Iterator[bytes]:
        if self._first is None and rest:
            self._first = rest[0]
            self._inner = self._new_member()
        piece = b""
        while rest or (len(piece) == STEP_BYTES and not self._inner.eof):
            if self._inner.eof and not (rest := self._next_member(rest)):
                return
            yield (piece := self._inner.decompress(rest, STEP_BYTES))
            rest = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail

    def _new_member(self) -> zlib._Decompress:
        assert self._first is not None
        is_raw = self._first != GZIP and (self._first & 0x0F) != zlib.DEFLATED
        return zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)

    def _next_member(self, rest: bytes) -> bytes:
        """Return the rest if another member begins there.

        Zeros may follow the last member, as gzip(1) allows.
        """
        if rest[0] == GZIP == self._first:
            self._inner = self._new_member()
            return rest
        if rest.strip(b"\0"):
            raise _corrupt()
        return b""


def _corrupt() -> BackendUnavailable:
    return bad_response("returned a compressed response that is corrupt")
