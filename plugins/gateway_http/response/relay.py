"""A stream relayed event by event, to its proper end (`progress`) and no further.

Some upstreams keep the connection open behind a complete answer. Nobody waits for these: behind the event that is
certainly the last one only the connection's own end is looked for, and behind one that may be, [DONE] and the account
of usage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress

import aiohttp

from gateway.plugin import EventTooLarge, SseEvent, SseParser, Task

from ..transport.exceptions import bad_response
from ..transport.exchange import Exchange
from .stream_state import Progress
from .surrogates import SurrogateJoiner

MAX_EVENT_BYTES = 1 << 20
MAX_PICTURE_BYTES = 8 << 20  # an event that holds a picture
PICTURES_PATH = "/v1/images/"
SLICE_BYTES = 16384  # parsed in one go, so that a flood of tiny lines stalls nobody
TAIL_S = 0.05  # after the last event, for the end of the body: then the connection can be kept
LINGER_S = 1.0  # after an answer that is complete, for [DONE] or an account of usage


async def relay(task: Task, exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Every event, framed, up to the proper end. Raises what aiohttp raises, BackendUnavailable, and Refused."""
    is_pictures = task.path.startswith(PICTURES_PATH)
    parser, progress = SseParser(MAX_PICTURE_BYTES if is_pictures else MAX_EVENT_BYTES), Progress(task)
    source, halves = _Source(exchange, progress), SurrogateJoiner()
    while chunk := await source.read():
        for start in range(0, len(chunk), SLICE_BYTES):
            if start:
                await asyncio.sleep(0)
            for event in map(halves.joined, _events(parser, chunk[start : start + SLICE_BYTES])):
                if progress.note(event):
                    exchange.is_whole = progress.is_over
                    yield event.raw
                if progress.is_over:
                    await _read_tail(exchange)
                    return
    for raw in _ending(parser if exchange.ended_at is not None else None, progress):
        yield raw


class _Source:
    """What arrives, until nothing more does or need be waited for."""

    def __init__(self, exchange: Exchange, progress: Progress) -> None:
        self._exchange = exchange
        self._progress = progress
        self._until: float | None = None

    async def read(self) -> bytes:
        """Empty at the end."""
        try:
            async with asyncio.timeout_at(self._give_up_at()):
                return await self._exchange.read()
        except (aiohttp.ClientError, OSError):
            if not self._progress.has_ended:
                raise
            return b""  # it hung up without ceremony, or goes on saying nothing; the answer was complete

    def _give_up_at(self) -> float | None:
        if not self._progress.has_ended:
            self._until = None
        elif self._until is None:
            self._until = asyncio.get_running_loop().time() + LINGER_S
        return self._until


def _events(parser: SseParser, chunk: bytes) -> Iterator[SseEvent]:
    try:
        yield from parser.feed(chunk)
    except EventTooLarge as exc:
        raise bad_response(f"sent {exc}") from exc


def _ending(parser: SseParser | None, progress: Progress) -> Iterator[bytes]:
    """The last event, where its blank line is missing; [DONE], where the answer is complete without."""
    last = parser.finish() if parser is not None else None
    if last is not None and progress.note(last):
        yield last.raw
    if not progress.has_ended:
        raise bad_response("ended its stream before the answer was complete: the stream was cut")
    if progress.lacks_done:
        yield b"data: [DONE]\n\n"


async def _read_tail(exchange: Exchange) -> None:
    """Read what follows the last event, to the body's end; where that does not come the connection is dropped later."""
    with suppress(OSError, aiohttp.ClientError):
        async with asyncio.timeout(TAIL_S):
            while await exchange.read():
                pass
