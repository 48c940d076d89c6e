"""MQTT clients: a device that records what it receives, and command-line programs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from support.programs import program

ANSWERS = "devices/lamp/answers"
NO_DELAY = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
NO_MATCHING_SUBSCRIBERS = 0x10  # MQTT 5 §3.4.2.1: the broker accepted the message and dropped it

_packet_id: ContextVar[int] = ContextVar("packet_id")  # of the PUBLISH that this task sent last


class Answer:
    """A message received by a device."""

    def __init__(self, message: aiomqtt.Message) -> None:
        properties = message.properties
        self.topic, self.payload = str(message.topic), message.payload
        self.is_retained = message.retain
        self.correlation: bytes | None = getattr(properties, "CorrelationData", None)
        self.content_type: str | None = getattr(properties, "ContentType", None)
        self.user: dict[str, str] = dict(getattr(properties, "UserProperty", []))

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.payload)


class Device:
    """A connected client; `received` holds every message in order."""

    def __init__(self, client: aiomqtt.Client, take: Callable[[Answer], None]) -> None:
        self.client, self._take = client, take
        self.received: list[Answer] = []
        self._news = asyncio.Event()
        self._reasons: dict[int, ReasonCode] = {}
        self._keep_reasons()
        self.listening = asyncio.create_task(self._listen())

    def _keep_reasons(self) -> None:
        """Keep the reason code of each PUBACK, which aiomqtt drops."""
        paho = self.client._client
        publish, on_publish = paho.publish, paho.on_publish

        def noting(*arguments: Any, **options: Any) -> Any:
            info = publish(*arguments, **options)
            _packet_id.set(info.mid)
            return info

        def keeping(client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
            self._reasons[mid] = reason
            on_publish(client, userdata, mid, reason, properties)

        paho.publish, paho.on_publish = noting, keeping

    async def _listen(self) -> None:
        async for message in self.client.messages:
            answer = Answer(message)
            self.received.append(answer)
            self._take(answer)
            self._news.set()

    async def subscribe(self, topic: str) -> None:
        """Subscribe at QoS 1. Raises MqttError as soon as the connection breaks; aiomqtt alone would wait 10 s."""
        subscribing = asyncio.create_task(self.client.subscribe(topic, qos=1))
        await asyncio.wait({subscribing, self.listening}, return_when=asyncio.FIRST_COMPLETED)
        if not subscribing.done():
            subscribing.cancel()
            await self.listening
        await subscribing

    async def wait_until(self, claim: Callable[[Sequence[Answer]], bool], timeout_s: float = 20) -> list[Answer]:
        """Return the received messages as soon as `claim` holds for them.

        Raises TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            while not claim(self.received):
                self._news.clear()
                await self._news.wait()
        return self.received

    async def publish(
        self, topic: str, body: Any = b"", *, qos: int = 1, user: Sequence[tuple[str, str]] = (), **properties: Any
    ) -> ReasonCode | None:
        """Publish; `properties` by paho's names. Not bytes: goes as JSON. Returns the PUBACK's reason code."""
        packed = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            if value is not None:
                setattr(packed, name, value)
        if user:
            packed.UserProperty = list(user)
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
        await self.client.publish(topic, payload, qos=qos, properties=packed, timeout=2)
        return self._reasons.pop(_packet_id.get(), None)

    async def send(self, path: str, body: Any, correlation: bytes | None = b"1", **more: Any) -> ReasonCode | None:
        """Publish a request, by MQTT 5. Returns the PUBACK's reason code."""
        more = {"ResponseTopic": ANSWERS, "CorrelationData": correlation} | more
        return await self.publish(f"edge-gateway/req{path}", body, **more)

    async def ask(self, path: str, body: Any, correlation: bytes = b"1", **more: Any) -> Answer:
        """Send a request and return its answer."""
        before = len(self.received)
        await self.send(path, body, correlation, **more)
        await self.wait_until(lambda heard: any(answer.correlation == correlation for answer in heard[before:]))
        return next(answer for answer in self.received[before:] if answer.correlation == correlation)


