"""One connection to the broker, from CONNECT until it is lost. The only file that knows what aiomqtt keeps private.

aiomqtt acknowledges a QoS 1 message before anybody has looked at it, drops what finds its queue full, and forgets a
PUBACK's reason. The paho client inside it can do better, if it is told so before it connects; that client, and the
future that says the connection broke, are the private parts leaned on here (tests/wire/test_mqtt_connection.py
fails when a release moves them). A lost connection is not used again: aiomqtt would take it for connected.
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

from gateway.ingress.mqtt.properties import Message, Publication, message_of

KEEPALIVE_S = 15
SESSION_S = 3600
RECEIVE_MAXIMUM = 64  # requests the broker may hand over before we have acknowledged one
CONNECT_S = 10.0
CONFIRM_S = 60.0  # a broker that answers pings, but no PUBLISH for so long, is broken
MAX_UNCONFIRMED = 64

T = TypeVar("T")


class ConnectionLost(ConnectionError):
    """There is no connection (any more); on the next one it can be tried again."""


class PublishRefused(ConnectionError):
    """The broker will not have this message, on this connection or another; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where the broker is, and who we are to it. tls: None for a plain connection."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    no_delay: bool = True

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class Delivery:
    """A message that was handed over, to be acknowledged once. The broker hears of it when all before it are."""

    def __init__(self, message: Message, settle: Callable[[], None], lost: asyncio.Event) -> None:
        self.message, self._settle, self._lost = message, settle, lost
        self.is_done = False

    @property
    def is_void(self) -> bool:
        """Whether it can no longer be acknowledged: the broker will deliver it again."""
        return self._lost.is_set()

    def acknowledge(self) -> None:
        """The broker need not keep it any longer."""
        self.is_done = True
        self._settle()


class Connection:
    """Not yet open. `take` is called for each message, in order, from the loop; it must not raise."""

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        take: Callable[[Delivery], None],
        *,
        will: Publication | None = None,
        max_packet_bytes: int = 268_435_455,
        session_s: int = SESSION_S,
    ) -> None:
        self._take = take
        self.lost = asyncio.Event()
        self.why = ""
        self.is_resumed = False
        self.broker_limits: Mapping[str, Any] = {}
        self._unsettled: deque[Delivery] = deque()
        self._unconfirmed: dict[int, asyncio.Future[ReasonCode]] = {}
        self._window = asyncio.Semaphore(MAX_UNCONFIRMED)
        self._client = _client(broker, client_id, will, max_packet_bytes, session_s)
        self._paho = self._client._client
        self._paho.manual_ack_set(True)
        self._paho.on_message = self._on_message
        self._paho.on_publish = self._on_publish
        self._theirs: tuple[Any, Any] = self._paho.on_connect, self._paho.on_disconnect
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect

    # ── opening and closing ──────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Connect, taking up the session the broker kept. Raises ConnectionLost saying why not."""
        try:
            await self._while_connected(self._client.__aenter__())  # which would wait on for a CONNACK all the same
        except (ConnectionLost, OSError, ValueError) as exc:
            self._lose(str(exc))
            raise ConnectionLost(str(exc)) from exc
        self._client._disconnected.add_done_callback(self._broke)
        if self.lost.is_set():  # while aiomqtt was not looking
            raise ConnectionLost(self.why)

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        """Subscribe at QoS 1. Raises ConnectionLost, PublishRefused where the broker says no."""
        asked = self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics], timeout=CONFIRM_S)
        for topic, code in zip(topics, await self._while_connected(asked), strict=False):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise PublishRefused(f"the broker refuses the subscription {topic}: {code}")

    async def close(self) -> None:
        """Say good-bye; the broker keeps the session, and publishes no will."""
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
        asyncio.get_running_loop().call_soon(self._hang_up)  # not inside paho's callback: its lock is not reentrant

    def _hang_up(self) -> None:
        """aiomqtt leaves the socket open where we, or an exception, ended the connection, and not paho."""
        self._paho._sock_close()
        if (ticking := self._client._misc_task) is not None:
            ticking.cancel()

    # ── publishing ───────────────────────────────────────────────────────────────────────────────

    async def publish(self, publication: Publication) -> None:
        """Return when the broker has it (QoS 0: when the kernel has). Raises ConnectionLost, PublishRefused."""
        most = self.broker_limits.get("MaximumPacketSize", math.inf)
        if publication.size > most:
            raise PublishRefused(f"{publication.size} bytes, and the broker takes packets of {most} at most")
        async with self._window:
            reason = await self._confirmed(self._send(publication))
        if reason.is_failure:
            raise PublishRefused(str(reason))

    def _send(self, it: Publication) -> int:
        if self.lost.is_set():
            raise ConnectionLost(self.why)
        try:
            info = self._paho.publish(it.topic, it.payload, it.qos, it.retain, it.properties())
        except (ValueError, MQTTException) as exc:
            raise PublishRefused(f"it is no MQTT message: {exc}") from exc
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise ConnectionLost(info.rc.name)
        return info.mid

    async def _confirmed(self, mid: int) -> ReasonCode:
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
        """Raises ConnectionLost as soon as it is, however patient aiomqtt would be."""
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

    # ── what paho tells ──────────────────────────────────────────────────────────────────────────

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any = None) -> None:
        self.is_resumed = flags.session_present
        self.broker_limits = {
            name: getattr(properties, name)
            for name in ("ReceiveMaximum", "MaximumPacketSize", "MaximumQoS", "SharedSubscriptionAvailable")
            if hasattr(properties, name)
        }
        self._window = asyncio.Semaphore(min(MAX_UNCONFIRMED, self.broker_limits.get("ReceiveMaximum", 65_535)))
        self._theirs[0](client, userdata, flags, reason, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any = None
    ) -> None:
        self._theirs[1](client, userdata, flags, reason, properties)
        by_broker = flags.is_disconnect_packet_from_server
        self._lose(f"the broker sent us away: {reason}" if by_broker else "the connection broke")

    def _broke(self, disconnected: asyncio.Future[None]) -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        self._lose(f"{type(error).__name__}: {error}"[:300])

    def _on_message(self, client: Any, userdata: Any, got: MQTTMessage) -> None:
        delivery = Delivery(message_of(got), self._settle, self.lost)
        if got.qos > 0:
            self._unsettled.append(delivery)
        self._take(delivery)

    def _settle(self) -> None:
        """MQTT 5 §4.6: PUBACKs go out in the order in which the messages came in."""
        while self._unsettled and self._unsettled[0].is_done:
            settled = self._unsettled.popleft()
            if not self.lost.is_set():
                self._paho.ack(settled.message.mid, settled.message.qos)

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
    # Nagle here and delayed acknowledgements there make 44 ms of every QoS 1 round trip.
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
        max_inflight_messages=0,  # the window above does it, and knows what the broker can take
        socket_options=options,
    )
