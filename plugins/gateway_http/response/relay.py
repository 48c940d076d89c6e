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

from gateway.plugin import EventTooLarge, SseParser

from ..transport.exchange import Exchange
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
        while chunk := await reader.read():
            for start in range(0, len(chunk), SLICE_BYTES):
                if start:
                    await asyncio.sleep(0)
                for event in map(joiner.join, parser.feed(chunk[start : start + SLICE_BYTES])):
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
    for raw in _end_events(state, parser, exchange):
        yield raw


class _QuietReader:
    """Reads the body to its end, or until nothing has followed a complete response for QUIET_S.

    quiet_until: the end of that time, in the loop's seconds; each event sets it back to None.
    """

    def __init__(self, exchange: Exchange, state: StreamState) -> None:
        self._exchange = exchange
        self._state = state
        self.quiet_until: float | None = None

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


def _end_events(state: StreamState, parser: SseParser, exchange: Exchange) -> Iterator[bytes]:
    """Yield the events that are missing at the end.

    They are the last event if its blank line is missing, and what a complete response lacks, such as [DONE].
    """
    last = parser.finish() if exchange.ended_at is not None else None
    is_passed = last is not None and state.on_event(last)
    if exchange.has_proper_end:
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
