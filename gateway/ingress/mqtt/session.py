"""The session with the broker: stays connected, announces the gateway, and publishes on the current connection.

Backoff: after a lost connection the pause is drawn from the whole interval (full jitter), which doubles with each try.
Clients that lost a broker at the same moment thus come back evenly spread (Brooker, "Exponential Backoff And Jitter",
AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway import __version__
from gateway.dispatch import Dispatcher
from gateway.ingress.handler import RequestHandler
from gateway.ingress.mqtt.connection import Broker, Connection, ConnectionLost, Delivery, PublishRefused
from gateway.ingress.mqtt.messages import Publication
from gateway.ingress.mqtt.request import Topics
from gateway.telemetry import RateLimitedEvent, log, log_bug, log_task_failure

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_S = 10.0  # a connection that lasted this long resets the backoff
CLOSE_S = 5.0
MAX_PACKET_BYTES = 268_435_455  # MQTT 5 §2.1.4


@dataclass(slots=True)
class Backoff:
    """Pauses between connection attempts, in seconds."""

    first_s: float = FIRST_BACKOFF_S
    max_s: float = MAX_BACKOFF_S
    uniform: Callable[[float, float], float] = random.uniform
    tries: int = 0

    def next(self, lasted_s: float) -> float:
        """The pause after a connection that lasted `lasted_s`; 0 if it could not be opened."""
        if lasted_s >= STABLE_S:
            self.tries = 0
        longest_s = min(self.max_s, self.first_s * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return self.uniform(0.0, longest_s)


class BrokerSession:
    """Keeps one connection to the broker open. Start it once, then stop it once.

    on_message: called for each message, in order; it must not raise.
    """

    def __init__(
        self,
        handler: RequestHandler,
        broker: Broker,
        topics: Topics,
        on_message: Callable[[Delivery], None],
        *,
        telemetry_s: float,
    ) -> None:
        self.broker, self.topics = broker, topics
        self._handler, self._on_message, self._telemetry_s = handler, on_message, telemetry_s
        self._disconnected = RateLimitedEvent("mqtt.disconnected", per_s=1 / 60)
        self.backoff = Backoff()
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def start(self) -> None:
        """Connect and reconnect in the background: an unreachable broker does not delay the gateway."""
        self._task = log_task_failure(asyncio.create_task(self._run(), name="mqtt"))

    async def stop(self) -> None:
        """Disconnect. The broker keeps the session."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_S)
            await cancel_and_wait(self._task)

    async def publish(self, publication: Publication) -> None:
        """Publish on this connection or a later one. Raises PublishRefused."""
        while True:
            connection = self._connection
            if connection is None or connection.lost.is_set():
                self._connected.clear()
                await self._connected.wait()
                continue
            with suppress(ConnectionLost):
                await connection.publish(publication)
                return

    async def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            connection = self._new_connection()
            was_open = await self._use_safely(connection)
            if self._stopping.is_set():
                return
            pause_s = self.backoff.next(time.monotonic() - began if was_open else 0.0)
            self._disconnected.warning(broker=str(self.broker), why=connection.why, retry_s=round(pause_s, 3))
            await _wait_for_first(self._stopping.wait(), timeout_s=pause_s)

    def _new_connection(self) -> Connection:
        # Twice the limit: a body that is a little too large gets an error response; the broker would only drop it.
        max_packet_bytes = min(2 * self._handler.limits.max_body_bytes + 65_536, MAX_PACKET_BYTES)
        return Connection(
            self.broker,
            self.topics.client_id,
            self._on_message,
            will=status_message(self.topics, is_online=False),
            max_packet_bytes=max_packet_bytes,
        )

    async def _use_safely(self, connection: Connection) -> bool:
        try:
            return await self._use(connection)
        except Exception as exc:  # a bug, ours or aiomqtt's: without a reconnect, MQTT would fail until a restart
            log_bug("the connection to the broker", exc)
            connection.why = connection.why or type(exc).__name__
            return False

    async def _use(self, connection: Connection) -> bool:
        """Use the connection until it is lost or the session stops. Returns whether it could be opened."""
        try:
            await connection.open()
        except ConnectionLost:
            return False
        self._connection = connection
        self._connected.set()
        try:
            await self._serve(connection)
        except (ConnectionLost, PublishRefused) as exc:
            connection.why = connection.why or str(exc)
        finally:
            self._connection = None
            self._connected.clear()
            await connection.close()
        return True

    async def _serve(self, connection: Connection) -> None:
        await connection.subscribe(self.topics.subscriptions)
        await connection.publish(status_message(self.topics, is_online=True))
        log.info("mqtt.connected", broker=str(self.broker), resumed=connection.is_resumed)
        while not self._stopping.is_set():
            telemetry = telemetry_message(self.topics, self._handler.dispatcher, is_ready=self._handler.is_ready())
            with suppress(PublishRefused):
                await connection.publish(telemetry)
            await _wait_for_first(connection.lost.wait(), self._stopping.wait(), timeout_s=self._telemetry_s)
            if connection.lost.is_set():
                return
        await connection.publish(status_message(self.topics, is_online=False))


def status_message(topics: Topics, *, is_online: bool) -> Publication:
    """The gateway's presence, retained for later subscribers. `offline` is also its will."""
    return Publication(topic=topics.status, payload=b"online" if is_online else b"offline", retain=True)


def telemetry_message(topics: Topics, dispatcher: Dispatcher, *, is_ready: bool) -> Publication:
    """The gateway's load, and for each backend its lane, breaker and link. An unknown value is null."""
    values = {
        "ts": round(time.time(), 3),
        "host": topics.host,
        "version": __version__,
        "ready": is_ready,
        "load": dispatcher.measurements.load(),
        "backends": {name: _backend(dispatcher, name) for name in dispatcher.registry.members},
    }
    body = msgspec.json.encode(values)
    return Publication(topic=topics.telemetry, payload=body, qos=0, content_type="application/json")


def _backend(dispatcher: Dispatcher, name: str) -> dict[str, Any]:
    backend, link = dispatcher.registry.members[name], dispatcher.measurements.link(name)
    lane = dispatcher.scheduler.status().get(name, {})
    return {
        "site": backend.site,
        "state": backend.state,
        "breaker": backend.breaker.state,
        "slots": lane.get("slots"),
        "busy": lane.get("busy"),
        "waiting": lane.get("waiting"),
        "link_state": link.state if backend.is_remote else None,
        "rtt_ms": None if link.rtt.value is None else round(link.rtt.value * 1000, 3),
        "uplink_bytes_per_s": link.uplink_bytes_per_s.value,
        "downlink_bytes_per_s": link.downlink_bytes_per_s.value,
    }


async def _wait_for_first(*waiting: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
    """Wait until one of them is done, or for so many seconds; cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in waiting]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
