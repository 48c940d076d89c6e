"""Behaviour and private attributes of aiomqtt and paho that the gateway relies on.

A release that changes them fails here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
import pytest
from paho.mqtt.client import Client as Paho

from gateway.ingress.mqtt.connection import Broker, Connection, ConnectionLost, Delivery, PublishRefused
from gateway.ingress.mqtt.messages import Publication
from support.broker import PASSWORDS, running_broker
from support.broker import Broker as Mosquitto
from support.mqtt_clients import device
from support.programs import needs

pytestmark = needs("mosquitto", "mosquitto_passwd")

TOPICS = ("$share/g/req/#",)


class Taken(asyncio.Queue[Delivery]):
    """A queue of deliveries in order of arrival."""

    async def bodies(self, count: int) -> list[bytes]:
        async with asyncio.timeout(10):
            return [(await self.get()).message.payload for _ in range(count)]


@pytest.fixture
async def mosquitto() -> AsyncIterator[Mosquitto]:
    async with running_broker() as broker:
        yield broker


@asynccontextmanager
async def connected(port: int, taken: Taken, **who: str) -> AsyncIterator[Connection]:
    connection = Connection(Broker(host="127.0.0.1", port=port, **who), "us", taken.put_nowait)  # type: ignore[arg-type]
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


async def test_private_attributes_used_from_aiomqtt_and_paho_exist() -> None:
    client = aiomqtt.Client("127.0.0.1")
    assert isinstance(client._client, Paho)
    assert isinstance(client._disconnected, asyncio.Future)
    assert client._misc_task is None
    assert list(inspect.signature(Paho.ack).parameters) == ["self", "mid", "qos"]
    assert list(inspect.signature(Paho.manual_ack_set).parameters) == ["self", "on"]
    assert list(inspect.signature(Paho._sock_close).parameters) == ["self"]


async def test_message_is_not_acknowledged_before_acknowledge_is_called(mosquitto: Mosquitto) -> None:
    async with device(mosquitto.port) as lamp:
        taken = Taken()
        async with connected(mosquitto.port, taken) as connection:
            await connection.subscribe(TOPICS)
            for n in range(5):
                await lamp.publish("req/x", n)
            for n in range(5):
                delivery = await asyncio.wait_for(taken.get(), 10)
                if n < 2:
                    delivery.acknowledge()
        async with connected(mosquitto.port, again := Taken()) as connection:
            assert connection.is_resumed
            assert await again.bodies(3) == [b"2", b"3", b"4"]


async def test_message_resumed_before_subscribing_is_not_acknowledged(mosquitto: Mosquitto) -> None:
    async with device(mosquitto.port) as lamp:
        async with connected(mosquitto.port, Taken()) as connection:
            await connection.subscribe(TOPICS)
        for n in range(5):
            await lamp.publish("req/x", n)
    for _ in range(3):
        async with connected(mosquitto.port, taken := Taken()):
            assert await taken.bodies(5) == [b"0", b"1", b"2", b"3", b"4"]


async def test_later_message_is_acknowledged_only_after_the_earlier_ones(mosquitto: Mosquitto) -> None:
    async with device(mosquitto.port) as lamp:
        taken = Taken()
        async with connected(mosquitto.port, taken) as connection:
            await connection.subscribe(TOPICS)
            for n in range(3):
                await lamp.publish("req/x", n)
            deliveries = [await asyncio.wait_for(taken.get(), 10) for _ in range(3)]
            deliveries[2].acknowledge()
            deliveries[1].acknowledge()
        async with connected(mosquitto.port, again := Taken()):
            assert await again.bodies(3) == [b"0", b"1", b"2"]


async def test_broker_holds_back_messages_over_the_receive_maximum(mosquitto: Mosquitto) -> None:
    async with device(mosquitto.port) as lamp:
        taken = Taken()
        async with connected(mosquitto.port, taken) as connection:
            await connection.subscribe(TOPICS)
            for n in range(70):
                await lamp.publish("req/x", n)
            await connection.publish(Publication(topic="devices/lamp/answers", payload=b"now"))
            await lamp.wait_until(lambda heard: bool(heard))  # waits for one round trip
            assert taken.qsize() == 64
            (await taken.get()).acknowledge()
            assert len(await taken.bodies(64)) == 64


async def test_publication_forbidden_by_the_brokers_acl_is_refused_with_its_reason() -> None:
    async with running_broker(anonymous=False) as mosquitto:
        who = {"username": "edge-gateway", "password": PASSWORDS["edge-gateway"]}
        async with connected(mosquitto.port, Taken(), **who) as connection:
            await connection.publish(Publication(topic="edge-gateway/reply/lamp/1", payload=b"x"))
            with pytest.raises(PublishRefused, match="Not authorized"):
                await connection.publish(Publication(topic="elsewhere", payload=b"x"))
            with pytest.raises(PublishRefused, match="not a valid MQTT message"):
                await connection.publish(Publication(topic="a/#", payload=b"x"))
            assert not connection.lost.is_set()


async def test_connection_with_wrong_credentials_raises_not_authorized() -> None:
    async with running_broker(anonymous=False) as mosquitto:
        with pytest.raises(ConnectionLost, match="Not authorized"):
            async with connected(mosquitto.port, Taken(), username="edge-gateway", password="wrong"):
                pass


async def test_publishing_raises_when_the_connection_is_lost(mosquitto: Mosquitto) -> None:
    async with connected(mosquitto.port, Taken()) as connection:
        await connection.publish(Publication(topic="a", payload=b"x"))
        await mosquitto.stop()
        await asyncio.wait_for(connection.lost.wait(), 10)
        with pytest.raises(ConnectionLost):
            await connection.publish(Publication(topic="a", payload=b"x"))


async def test_connecting_without_a_broker_raises_connection_refused() -> None:
    with pytest.raises(ConnectionLost, match="refused"):
        await Connection(Broker(host="127.0.0.1", port=1), "us", Taken().put_nowait).open()
