"""Relay a stream event by event, to its proper end and no further.

`stream_state` decides where a stream ends.
Some upstreams keep the connection open after a complete response. The client does not wait for these:

- After the event that is certainly the last, only the end of the body is read, for TAIL_S.
- After an event that may be the last, more is awaited until nothing but comments has come for QUIET_S: Gemini's servers
  send a `finish_reason` in every chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress

import aiohttp

from gateway.plugin import EventTooLarge, SseEvent, SseParser

from ..transport.exchange import Exchange
from .body import decompressor_for
from .json_scan import replace_not_finite
from .stream_state import StreamState
from .surrogates import SurrogateJoiner

SLICE_BYTES = 16384  # parsed in one go, so that a flood of tiny lines does not block the event loop
TAIL_S = 0.05  # for the end of the body: the connection can then be reused
QUIET_S = 10.0  # after a `finish_reason`, for more content, [DONE] or the usage event


async def relay(state: StreamState, exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Yield every event, framed, up to the proper end.

    Raises exceptions of aiohttp, BackendUnavailable, and UpstreamRejected.
    """
    parser, joiner = SseParser(state.validator.max_event_bytes), SurrogateJoiner()
    reader = _QuietReader(exchange, state)
    try:
        read = reader.read if reader.decompressor is None else reader.read_decompressed
        while chunk := await read():
            for start in range(0, len(chunk), SLICE_BYTES):
                if start:
                    await asyncio.sleep(0)
                for event in map(joiner.join, parser.feed(chunk[start : start + SLICE_BYTES])):
                    if b"NaN" in event.data or b"Infinity" in event.data:
                        event = _finite(event)
                    if state.on_event(event):
                        reader.quiet_until = None
                        if state.is_done:
                            for missing in state.closing_events():
                                yield missing
                        exchange.is_complete = state.is_over
                        yield event.raw
                    if state.is_over:
                        await _read_tail(exchange)
                        return
    except EventTooLarge as exc:
        raise state.validator.bad_response(f"sent {exc}") from exc
    for raw in _end_events(state, parser, reader):
        yield raw


def _finite(event: SseEvent) -> SseEvent:
    data = replace_not_finite(event.data)
    if data == event.data:
        return event
    name = b"event: " + event.name + b"\n" if event.name else b""
    lines = b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
    return SseEvent(name + lines + b"\n", data, event.name)


class _QuietReader:
    """Reads the body to its end, or until nothing has followed a complete response for QUIET_S.

    quiet_until: the end of that time, in the loop's seconds; each event sets it back to None.
    decompressor: None for a body without a coding.
    """

    def __init__(self, exchange: Exchange, state: StreamState) -> None:
        self._exchange = exchange
        self._state = state
        self.quiet_until: float | None = None
        self.decompressor = decompressor_for(exchange)

    @property
    def has_ended(self) -> bool:
        """Whether the body was read to its end."""
        return self._exchange.ended_at is not None

    @property
    def has_proper_end(self) -> bool:
        """Whether the body has ended as its framing and its coding declare."""
        return self._exchange.has_proper_end and (self.decompressor is None or self.decompressor.is_finished)

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end.

        Raises exceptions of aiohttp, also after a finish that content has followed before: it proves no end.
        """
        if not self._state.has_ended:
            return await self._exchange.read()
        if self.quiet_until is None:
            self.quiet_until = asyncio.get_running_loop().time() + QUIET_S
        try:
            async with asyncio.timeout_at(self.quiet_until) as quiet:
                return await self._exchange.read()
        except (aiohttp.ClientError, OSError):  # silent, or closed abruptly
            if quiet.expired() or not self._state.has_finished_early:
                return b""
            raise

    async def read_decompressed(self) -> bytes:
        """Return the next bytes, without their coding; empty at the end.

        Raises like `read`, and BackendUnavailable for corrupt data.
        """
        assert self.decompressor is not None
        while chunk := await self.read():
            if piece := b"".join(self.decompressor.feed(chunk)):
                return piece
        return b""


def _end_events(state: StreamState, parser: SseParser, reader: _QuietReader) -> Iterator[bytes]:
    """Yield the events that are missing at the end.

    They are the last event if its blank line is missing, and what a complete response lacks, such as [DONE].
    """
    last = parser.finish() if reader.has_ended else None
    last = None if last is None else _finite(last)
    is_passed = last is not None and state.on_event(last)
    if reader.has_proper_end:
        state.on_body_end()
    if last is not None and is_passed and not state.is_done:
        yield last.raw
    if not state.has_ended:
        raise state.validator.bad_response("ended its stream before the response was complete: the stream was cut")
    yield from state.closing_events()
    if state.lacks_done or state.is_done:
        yield b"data: [DONE]\n\n"


async def _read_tail(exchange: Exchange) -> None:
    """Read the rest of the body for at most TAIL_S.

    If it does not end by then, the exchange drops the connection.
    """
    with suppress(OSError, aiohttp.ClientError):
        async with asyncio.timeout(TAIL_S):
            while await exchange.read():
                pass