@asynccontextmanager
async def device(
    port: int, topic: str = ANSWERS + "/#", take: Callable[[Answer], None] = lambda answer: None, **options: Any
) -> AsyncIterator[Device]:
    """A device that listens on `topic`; `take` is called for each answer."""
    options = {"protocol": aiomqtt.ProtocolVersion.V5, "socket_options": NO_DELAY} | options
    async with aiomqtt.Client("127.0.0.1", port, **options) as client:
        client.pending_calls_threshold = 1_000_000
        # Listening begins before the subscription: the broker sends what a resumed session holds right after CONNACK,
        # and paho acknowledges it. If the connection breaks before SUBACK, these messages do not come again.
        one = Device(client, take)
        try:
            await one.subscribe(topic)
            yield one
        finally:
            one.listening.cancel()
            await asyncio.gather(one.listening, return_exceptions=True)


async def streamed(lamp: Device, path: str, body: Any, **more: Any) -> list[Answer]:
    """The parts of a stream; its correlation is `s`."""
    await lamp.send(path, body, b"s", **more)
    heard = await lamp.wait_until(lambda heard: any("final" in part.user for part in heard))
    return [part for part in heard if part.correlation == b"s"]


async def run(name: str, *args: str) -> bytes:
    """Return the standard output of a client program.

    Fails if its exit status is not 0.
    """
    process = await asyncio.create_subprocess_exec(program(name), *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, (process.returncode, out, err)
    return out


class ReconnectingClient:
    """A client that resumes its session after a broker restart, and sends a request until the broker keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._device: Device | None = None
        self._connected = asyncio.Event()
        self.answered: dict[bytes, list[Any]] = {}
        self.dropped = 0  # requests that the broker did not keep, as it said; each was sent again
        self._news = asyncio.Event()

    async def stay(self) -> None:
        connect = Properties(PacketTypes.CONNECT)
        connect.SessionExpiryInterval = 3600
        # aiomqtt does not notice a connection that breaks before CONNACK, and would wait 10 s for it.
        options = {"identifier": "sturdy", "clean_start": False, "properties": connect, "timeout": 2}
        while True:
            with suppress(aiomqtt.MqttError):
                async with device(self._port, ANSWERS, take=self._record, **options) as self._device:
                    self._connected.set()
                    await self._device.listening
            self._connected.clear()
            await asyncio.sleep(0.02)  # a pause between attempts

    def _record(self, answer: Answer) -> None:
        assert answer.correlation is not None
        self.answered.setdefault(answer.correlation, []).append(answer.json)
        self._news.set()

    async def send(self, path: str, body: Any, correlation: bytes) -> None:
        """Return when the broker has acknowledged the message and matched it to the gateway's subscription.

        mosquitto 2.0.11 loses shared subscriptions when it restarts. Until the gateway has subscribed again, the broker
        drops requests and reports that in the reason code of the PUBACK.
        """
        while True:
            await self._connected.wait()
            assert self._device is not None
            with suppress(aiomqtt.MqttError):
                reason = await self._device.send(path, body, correlation)
                if reason is None or reason.value != NO_MATCHING_SUBSCRIBERS:
                    return
                self.dropped += 1
            await asyncio.sleep(0.02)  # a pause between attempts

    async def until_answered(self, correlations: set[bytes], timeout_s: float = 40) -> None:
        """Return when each correlation is answered.

        Raises AssertionError with the unanswered ones.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not correlations <= self.answered.keys():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"never answered: {sorted(correlations - self.answered.keys())}") from None


@asynccontextmanager
async def reconnecting_client(port: int) -> AsyncIterator[ReconnectingClient]:
    client = ReconnectingClient(port)
    staying = asyncio.create_task(client.stay())
    try:
        yield client
    finally:
        staying.cancel()
        await asyncio.wait({staying})
