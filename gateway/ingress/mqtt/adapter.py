"""The MQTT door: stays connected, has each message served once, and acknowledges it when its answer is safe.

    handed over ─▶ read ─▶ known? ── no ─▶ waits ─▶ served ─▶ answer with the broker ─▶ acknowledged
                    │        └ yes ─▶ joins the one that runs, or is answered from memory ─┘
                    └ no request: logged, acknowledged

The broker hands over RECEIVE_MAXIMUM messages and then waits until some were acknowledged: that is the back-pressure.
An answer that found the connection gone is published on the next one. What was not acknowledged when the
gateway stopped or died comes again; what it asked for may then have been done already (docs/mqtt.md).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gateway.ingress.handler import RequestHandler
from gateway.ingress.mqtt import presence
from gateway.ingress.mqtt.backoff import Backoff
from gateway.ingress.mqtt.connection import (
    RECEIVE_MAXIMUM,
    Broker,
    Connection,
    ConnectionLost,
    Delivery,
    PublishRefused,
)
from gateway.ingress.mqtt.deduplication import PendingRequest, RequestHistory, identity_of
from gateway.ingress.mqtt.properties import Message, Publication
from gateway.ingress.mqtt.request import body_of, headers_of
from gateway.ingress.mqtt.response import MqttResponseWriter
from gateway.ingress.mqtt.topics import Address, Rejected, Topics
from gateway.ingress.transport import IncomingRequest
from gateway.telemetry import RateLimitedEvent, log, log_bug, log_task_failure, raised

MAX_QOS_0 = 256  # no broker holds these back: where more are here, they are told to come again
MAX_HELD = 1024  # and where still more are, not even that
CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that was taken at `taken_at` (monotonic seconds), and is to be run."""

    message: Message
    address: Address
    identity: Hashable
    exchange: PendingRequest
    taken_at: float

    @property
    def is_expired(self) -> bool:
        left_s = self.message.expiry_s
        return left_s is not None and time.monotonic() - self.taken_at >= left_s


