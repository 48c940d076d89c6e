"""Writes responses as messages: one for a whole response, numbered parts for a stream.

The parts of a stream, joined in the order of `seq`, are the body that HTTP would send. Data that arrives while a part
is on its way to the broker is collected into the next part: on a fast network each event is a part, on a slow one the
stream does not wait for round trips. Only the last part has `final`; with `aborted` the stream is incomplete. If parts
are impossible (MQTT 3.1.1 has no properties for their numbers), a stream is one message at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from gateway.api.errors import envelope, status_of
from gateway.ingress.mqtt.connection import PublishRefused
from gateway.ingress.mqtt.messages import Message, Pairs, Publication, clean_pairs
from gateway.ingress.mqtt.request import Address
from gateway.plugin import GatewayError
from gateway.telemetry import log

MAX_AHEAD_BYTES = 64 * 1024  # of a stream, not yet accepted by the broker (backpressure)
MAX_COLLECTED_BYTES = 32 * 1024 * 1024
MIN_REPLACED_BYTES = 1024  # a refused response up to this size is not replaced by an error, which is about as large

# Headers with a meaning in HTTP only; the content type is an MQTT property of its own.
_HTTP_ONLY = frozenset({"content-type", "cache-control", "x-accel-buffering", "www-authenticate"})

_RETRYABLE = (408, 429, 502, 503, 504)


class _Error(msgspec.Struct):
    retryable: bool = False


class _Envelope(msgspec.Struct):
    error: _Error


Publish = Callable[[Publication], Awaitable[None]]


class MqttResponseWriter:
    """Implements `transport.ResponseWriter` for one message. Close it at the end.

    publish: returns when the broker has the publication.
    invites_retry: the response was an error that may pass, or an incomplete stream.
    """

    def __init__(self, message: Message, address: Address, publish: Publish) -> None:
        self._message, self._address, self._publish_message = message, address, publish
        self._content_type = ""
        self._head: Pairs = ()
        self._buffer = bytearray()
        self._end_marks: Pairs = ()
        self.invites_retry = False
        self._publisher: asyncio.Task[None] | None = None
        self._has_data = asyncio.Event()
        self._has_space = asyncio.Event()

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole response; if the broker refuses it, an error instead. Raises PublishRefused in both cases."""
        self.invites_retry = status in _RETRYABLE or (status >= 500 and _is_retryable(body))
        try:
            await self._publish(body, headers.get("Content-Type", ""), _pairs(status, headers))
        except PublishRefused as exc:
            log.warning("mqtt.answer_refused", why=str(exc), bytes=len(body))
            if len(body) > MIN_REPLACED_BYTES:
                await self._publish_refusal(exc, headers)
            raise

    async def _publish_refusal(self, refused: PublishRefused, headers: Mapping[str, str]) -> None:
        error = GatewayError(f"the broker refuses the response: {refused}", code="upstream_bad_response")
        body = msgspec.json.encode(envelope(error, headers.get("x-request-id", "")))
        await self._publish(body, "application/json", _pairs(status_of(error), headers))

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin a stream; its head is sent with the first part."""
        self._head, self._content_type = _pairs(status, headers), headers.get("Content-Type", "")
        if self._address.takes_parts and self._address.response_topic is not None:
            self._publisher = asyncio.create_task(self._publish_parts())

    async def write(self, data: bytes) -> None:
        """Add to the stream. Waits while the broker is MAX_AHEAD_BYTES behind (backpressure)."""
        self._buffer += data
        if self._publisher is None:
            self._check_collected()
            return
        self._has_data.set()
        if len(self._buffer) > MAX_AHEAD_BYTES or self._publisher.done():
            self._has_space.clear()
            await self._wait_while_publishing(self._has_space.wait())

    async def end(self) -> None:
        """End the stream; return when the broker has all of it."""
        await self._finish((("final", "true"),))

    async def abort(self, data: bytes) -> None:
        """End an incomplete stream with `data`, marked `aborted`."""
        self.invites_retry = True
        if self._publisher is None:
            self._buffer.clear()
        self._buffer += data
        await self._finish((("final", "true"), ("aborted", "true")))

    def close(self) -> None:
        """Stop publishing."""
        if self._publisher is not None and not self._publisher.cancel() and not self._publisher.cancelled():
            self._publisher.exception()  # retrieved, so that asyncio does not log it: `write` has raised it

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    async def _finish(self, marks: Pairs) -> None:
        if self._publisher is None:
            await self._publish(bytes(self._buffer), self._content_type, self._head)
        else:
            self._end_marks = marks
            self._has_data.set()
            await self._publisher

    async def _publish_parts(self) -> None:
        seq, end_marks = 0, Pairs()
        while not end_marks:
            await self._has_data.wait()
            self._has_data.clear()
            data, end_marks = bytes(self._buffer), self._end_marks
            self._buffer.clear()
            self._has_space.set()
            head = () if seq else self._head
            await self._publish(data, self._content_type, (*head, ("seq", str(seq)), *end_marks))
            seq += 1

    async def _wait_while_publishing(self, waiting: Awaitable[bool]) -> None:
        """Wait, at most as long as parts are published. Raises the publisher's exception."""
        assert self._publisher is not None
        waited = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({waited, self._publisher}, return_when=asyncio.FIRST_COMPLETED)
            if self._publisher.done():
                self._publisher.result()
        finally:
            waited.cancel()

    def _check_collected(self) -> None:
        if self._address.response_topic is None:
            self._buffer.clear()
        elif len(self._buffer) > MAX_COLLECTED_BYTES:
            problem = f"the stream is longer than the {MAX_COLLECTED_BYTES} bytes that fit into one message"
            advice = "use MQTT 5 and a req topic, where a stream is sent in parts"
            raise GatewayError(f"{problem}; {advice}", code="bad_request")

    async def _publish(self, payload: bytes, content_type: str, user: Pairs) -> None:
        if self._address.response_topic is not None:
            publication = Publication(
                topic=self._address.response_topic,
                payload=payload,
                qos=self._message.qos,
                correlation=self._message.correlation,
                content_type=content_type or None,
                user=user,
            )
            await self._publish_message(publication)


def _is_retryable(body: bytes) -> bool:
    """Whether the body is an error of ours with `retryable`."""
    try:
        return msgspec.json.decode(body, type=_Envelope).error.retryable
    except msgspec.DecodeError:
        return False


def _pairs(status: int, headers: Mapping[str, str]) -> Pairs:
    more = ((name, value) for name, value in headers.items() if name.lower() not in _HTTP_ONLY)
    return clean_pairs((("status", str(status)), *more))
