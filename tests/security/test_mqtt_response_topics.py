"""No client has the gateway publish where the client itself may not (confused deputy), on a real mosquitto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product

import pytest

from gateway.settings import SettingsError, load
from gateway.testing import RunningGateway, running_gateway
from support.broker import PASSWORDS, Broker, broker_folder, running_broker
from support.mqtt_clients import Device, device
from support.programs import needs

pytestmark = needs("mosquitto", "mosquitto_passwd")

TASK = "v1/tasks/echo"
ECHO = {"GATEWAY_BACKENDS__BIRD__PLUGIN": "echo"}
OWN = "edge-gateway/reply/lamp/1"
# Topics on which a lamp may not publish, but would like an answer to arrive: a command, a forged reply or status.
HOSTILE = (
    "edge-gateway/reply/meter/1",
    "edge-gateway/reply/lamp",
    "edge-gateway/reply/lamp2/1",
    "edge-gateway/reply",
    "edge-gateway",
    "edge-gateway/req/v1/tasks/echo",
    "edge-gateway/req/meter/v1/tasks/echo",
    "edge-gateway/call/meter/1/v1/tasks/echo",
    "edge-gateway/status/box",
    "edge-gateway/telemetry/box",
    "edge-gateway/future/box",
)
OF_OTHERS = (
    "devices/meter/answers",
    "homeassistant/light/x/set",
    "zigbee2mqtt/lamp/set",
    "Edge-gateway/reply/meter/1",
    "/edge-gateway/reply/meter/1",
    "other-gateway/req/v1/tasks/echo",
)
REQUESTS = (f"edge-gateway/req/lamp/{TASK}", f"edge-gateway/req/{TASK}", f"edge-gateway/req/meter/{TASK}")


@asynccontextmanager
async def broker_with_the_shipped_acl() -> AsyncIterator[Broker]:
    """The example configuration, and a user who may read everything."""
    with broker_folder() as folder:
        broker = Broker(folder, anonymous=False)
        with (folder / "acl").open("a") as acl:
            acl.write("\nuser watcher\ntopic read #\n")
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()


def login(user: str) -> dict[str, str]:
    return {"username": user, "password": PASSWORDS[user]}


def answers(watcher: Device) -> list[str]:
    """The topics of messages from the gateway: those that carry a status. (Its presence carries none.)"""
    return [message.topic for message in watcher.received if "status" in message.user]


async def ask(lamp: Device, request: str, response_topic: str, correlation: bytes) -> None:
    await lamp.publish(request, 1, ResponseTopic=response_topic, CorrelationData=correlation)


async def own_answer(lamp: Device, watcher: Device, number: int) -> None:
    """Ask as the lamp may, and wait until everybody has the answer: earlier messages have been served."""
    mark = b"own%d" % number
    await ask(lamp, f"edge-gateway/req/lamp/{TASK}", OWN, mark)
    for reader in (lamp, watcher):
        await reader.wait_until(lambda heard: any(m.correlation == mark and m.topic == OWN for m in heard))


async def test_shipped_acl_lets_no_device_reach_the_topics_of_another() -> None:
    ours = {"GATEWAY_MQTT__USERNAME": "edge-gateway", "GATEWAY_MQTT__PASSWORD": PASSWORDS["edge-gateway"]}
    async with (
        broker_with_the_shipped_acl() as broker,
        running_gateway(**ECHO, **ours, GATEWAY_MQTT__URL=broker.url) as gateway,
        device(broker.port, "edge-gateway/reply/lamp/#", **login("lamp")) as lamp,
        device(broker.port, "#", **login("watcher")) as watcher,
    ):
        await gateway.line("mqtt.connected")
        for number, (request, topic) in enumerate(product(REQUESTS, HOSTILE + OF_OTHERS)):
            await ask(lamp, request, topic, b"%d" % number)
        await lamp.publish(f"edge-gateway/call/meter/1/{TASK}", 1)
        await own_answer(lamp, watcher, 1)
        assert answers(watcher) == [OWN]
        await lamp.publish(f"edge-gateway/call/lamp/7/{TASK}", 1)
        await watcher.wait_until(lambda heard: any(m.topic == "edge-gateway/reply/lamp/7" for m in heard))
        assert len(gateway.lines.of("mqtt.rejected")) >= 1


async def watched(
    gateway: RunningGateway, broker: Broker, requests: tuple[str, ...], topics: tuple[str, ...]
) -> set[str]:
    """The topics on which the gateway answered these requests."""
    async with device(broker.port, "edge-gateway/reply/lamp/#") as lamp, device(broker.port, "#") as watcher:
        await gateway.line("mqtt.connected")
        for number, (request, topic) in enumerate(product(requests, topics)):
            await ask(lamp, request, topic, b"%d" % number)
        await own_answer(lamp, watcher, 1)
        return set(answers(watcher)) - {OWN}


async def test_request_that_names_its_sender_is_answered_under_its_own_reply_topic_only() -> None:
    async with running_broker() as broker, running_gateway(**ECHO, GATEWAY_MQTT__URL=broker.url) as gateway:
        assert await watched(gateway, broker, REQUESTS[:1], HOSTILE + OF_OTHERS) == set()


async def test_open_request_is_never_answered_on_a_topic_of_the_gateway() -> None:
    async with running_broker() as broker, running_gateway(**ECHO, GATEWAY_MQTT__URL=broker.url) as gateway:
        found = await watched(gateway, broker, REQUESTS[1:2], HOSTILE + OF_OTHERS)
    assert found == set(OF_OTHERS)  # what an open response topic costs; docs/mqtt.md


async def test_open_request_is_answered_on_the_listed_topics_only() -> None:
    mqtt = {"GATEWAY_MQTT__RESPONSE_TOPICS": "answers/#,devices/+/answers"}
    async with (
        running_broker() as broker,
        running_gateway(**ECHO, **mqtt, GATEWAY_MQTT__URL=broker.url) as gateway,
    ):
        allowed = ("answers/lamp", "devices/meter/answers")
        found = await watched(gateway, broker, REQUESTS[1:2], HOSTILE + OF_OTHERS + allowed)
    assert found == set(allowed)


async def test_filter_under_the_prefix_turns_open_requests_off() -> None:
    mqtt = {"GATEWAY_MQTT__RESPONSE_TOPICS": "edge-gateway/reply/#"}
    async with (
        running_broker() as broker,
        running_gateway(**ECHO, **mqtt, GATEWAY_MQTT__URL=broker.url) as gateway,
    ):
        assert await watched(gateway, broker, REQUESTS[1:2], HOSTILE + OF_OTHERS) == set()


@pytest.mark.parametrize("filters", ["a/#/b", "a+", "$SYS/#", "a/b#"])
def test_malformed_filter_is_an_error(filters: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_MQTT__RESPONSE_TOPICS"):
        load(ECHO | {"GATEWAY_MQTT__URL": "mqtt://127.0.0.1", "GATEWAY_MQTT__RESPONSE_TOPICS": filters})


async def test_edge_only_rule_for_a_topic_holds_with_the_name_of_the_sender_in_it() -> None:
    rule = {"GATEWAY_POLICY__EDGE_ONLY": f"edge-gateway/req/{TASK}"}
    far = {"GATEWAY_BACKENDS__BIRD__PLUGIN": "echo", "GATEWAY_BACKENDS__BIRD__SITE": "cloud"}
    async with (
        running_broker() as broker,
        running_gateway(**far, **rule, GATEWAY_MQTT__URL=broker.url) as gateway,
        device(broker.port, "edge-gateway/reply/lamp/#") as lamp,
    ):
        await gateway.line("mqtt.connected")
        for name in ("echo", "%65cho", "other"):
            await lamp.publish(
                f"edge-gateway/req/lamp/v1/tasks/{name}", 1, ResponseTopic=f"edge-gateway/reply/lamp/{name}"
            )
        heard = await lamp.wait_until(lambda heard: len(heard) == 3)
        status = {message.topic.rpartition("/")[2]: message.user["status"] for message in heard}
        assert status["echo"] == status["%65cho"] == "503"
        assert status["other"] != "503"  # the control
