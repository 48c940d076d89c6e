"""The MQTT door: stays connected, has each message served once, and acknowledges it when its answer is safe.

    handed over ─▶ read ─▶ known? ── no ─▶ served ─▶ answer with the broker ─▶ acknowledged
                    │        └ yes ─▶ joins the one that runs, or is answered from memory ─┘
                    └ no request: logged, acknowledged

The broker hands over RECEIVE_MAXIMUM messages and then waits: that, and not a queue of ours, is the back-pressure.
An answer that found the connection gone is published on the next one. What was not acknowledged when the
gateway stopped or died comes again; what it asked for may then have been done already (docs/mqtt.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from gateway.ingress.door import Door, Incoming
from gateway.ingress.mqtt import presence
from gateway.ingress.mqtt.backoff import Backoff
from gateway.ingress.mqtt.connection import Broker, Connection, ConnectionLost, Delivery, PublishRefused
from gateway.ingress.mqtt.memory import Exchange, Memory, identity_of
from gateway.ingress.mqtt.reply import MqttReply
from gateway.ingress.mqtt.requests import body_of, headers_of
from gateway.ingress.mqtt.topics import Address, Rejected, Topics
from gateway.ingress.mqtt.values import Message, Publication
from gateway.telemetry import Limited, log

MOST_QOS_0 = 256  # of those no broker holds back: so many are served at once, the others told to come again
MOST_HELD = 1024  # and so many held at all
CLOSE_S = 5.0

_rejected = Limited("mqtt.rejected", per_s=1.0, burst=10)
_expired = Limited("mqtt.expired", per_s=1.0, burst=10)
_disconnected = Limited("mqtt.disconnected", per_s=1 / 60, burst=10)


class MqttDoor:
    """Serves what comes by the broker. Start it, then stop it; both once.

    is_trusted: the broker knows who we are, or is on this host; answers then say where the time went.
    key_id: the API key whose rules apply.
    """

    def __init__(
        self,
        door: Door,
        broker: Broker,
        topics: Topics,
        *,
        telemetry_s: float,
        is_trusted: bool,
        key_id: str | None = None,
    ) -> None:
        self._door, self.broker, self.topics = door, broker, topics
        self._telemetry_s, self._is_trusted, self._key_id = telemetry_s, is_trusted, key_id
        self.backoff = Backoff()
        self._memory = Memory(time.monotonic)
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._is_taking = True
        self._stopping = asyncio.Event()
        self._staying: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and stay connected, in the background: a broker that is away keeps nobody from being served."""
        self._staying = asyncio.create_task(self._stay_connected(), name="mqtt")

    async def stop(self, within_s: float) -> None:
        """Take nothing more; answer what is being served, within so many seconds; leave. The session stays."""
        self._is_taking = False
        if self._serving and self._connection is not None:
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
            was_open = await self._use(connection)
            if self._stopping.is_set():
                return
            pause_s = self.backoff.next(time.monotonic() - began if was_open else 0.0)
            _disconnected.warning(broker=str(self.broker), why=connection.why, retry_s=round(pause_s, 3))
            await _first_of(self._stopping.wait(), timeout_s=pause_s)

    def _new_connection(self) -> Connection:
        most = 2 * self._door.rules.max_body_bytes + 65_536  # what is a little too large is answered, not just dropped
        will = presence.status(self.topics, is_online=False)
        return Connection(
            self.broker, self.topics.client_id, self._take, will=will, max_packet_bytes=min(most, 268_435_455)
        )

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
            if message.qos == 0 and len(self._serving) >= MOST_HELD:
                raise Rejected("too many at once")
        except Rejected as exc:
            _rejected.warning(why=str(exc), topic=message.topic[:200])
            delivery.acknowledge()
            return
        if message.expiry_s == 0:
            _expired.warning(topic=message.topic[:200])
            delivery.acknowledge()
            return
        self._spawn(self._answer(address, delivery))

    def _spawn(self, serving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(serving)
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _answer(self, address: Address, delivery: Delivery) -> None:
        """Have it answered, then acknowledge it. Cancelled: neither, and it comes again."""
        identity = identity_of(delivery.message, address)
        known = self._memory.find(delivery.message, identity)
        if known is not None:
            await self._repeat(known, delivery, address)
            return
        exchange, is_answered = self._memory.begin(identity), False
        try:
            await self._serve(delivery.message, address, exchange)
            is_answered = True
        finally:
            self._memory.end(identity, exchange, is_answered=is_answered)
        delivery.acknowledge()

    async def _repeat(self, known: Exchange, delivery: Delivery, address: Address) -> None:
        is_running = not known.ended.is_set()
        log.info("mqtt.repeated", how="joined" if is_running else "remembered", path=address.target[:200])
        await known.ended.wait()
        if not known.is_answered:
            return
        if not is_running:
            with suppress(PublishRefused):
                for publication in known.answer:
                    await self._send(publication)
        delivery.acknowledge()

    async def _serve(self, message: Message, address: Address, exchange: Exchange) -> None:
        async def send(publication: Publication) -> None:
            await self._send(publication)
            exchange.keep(publication)

        reply = MqttReply(message, address, send)
        is_too_many = message.qos == 0 and len(self._serving) > MOST_QOS_0
        try:
            await self._door.serve(self._incoming(message, address, is_too_many=is_too_many), reply)
        except Exception as exc:  # a bug of ours; without the acknowledgement it would come again, and again
            log.error("mqtt.broke", error=f"{type(exc).__name__}: {exc}"[:500], path=address.target[:200])
        finally:
            reply.close()

    def _incoming(self, message: Message, address: Address, *, is_too_many: bool) -> Incoming:
        async def read(limit: int) -> bytes:
            return body_of(message, limit, is_too_many=is_too_many)

        return Incoming(
            door="mqtt",
            method="POST",
            target=address.target,
            headers=headers_of(message),
            read=read,
            is_trusted=self._is_trusted,
            key_id=self._key_id,
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
