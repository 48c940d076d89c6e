"""The body of a whole answer: how much of it is read, unpacked, and given up at the first byte that makes it none.

It is kept once, and only as far as it may still be an answer.
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

STEP_BYTES = 32 << 10  # looked at in one go
GZIP = 0x1F


class NotJson(Exception):
    """The body is none, or none that may begin so."""


async def read(exchange: Exchange, cap: int, walk: JsonScanner | None = None) -> bytes:
    """All of it, unpacked. Raises NotJson where `walk` says so, BackendUnavailable, and what aiohttp raises."""
    with BytesIO() as held:  # gives its bytes away without a copy; a failure, which may be kept, does not keep them
        async with aclosing(pieces(exchange, cap)) as found:
            async for piece in found:
                if walk is not None and not walk.feed(piece):
                    raise NotJson
                held.write(piece)
        if walk is not None and not walk.is_over:
            raise NotJson
        return held.getvalue()


async def pieces(exchange: Exchange, cap: int) -> AsyncGenerator[bytes, None]:
    """The same piece by piece, as it arrives."""
    declared = exchange.response.content_length
    if declared is not None and declared > cap:
        raise too_large(cap)
    inflater, size = _inflater(exchange), 0
    while chunk := await exchange.read():
        if max(exchange.received, exchange.response.wire.received if declared is None else 0) > cap:
            raise too_large(cap)
        for piece in inflater.feed(chunk) if inflater else _pieces(chunk):
            size += len(piece)
            if size > cap:
                raise too_large(cap)
            yield piece
            if len(chunk) > STEP_BYTES or len(piece) == STEP_BYTES:
                await asyncio.sleep(0)
    if inflater and exchange.received:
        inflater.finish()


def too_large(cap: int) -> BackendUnavailable:
    """The answer goes over its cap."""
    return bad_response(f"answers with more than {cap} bytes")


def _pieces(chunk: bytes) -> Iterator[bytes]:
    if len(chunk) <= STEP_BYTES:
        yield chunk
        return
    for start in range(0, len(chunk), STEP_BYTES):
        yield chunk[start : start + STEP_BYTES]


def _inflater(exchange: Exchange) -> Inflater | None:
    """What unpacks the body, where an upstream packed it though it was asked not to."""
    coding = exchange.response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise bad_response(f"compresses its answer ({coding[:20]}), though it was asked not to")
    return Inflater()


class Inflater:
    """Unpacks gzip, of however many members (RFC 1952 §2.2), zlib or raw deflate, in small steps."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj()
        self._first: int | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the chunk unpacks to, piece by piece. Raises BackendUnavailable where it is corrupt."""
        try:
            yield from self._unpacked(chunk)
        except zlib.error as exc:
            raise _corrupt() from exc

    def finish(self) -> None:
        """Raises BackendUnavailable where more should have come."""
        if not self._inner.eof:
            raise bad_response("sent a compressed answer that is cut")

    def _unpacked(self, rest: bytes) -> Iterator[bytes]:
        if self._first is None and rest:
            self._first = rest[0]
            self._inner = self._member()
        piece = b""
        while rest or (len(piece) == STEP_BYTES and not self._inner.eof):
            if self._inner.eof and not (rest := self._next_member(rest)):
                return
            yield (piece := self._inner.decompress(rest, STEP_BYTES))
            rest = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail

    def _member(self) -> zlib._Decompress:
        assert self._first is not None
        is_raw = self._first != GZIP and (self._first & 0x0F) != zlib.DEFLATED
        return zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)

    def _next_member(self, rest: bytes) -> bytes:
        """The rest, where it is another member's; zeros may follow the last one, as gzip(1) allows."""
        if rest[0] == GZIP == self._first:
            self._inner = self._member()
            return rest
        if rest.strip(b"\0"):
            raise _corrupt()
        return b""


def _corrupt() -> BackendUnavailable:
    return bad_response("sent a compressed answer that is corrupt")
