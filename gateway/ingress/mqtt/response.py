"""The door's answers as messages: one for a whole answer, numbered parts for a stream.

A stream's parts, put together by `seq`, are the body HTTP would have carried. What comes while a part is on its
way to the broker goes into the next: on a fast network each event is a part, on a slow one nobody waits for
round trips. Only the last part has `final`; one that also has `aborted` ends a stream that could not be completed.
Where no parts may come (MQTT 3.1.1 has no properties to number them by) a stream is one message, at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from gateway.api.errors import envelope, status_of
from gateway.ingress.mqtt.connection import PublishRefused
from gateway.ingress.mqtt.properties import Message, Pairs, Publication, clean_pairs
from gateway.ingress.mqtt.topics import Address
from gateway.plugin import GatewayError
from gateway.telemetry import log

ROOM_BYTES = 64 * 1024  # what a stream may be ahead of the broker
MAX_COLLECTED_BYTES = 32 * 1024 * 1024
TOLD_BYTES = 1024  # an answer no larger than this is not replaced by an error about its size

# Of HTTP alone; what they say about the body is a property of its own, or means nothing to a broker.
_OF_HTTP = frozenset({"content-type", "cache-control", "x-accel-buffering", "www-authenticate"})

_COME_AGAIN = (408, 429, 502, 503, 504)


class _Said(msgspec.Struct):
    retryable: bool = False


class _Envelope(msgspec.Struct):
    error: _Said


Send = Callable[[Publication], Awaitable[None]]


class MqttResponseWriter:
    """`door.Reply` for one message. `send` returns when the broker has the publication. Close it at the end."""

    def __init__(self, message: Message, address: Address, send: Send) -> None:
        self._message, self._address, self._send = message, address, send
        self._content_type = ""
        self._head: Pairs = ()
        self._buffer = bytearray()
        self._last: Pairs = ()
        self.invites_again = False  # what was said is `come again`, or the half of something
        self._pump: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """A complete answer; an error instead where the broker will not have it."""
        self.invites_again = status in _COME_AGAIN or (status >= 500 and _is_retryable(body))
        try:
            await self._publish(body, headers.get("Content-Type", ""), _pairs(status, headers))
        except PublishRefused as exc:
            log.warning("mqtt.answer_refused", why=str(exc), bytes=len(body))
            if len(body) > TOLD_BYTES:
                await self._say_why(exc, headers)
            raise

    async def _say_why(self, refused: PublishRefused, headers: Mapping[str, str]) -> None:
        error = GatewayError(f"the broker refuses the answer: {refused}", code="upstream_bad_response")
        body = msgspec.json.encode(envelope(error, headers.get("x-request-id", "")))
        await self._publish(body, "application/json", _pairs(status_of(error), headers))

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of a stream; it goes out with the first part."""
        self._head, self._content_type = _pairs(status, headers), headers.get("Content-Type", "")
        if self._address.in_parts and self._address.answer_to is not None:
            self._pump = asyncio.create_task(self._publish_parts())

    async def write(self, data: bytes) -> None:
        """More of a stream; waits while the broker takes none."""
        self._buffer += data
        if self._pump is None:
            self._check_collected()
            return
        self._news.set()
        if len(self._buffer) > ROOM_BYTES or self._pump.done():
            self._room.clear()
            await self._or_failed(self._room.wait())

    async def end(self) -> None:
        """A stream's proper end; returns when the broker has all of it."""
        await self._finish((("final", "true"),))

    async def abort(self, data: bytes) -> None:
        """The end of a stream that cannot be completed: `data`, marked so that nobody takes it for complete."""
        self.invites_again = True
        if self._pump is None:
            self._buffer.clear()
        self._buffer += data
        await self._finish((("final", "true"), ("aborted", "true")))

    def close(self) -> None:
        """Nothing more is sent."""
        if self._pump is not None and not self._pump.cancel() and not self._pump.cancelled():
            self._pump.exception()  # somebody has been told, or is gone

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    async def _finish(self, last: Pairs) -> None:
        if self._pump is None:
            await self._publish(bytes(self._buffer), self._content_type, self._head)
        else:
            self._last = last
            self._news.set()
            await self._pump

    async def _publish_parts(self) -> None:
        seq, last = 0, Pairs()
        while not last:
            await self._news.wait()
            self._news.clear()
            data, last = bytes(self._buffer), self._last
            self._buffer.clear()
            self._room.set()
            head = () if seq else self._head
            await self._publish(data, self._content_type, (*head, ("seq", str(seq)), *last))
            seq += 1

    async def _or_failed(self, waiting: Awaitable[bool]) -> None:
        """Wait for it, but not longer than parts are still sent."""
        assert self._pump is not None
        waited = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({waited, self._pump}, return_when=asyncio.FIRST_COMPLETED)
            if self._pump.done():
                self._pump.result()
        finally:
            waited.cancel()

    def _check_collected(self) -> None:
        if self._address.answer_to is None:
            self._buffer.clear()
        elif len(self._buffer) > MAX_COLLECTED_BYTES:
            problem = f"the stream is longer than the {MAX_COLLECTED_BYTES} bytes that fit into one message"
            raise GatewayError(f"{problem}; ask by MQTT 5 on a req topic, where it comes in parts", code="bad_request")

    async def _publish(self, payload: bytes, content_type: str, user: Pairs) -> None:
        if self._address.answer_to is not None:
            it = Publication(
                topic=self._address.answer_to,
                payload=payload,
                qos=self._message.qos,
                correlation=self._message.correlation,
                content_type=content_type or None,
                user=user,
            )
            await self._send(it)


def _is_retryable(body: bytes) -> bool:
    """Whether it is an error in our envelope that says so."""
    try:
        return msgspec.json.decode(body, type=_Envelope).error.retryable
    except msgspec.DecodeError:
        return False


def _pairs(status: int, headers: Mapping[str, str]) -> Pairs:
    said = ((name, value) for name, value in headers.items() if name.lower() not in _OF_HTTP)
    return clean_pairs((("status", str(status)), *said))
