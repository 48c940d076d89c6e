"""The MQTT transport: serves each message once, and acknowledges it when the broker has the response.

    message ─▶ parse ─▶ repeat? ── no ─▶ queue ─▶ serve ─▶ publish the response ─▶ acknowledge
                │         └ yes ─▶ joins the open request, or gets the kept response ─┘
                └ not a request: log, acknowledge

The broker delivers RECEIVE_MAXIMUM messages and then waits for acknowledgements (backpressure). After a lost
connection, a response is published on the next connection. A message that was not acknowledged when the gateway stopped
or died is delivered again; the work may then have been done already (docs/mqtt.md).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.ingress.handler import RequestHandler
from gateway.ingress.mqtt.connection import RECEIVE_MAXIMUM, Broker, Delivery, PublishRefused
from gateway.ingress.mqtt.deduplication import Event, PendingRequest, RequestHistory, identity_of
from gateway.ingress.mqtt.messages import Message, Publication
from gateway.ingress.mqtt.request import Address, Rejected, Topics, body_of, check_properties, headers_of
from gateway.ingress.mqtt.response_writer import MqttResponseWriter
from gateway.ingress.mqtt.session import BrokerSession, cancel_and_wait
from gateway.ingress.transport import IncomingRequest
from gateway.telemetry import RateLimitedEvent, exception_fields, log

MAX_QOS_0 = 256  # brokers do not hold back QoS 0 messages: above this number of open requests they get an error
MAX_OPEN = 1024  # above this number they are dropped


@dataclass(frozen=True, slots=True)
class _QueuedRequest:
    """A request to run. received_at: monotonic seconds."""

    message: Message
    address: Address
    identity: Hashable
    pending: PendingRequest
    received_at: float

    @property
    def is_expired(self) -> bool:
        expiry_s = self.message.expiry_s
        return expiry_s is not None and time.monotonic() - self.received_at >= expiry_s


class MqttTransport:
    """Serves requests from a broker. Start it once, then stop it once.

    is_trusted: the broker has authenticated the gateway, or is on this host; responses then contain `Server-Timing`.
    key_id: the API key that sets the limits.
    """

    def __init__(
        self,
        handler: RequestHandler,
        broker: Broker,
        topics: Topics,
        *,
        telemetry_s: float,
        is_trusted: bool,
        key_id: str | None = None,
    ) -> None:
        self._handler, self._is_trusted, self._key_id = handler, is_trusted, key_id
        self.session = BrokerSession(handler, broker, topics, self._on_message, telemetry_s=telemetry_s)
        self._rejected = RateLimitedEvent("mqtt.rejected")
        self._expired = RateLimitedEvent("mqtt.expired")
        self._history = RequestHistory(time.monotonic)
        self._queue: deque[_QueuedRequest] = deque()
        self._serving: set[asyncio.Task[None]] = set()
        self._is_accepting = True

    def start(self) -> None:
        """Connect in the background, and serve."""
        self.session.start()

    async def stop(self, within_s: float) -> None:
        """Accept no more messages; wait for the requests in progress, at most so many seconds; disconnect."""
        self._is_accepting = False
        if self._serving:  # with or without a connection: their responses wait for the next one
            await asyncio.wait(self._serving, timeout=within_s)
        await cancel_and_wait(*self._serving)
        await self.session.stop()

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    def _on_message(self, delivery: Delivery) -> None:
        message = delivery.message
        if not self._is_accepting:
            return  # not acknowledged: the broker keeps it for the next start
        try:
            address = self.session.topics.parse(message)
            if message.qos == 0 and self._open_count >= MAX_OPEN:
                raise Rejected("too many at once")
        except Rejected as exc:
            self._rejected.warning(why=str(exc), topic=message.topic[:200])
            delivery.acknowledge()
            return
        identity = identity_of(message, address)
        known = self._history.find(message, identity)
        if known is not None:
            self._on_repeat(known, delivery)
            return
        queued = _QueuedRequest(message, address, identity, self._history.begin(identity), time.monotonic())
        queued.pending.join(delivery)
        self._queue.append(queued)
        self._start_queued()

    @property
    def _open_count(self) -> int:
        return len(self._queue) + len(self._serving)

    def _on_repeat(self, known: PendingRequest, delivery: Delivery) -> None:
        log.debug("mqtt.repeated", how="joined" if known.is_open else "remembered", topic=delivery.message.topic[:200])
        if known.is_open:
            known.join(delivery)
        else:
            self._spawn(self._publish_again(known, delivery))

    async def _publish_again(self, known: PendingRequest, delivery: Delivery) -> None:
        with suppress(PublishRefused):
            for publication in known.response:
                await self.session.publish(publication)
        delivery.acknowledge()

    def _start_queued(self) -> None:
        """Start queued requests, at most RECEIVE_MAXIMUM at once.

        mosquitto 2.0.11 delivers more than that when it resumes a session.
        """
        while self._queue and self._is_accepting and len(self._serving) < RECEIVE_MAXIMUM:
            self._spawn(self._answer(self._queue.popleft()))

    def _spawn(self, serving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(serving)
        self._serving.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._start_queued()

    async def _answer(self, queued: _QueuedRequest) -> None:
        """Serve a request, then acknowledge it. If cancelled, it is not acknowledged, and delivered again."""
        pending = queued.pending
        event: Event = "interrupt"
        try:
            if queued.is_expired:
                self._expired.warning(topic=queued.message.topic[:200])
                event = "expire"
            else:
                pending.on("start")
                event = await self._serve(queued)
        finally:
            self._history.finish(queued.identity, pending, event)
        pending.acknowledge()

    async def _serve(self, queued: _QueuedRequest) -> Event:
        """Serve a request and publish its response; return the event that ends it."""

        async def publish(publication: Publication) -> None:
            try:
                await self.session.publish(publication)
            except PublishRefused:
                queued.pending.on_refused(publication)
                raise
            queued.pending.on_published(publication)

        writer = MqttResponseWriter(queued.message, queued.address, publish)
        try:
            await self._handler.serve(self._incoming(queued), writer)
        except Exception as exc:  # a bug of ours; without the acknowledgement it would repeat forever
            log.error("mqtt.broke", **exception_fields(exc), topic=queued.message.topic[:200])
            return "fail"
        finally:
            writer.close()
        return queued.pending.outcome(invites_retry=writer.invites_retry)

    def _incoming(self, queued: _QueuedRequest) -> IncomingRequest:
        is_too_many = queued.message.qos == 0 and self._open_count > MAX_QOS_0

        async def read(limit: int) -> bytes:
            return body_of(queued.message, limit, is_too_many=is_too_many)

        return IncomingRequest(
            door="mqtt",
            method="POST",
            target=queued.address.target,
            headers=headers_of(queued.message, time.monotonic() - queued.received_at),
            read=read,
            is_trusted=self._is_trusted,
            check=partial(check_properties, queued.message),
            key_id=self._key_id,
            topic=queued.message.topic,
            is_redelivered=True,
            takes_pieces=False,
        )
