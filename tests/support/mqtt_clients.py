"""Clients of the MQTT door: a device that keeps what it hears, and the programs people use."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from support.programs import program

ANSWERS = "devices/lamp/answers"
NO_DELAY = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


class Answer:
    """A message a device heard."""

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
    """A connected client; `heard` is all it was sent, in order."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.heard: list[Answer] = []
        self._news = asyncio.Event()

    async def listen(self) -> None:
        async for message in self.client.messages:
            self.heard.append(Answer(message))
            self._news.set()

    async def until(self, claim: Callable[[Sequence[Answer]], bool], timeout_s: float = 20) -> list[Answer]:
        """What was heard, as soon as the claim about it holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not claim(self.heard):
                self._news.clear()
                await self._news.wait()
        return self.heard

    async def publish(
        self, topic: str, body: Any = b"", *, qos: int = 1, user: Sequence[tuple[str, str]] = (), **properties: Any
    ) -> None:
        """Publish; `properties` by paho's names. A body that is not bytes goes as JSON."""
        packed = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            if value is not None:
                setattr(packed, name, value)
        if user:
            packed.UserProperty = list(user)
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
        await self.client.publish(topic, payload, qos=qos, properties=packed)

    async def send(self, path: str, body: Any, correlation: bytes | None = b"1", **more: Any) -> None:
        """Publish a request, by MQTT 5."""
        more = {"ResponseTopic": ANSWERS, "CorrelationData": correlation} | more
        await self.publish(f"edge-gateway/req{path}", body, **more)

    async def ask(self, path: str, body: Any, correlation: bytes = b"1", **more: Any) -> Answer:
        """Its one answer."""
        before = len(self.heard)
        await self.send(path, body, correlation, **more)
        await self.until(lambda heard: any(answer.correlation == correlation for answer in heard[before:]))
        return next(answer for answer in self.heard[before:] if answer.correlation == correlation)


@asynccontextmanager
async def device(port: int, topic: str = ANSWERS + "/#", **options: Any) -> AsyncIterator[Device]:
    """A device that listens on `topic`."""
    options = {"protocol": aiomqtt.ProtocolVersion.V5, "socket_options": NO_DELAY} | options
    async with aiomqtt.Client("127.0.0.1", port, **options) as client:
        client.pending_calls_threshold = 1_000_000
        await client.subscribe(topic, qos=1)
        one = Device(client)
        listening = asyncio.create_task(one.listen())
        try:
            yield one
        finally:
            listening.cancel()
            await asyncio.wait({listening})
            listening.cancelled() or listening.exception()


async def run(name: str, *args: str) -> bytes:
    """A client program's standard output. Fails where it says it failed."""
    process = await asyncio.create_subprocess_exec(program(name), *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, (process.returncode, out, err)
    return out
