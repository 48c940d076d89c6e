"""One connection to the broker, from CONNECT until it is lost. The only file that uses private parts of aiomqtt.

aiomqtt acknowledges a QoS 1 message on receipt, drops messages when its queue is full, and discards the reason of a
PUBACK. The paho client inside it avoids all three if it is configured before it connects. The private parts in use are
that client, and the future that ends when the connection breaks; tests/wire/test_mqtt_connection.py fails when a
release moves them. A lost connection is not used again, because aiomqtt would treat it as connected.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiomqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.ingress.mqtt.messages import Message, Publication, message_of

KEEPALIVE_S = 15
SESSION_S = 3600
RECEIVE_MAXIMUM = 64  # unacknowledged messages that the broker may deliver
CONNECT_S = 10.0
CONFIRM_S = 60.0  # without a PUBACK for this long the broker is broken, even if it answers pings
MAX_UNCONFIRMED = 64

T = TypeVar("T")


class ConnectionLost(ConnectionError):
    """The connection is lost, or could not be opened. A retry on the next connection may succeed."""


class PublishRefused(ConnectionError):
    """The broker refuses this message on every connection; the text gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """The broker's address and the gateway's credentials. tls: None for a plain connection."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    no_delay: bool = True

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class Delivery:
    """A delivered message, to be acknowledged once. The PUBACK is sent after those of all earlier messages."""

    def __init__(self, message: Message, on_acknowledged: Callable[[], None], lost: asyncio.Event) -> None:
        self.message, self._on_acknowledged, self._lost = message, on_acknowledged, lost
        self.is_acknowledged = False

    @property
    def is_stale(self) -> bool:
        """Whether its connection is lost: it cannot be acknowledged, and the broker delivers it again."""
        return self._lost.is_set()

    def acknowledge(self) -> None:
        """Let the broker discard the message."""
        self.is_acknowledged = True
        self._on_acknowledged()


class Connection:
    """A connection, to be opened. `on_message` is called for each message, in order; it must not raise.

    why: the reason of its loss.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        on_message: Callable[[Delivery], None],
        *,
        will: Publication | None = None,
        max_packet_bytes: int = 268_435_455,
        session_s: int = SESSION_S,
    ) -> None:
        self._handle = on_message
        self.lost = asyncio.Event()
        self.why = ""
        self.is_resumed = False
        self.broker_limits: Mapping[str, Any] = {}
        self._unacknowledged: deque[Delivery] = deque()
        self._unconfirmed: dict[int, asyncio.Future[ReasonCode]] = {}
        self._window = asyncio.Semaphore(MAX_UNCONFIRMED)
        self._client = _client(broker, client_id, will, max_packet_bytes, session_s)
        self._paho = self._client._client
        self._paho.manual_ack_set(True)
        self._paho.on_message = self._on_message
        self._paho.on_publish = self._on_publish
        self._aiomqtt_callbacks: tuple[Any, Any] = self._paho.on_connect, self._paho.on_disconnect
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect

    # ── opening and closing ──────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Connect, and resume the session that the broker has kept. Raises ConnectionLost with the reason."""
        try:
            await self._while_connected(self._client.__aenter__())  # which waits for a CONNACK after a loss, too
        except (ConnectionLost, OSError, ValueError) as exc:
            self._lose(str(exc))
            raise ConnectionLost(str(exc)) from exc
        self._client._disconnected.add_done_callback(self._on_disconnected)
        if self.lost.is_set():  # before aiomqtt made that future
            raise ConnectionLost(self.why)

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe at QoS 1. Raises ConnectionLost; PublishRefused if the broker refuses a subscription."""
        subscribing = self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics], timeout=CONFIRM_S)
        for topic, code in zip(topics, await self._while_connected(subscribing), strict=False):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise PublishRefused(f"the broker refuses the subscription {topic}: {code}")

    async def close(self) -> None:
        """Send DISCONNECT: the broker keeps the session and does not publish the will."""
        with suppress(aiomqtt.MqttError, ValueError):
            await self._client.__aexit__(None, None, None)
        self._lose("closed")

    def _lose(self, why: str) -> None:
        if self.lost.is_set():
            return
        self.why = why
        self.lost.set()
        for waiting in self._unconfirmed.values():
            if not waiting.done():
                waiting.set_exception(ConnectionLost(why))
        asyncio.get_running_loop().call_soon(self._close_socket)  # outside paho's callback: its lock is not reentrant

    def _close_socket(self) -> None:
        """Close the socket, which aiomqtt leaves open unless paho itself ended the connection."""
        self._paho._sock_close()
        if (misc_task := self._client._misc_task) is not None:
            misc_task.cancel()

    # ── publishing ───────────────────────────────────────────────────────────────────────────────

    async def publish(self, publication: Publication) -> None:
        """Return when the broker has the message (QoS 0: the kernel). Raises ConnectionLost, PublishRefused."""
        max_bytes = self.broker_limits.get("MaximumPacketSize", math.inf)
        if publication.size > max_bytes:
            raise PublishRefused(
                f"it has {publication.size} bytes, and the broker accepts packets of at most {max_bytes}"
            )
        async with self._window:
            reason = await self._puback(self._send(publication))
        if reason.is_failure:
            raise PublishRefused(str(reason))

    def _send(self, message: Publication) -> int:
        if self.lost.is_set():
            raise ConnectionLost(self.why)
        try:
            info = self._paho.publish(message.topic, message.payload, message.qos, message.retain, message.properties())
        except (ValueError, MQTTException) as exc:
            raise PublishRefused(f"it is not a valid MQTT message: {exc}") from exc
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise ConnectionLost(info.rc.name)
        return info.mid

    async def _puback(self, mid: int) -> ReasonCode:
        confirmed: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
        self._unconfirmed[mid] = confirmed
        try:
            async with asyncio.timeout(CONFIRM_S):
                return await confirmed
        except TimeoutError:
            self._lose(f"no PUBACK within {CONFIRM_S:g} s")
            raise ConnectionLost(self.why) from None
        finally:
            del self._unconfirmed[mid]

    async def _while_connected(self, doing: Awaitable[T]) -> T:
        """Await `doing`, but raise ConnectionLost at once on a loss; aiomqtt would wait for its timeout."""
        done = asyncio.ensure_future(doing)
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait({done, lost}, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            raise ConnectionLost(self.why)
        except aiomqtt.MqttError as exc:
            raise ConnectionLost(str(exc)) from exc
        finally:
            done.cancel()
            lost.cancel()

    # ── callbacks of paho ────────────────────────────────────────────────────────────────────────

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any = None) -> None:
        self.is_resumed = flags.session_present
        self.broker_limits = {
            name: getattr(properties, name)
            for name in ("ReceiveMaximum", "MaximumPacketSize", "MaximumQoS", "SharedSubscriptionAvailable")
            if hasattr(properties, name)
        }
        self._window = asyncio.Semaphore(min(MAX_UNCONFIRMED, self.broker_limits.get("ReceiveMaximum", 65_535)))
        self._aiomqtt_callbacks[0](client, userdata, flags, reason, properties)
        if reason.is_failure:  # before the broker closes the socket, which would hide the reason
            self._lose(f"the broker refused the connection: {reason}")

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any = None
    ) -> None:
        self._aiomqtt_callbacks[1](client, userdata, flags, reason, properties)
        by_broker = flags.is_disconnect_packet_from_server
        self._lose(f"the broker disconnected: {reason}" if by_broker else "the connection broke")

    def _on_disconnected(self, disconnected: asyncio.Future[None]) -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        self._lose(f"{type(error).__name__}: {error}"[:300])

    def _on_message(self, client: Any, userdata: Any, got: MQTTMessage) -> None:
        delivery = Delivery(message_of(got), self._send_pubacks, self.lost)
        if got.qos > 0:
            self._unacknowledged.append(delivery)
        self._handle(delivery)

    def _send_pubacks(self) -> None:
        """Send PUBACKs in the order in which the messages arrived (MQTT 5 §4.6)."""
        while self._unacknowledged and self._unacknowledged[0].is_acknowledged:
            delivery = self._unacknowledged.popleft()
            if not self.lost.is_set():
                self._paho.ack(delivery.message.mid, delivery.message.qos)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Any = None) -> None:
        confirmed = self._unconfirmed.get(mid)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(reason)


def _client(
    broker: Broker, client_id: str, will: Publication | None, max_packet_bytes: int, session_s: int
) -> aiomqtt.Client:
    connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    connect.SessionExpiryInterval = session_s
    connect.ReceiveMaximum = RECEIVE_MAXIMUM
    connect.MaximumPacketSize = max_packet_bytes
    # Nagle's algorithm and delayed acknowledgements of the broker add 44 ms to every QoS 1 round trip.
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)] if broker.no_delay else []
    return aiomqtt.Client(
        broker.host,
        broker.port,
        identifier=client_id,
        protocol=aiomqtt.ProtocolVersion.V5,
        username=broker.username,
        password=broker.password,
        tls_context=broker.tls,
        will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain) if will else None,
        clean_start=False,
        properties=connect,
        keepalive=KEEPALIVE_S,
        timeout=CONNECT_S,
        max_inflight_messages=0,  # `_window` limits them, by the broker's receive maximum
        socket_options=options,
    )