class MqttTransport:
    """Serves what comes by the broker. Start it, then stop it; both once.

    is_trusted: the broker knows who we are, or is on this host; answers then say where the time went.
    key_id: the API key whose rules apply.
    """

    def __init__(
        self,
        door: RequestHandler,
        broker: Broker,
        topics: Topics,
        *,
        telemetry_s: float,
        is_trusted: bool,
        key_id: str | None = None,
    ) -> None:
        self._door, self.broker, self.topics = door, broker, topics
        self._telemetry_s, self._is_trusted, self._key_id = telemetry_s, is_trusted, key_id
        self._rejected = RateLimitedEvent("mqtt.rejected")
        self._expired = RateLimitedEvent("mqtt.expired")
        self._disconnected = RateLimitedEvent("mqtt.disconnected", per_s=1 / 60)
        self.backoff = Backoff()
        self._memory = RequestHistory(time.monotonic)
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._waiting: deque[_Job] = deque()
        self._serving: set[asyncio.Task[None]] = set()
        self._is_taking = True
        self._stopping = asyncio.Event()
        self._staying: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and stay connected, in the background: a broker that is away keeps nobody from being served."""
        self._staying = log_task_failure(asyncio.create_task(self._stay_connected(), name="mqtt"))

    async def stop(self, within_s: float) -> None:
        """Take nothing more; answer what is being served, within so many seconds; leave. The session stays."""
        self._is_taking = False
        if self._serving:  # whether there is a connection just now, or another one is being made
            await asyncio.wait(self._serving, timeout=within_s)
        await _cancel(*self._serving)
        self._stopping.set()
        if self._staying is not None:
            await asyncio.wait({self._staying}, timeout=CLOSE_S)
            await _cancel(self._staying)

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    async def _stay_connected(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            connection = self._new_connection()
            was_open = await self._use_guarded(connection)
            if self._stopping.is_set():
                return
            pause_s = self.backoff.next(time.monotonic() - began if was_open else 0.0)
            self._disconnected.warning(broker=str(self.broker), why=connection.why, retry_s=round(pause_s, 3))
            await _first_of(self._stopping.wait(), timeout_s=pause_s)

    def _new_connection(self) -> Connection:
        most = 2 * self._door.limits.max_body_bytes + 65_536  # what is a little too large is answered, not just dropped
        will = presence.status(self.topics, is_online=False)
        return Connection(
            self.broker, self.topics.client_id, self._take, will=will, max_packet_bytes=min(most, 268_435_455)
        )

    async def _use_guarded(self, connection: Connection) -> bool:
        try:
            return await self._use(connection)
        except Exception as exc:  # a bug, ours or aiomqtt's; without another try nobody is served until a restart
            log_bug("the connection to the broker", exc)
            connection.why = connection.why or type(exc).__name__
            return False

    async def _use(self, connection: Connection) -> bool:
        """Serve by this connection until it is lost, or we stop. Whether it could be opened."""
        try:
            await connection.open()
        except ConnectionLost:
            return False
        self._connection = connection
        self._connected.set()
        try:
            await self._stay(connection)
        except (ConnectionLost, PublishRefused) as exc:
            connection.why = connection.why or str(exc)
        finally:
            self._connection = None
            self._connected.clear()
            await connection.close()
        return True

    async def _stay(self, connection: Connection) -> None:
        await connection.subscribe(self.topics.subscriptions)
        await connection.publish(presence.status(self.topics, is_online=True))
        log.info("mqtt.connected", broker=str(self.broker), resumed=connection.is_resumed)
        while not self._stopping.is_set():
            await self._tell(connection)
            await _first_of(connection.lost.wait(), self._stopping.wait(), timeout_s=self._telemetry_s)
            if connection.lost.is_set():
                return
        await connection.publish(presence.status(self.topics, is_online=False))

    async def _tell(self, connection: Connection) -> None:
        said = presence.telemetry(self.topics, self._door.dispatcher, is_ready=self._door.is_ready())
        with suppress(PublishRefused):
            await connection.publish(said)

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    def _take(self, delivery: Delivery) -> None:
        """One message, from the connection's callback; never raises."""
        message = delivery.message
        if not self._is_taking:
            return  # not acknowledged: the broker keeps it for the next start
        try:
            address = self.topics.read(message)
            if message.qos == 0 and self._held >= MAX_HELD:
                raise Rejected("too many at once")
        except Rejected as exc:
            self._rejected.warning(why=str(exc), topic=message.topic[:200])
            delivery.acknowledge()
            return
        identity = identity_of(message, address)
        known = self._memory.find(message, identity)
        if known is not None:
            self._repeat(known, delivery)
            return
        job = _Job(message, address, identity, self._memory.begin(identity), time.monotonic())
        job.exchange.join(delivery)
        self._waiting.append(job)
        self._start_more()

    @property
    def _held(self) -> int:
        return len(self._waiting) + len(self._serving)

    def _repeat(self, known: PendingRequest, delivery: Delivery) -> None:
        log.debug("mqtt.repeated", how="joined" if known.is_open else "remembered", topic=delivery.message.topic[:200])
        if known.is_open:
            known.join(delivery)
        else:
            self._spawn(self._remind(known, delivery))

    async def _remind(self, known: PendingRequest, delivery: Delivery) -> None:
        with suppress(PublishRefused):
            for publication in known.answer:
                await self._send(publication)
        delivery.acknowledge()

    def _start_more(self) -> None:
        """Serve what waits, so many at once; mosquitto 2.0.11 hands over more than it may when a session is resumed."""
        while self._waiting and self._is_taking and len(self._serving) < RECEIVE_MAXIMUM:
            self._spawn(self._answer(self._waiting.popleft()))

    def _spawn(self, serving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(serving)
        self._serving.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._start_more()

    async def _answer(self, job: _Job) -> None:
        """Have it answered, then acknowledge it. Cancelled: neither, and it comes again."""
        is_answered = False
        try:
            if job.is_expired:
                self._expired.warning(topic=job.message.topic[:200])
            else:
                is_answered = await self._serve(job)
        finally:
            self._memory.end(job.identity, job.exchange, is_answered=is_answered)
        job.exchange.acknowledge()

    async def _serve(self, job: _Job) -> bool:
        """Have it run and its answer published; whether a repeat can be answered from memory."""

        async def send(publication: Publication) -> None:
            try:
                await self._send(publication)
            except PublishRefused:
                job.exchange.refused(publication)
                raise
            job.exchange.keep(publication)

        reply = MqttResponseWriter(job.message, job.address, send)
        try:
            await self._door.serve(self._incoming(job), reply)
        except Exception as exc:  # a bug of ours; without the acknowledgement it would come again, and again
            log.error("mqtt.broke", **raised(exc), topic=job.message.topic[:200])
            return False
        finally:
            reply.close()
        job.exchange.invites_again = reply.invites_again
        return job.exchange.settle()

    def _incoming(self, job: _Job) -> IncomingRequest:
        is_too_many = job.message.qos == 0 and self._held > MAX_QOS_0

        async def read(limit: int) -> bytes:
            return body_of(job.message, limit, is_too_many=is_too_many)

        return IncomingRequest(
            door="mqtt",
            is_redelivered=True,
            takes_pieces=False,
            method="POST",
            target=job.address.target,
            headers=headers_of(job.message, time.monotonic() - job.taken_at),
            read=read,
            is_trusted=self._is_trusted,
            key_id=self._key_id,
            topic=job.message.topic,
        )

    async def _send(self, publication: Publication) -> None:
        """Publish on this connection, or the next, or the one after. Raises PublishRefused."""
        while True:
            connection = self._connection
            if connection is None or connection.lost.is_set():
                self._connected.clear()
                await self._connected.wait()
                continue
            with suppress(ConnectionLost):
                await connection.publish(publication)
                return


async def _first_of(*waiting: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
    """Wait for one of them, or so many seconds; the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
