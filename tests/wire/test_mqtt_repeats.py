"""Repeated MQTT requests: answered from memory, joined to a run, or run again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiomqtt
import pytest

from gateway.ingress.mqtt.connection import Connection, PublishRefused
from gateway.ingress.mqtt.messages import Publication
from gateway.testing import RunningGateway, running_gateway
from support.broker import Broker
from support.mqtt_backend import COUNTING_BACKEND, CountingBackend
from support.mqtt_clients import ANSWERS, Device, device, streamed
from support.programs import needs
from support.upstream import Upstream, answer
from support.wiring import cloud

pytestmark = needs("mosquitto")


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[RunningGateway]:
    async with running_gateway(**COUNTING_BACKEND, GATEWAY_MQTT__URL=broker.url) as gateway:
        await gateway.line("mqtt.connected")
        yield gateway


async def test_repeated_request_is_answered_from_memory(lamp: Device, gateway: RunningGateway) -> None:
    first = await lamp.ask("/v1/tasks/tally", {"id": "a"})
    again = await lamp.ask("/v1/tasks/tally", {"id": "a"})
    assert (again.payload, again.user) == (first.payload, first.user)
    assert CountingBackend.runs["a"] == 1
    assert (await gateway.line("mqtt.repeated"))["how"] == "remembered"
    assert len(gateway.lines.of("request.finished")) == 1


async def test_repeated_request_joins_the_running_one(lamp: Device, gateway: RunningGateway) -> None:
    for _ in range(3):
        await lamp.send("/v1/tasks/hold", {"id": "a"})
    assert {line["how"] for line in await gateway.lines.wait("mqtt.repeated", 2)} == {"joined"}
    CountingBackend.open.set()
    await lamp.wait_until(lambda heard: len(heard) == 1)
    assert CountingBackend.runs["a"] == 1


async def test_repeated_request_gets_the_response_whose_publication_was_refused(
    lamp: Device, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, refused = Connection.publish, asyncio.Event()

    async def refuse_once(self: Connection, publication: Publication) -> None:
        if publication.topic == ANSWERS and not refused.is_set():
            refused.set()
            raise PublishRefused("not authorised")
        await publish(self, publication)

    monkeypatch.setattr(Connection, "publish", refuse_once)
    await lamp.send("/v1/tasks/tally", {"id": "a"})
    await gateway.lines.wait("mqtt.answer_refused")
    answer = await lamp.ask("/v1/tasks/tally", {"id": "a"})
    assert answer.json == {"result": 1}
    assert CountingBackend.runs["a"] == 1
    again = await lamp.ask("/v1/tasks/tally", {"id": "a"})
    assert again.payload == answer.payload


async def test_repeated_stream_is_run_again_if_a_part_was_refused_by_the_broker(
    lamp: Device, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, refused = Connection.publish, asyncio.Event()

    async def refuse_once(self: Connection, publication: Publication) -> None:
        if ("seq", "1") in publication.user and not refused.is_set():
            refused.set()
            raise PublishRefused("quota exceeded")
        await publish(self, publication)

    monkeypatch.setattr(Connection, "publish", refuse_once)
    await lamp.send("/v1/tasks/parts", {"n": 200}, b"s")
    await gateway.line(door="mqtt", outcome="cancelled")
    parts = await streamed(lamp, "/v1/tasks/parts", {"n": 200})
    assert "aborted" not in parts[-1].user
    assert parts[-1].payload.endswith(b"data: [DONE]\n\n")


async def test_repeated_request_is_run_if_a_bug_prevented_the_first_response(
    lamp: Device, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(gateway.service.handler, "serve", broken)
        await lamp.send("/v1/tasks/tally", {"id": "a"})
        await gateway.lines.wait("mqtt.broke")
    assert (await lamp.ask("/v1/tasks/tally", {"id": "a"})).json == {"result": 1}


async def test_repeated_request_is_served_after_a_retryable_error(broker: Broker) -> None:
    busy = answer(json={"error": {"message": "busy"}}, status=503, headers=[("x-should-retry", "false")])
    async with Upstream(busy) as upstream:
        world = cloud(upstream.url, TASKS="add", MODELS="m") | {"GATEWAY_MQTT__URL": broker.url}
        async with running_gateway(**world) as gateway, device(broker.port) as lamp:
            await gateway.line("mqtt.connected")
            first = await lamp.ask("/v1/tasks/add", {"a": 1})
            assert (first.user["status"], first.json["error"]["retryable"]) == ("503", True)
            upstream.script = answer(json={"error": {"message": "no"}}, status=422)
            for _ in range(2):
                assert (await lamp.ask("/v1/tasks/add", {"a": 1})).user["status"] == "422"
            assert len(gateway.lines.of("request.finished")) == 2


async def test_repeated_request_is_run_again_after_an_aborted_stream(lamp: Device, gateway: RunningGateway) -> None:
    for _ in range(2):
        lamp.received.clear()
        assert (await streamed(lamp, "/v1/tasks/breaks", {}))[-1].user["aborted"] == "true"
    assert len(await gateway.lines.wait("request.finished", 2)) == 2


async def test_request_with_another_correlation_or_body_is_not_a_repeat(lamp: Device) -> None:
    for correlation, asked in ((b"1", "a"), (b"2", "a"), (b"1", "b")):
        await lamp.ask("/v1/tasks/tally", {"id": asked}, correlation)
    assert CountingBackend.runs == {"a": 2, "b": 1}


async def test_mqtt_3_1_1_call_with_the_same_id_is_a_repeat(broker: Broker, gateway: RunningGateway) -> None:
    async with device(broker.port, "edge-gateway/reply/lamp/#", protocol=aiomqtt.ProtocolVersion.V311) as old:
        for _ in range(2):
            await old.client.publish("edge-gateway/call/lamp/1/v1/tasks/tally", b'{"id":"a"}', qos=1)
        heard = await old.wait_until(lambda heard: len(heard) >= 1 and CountingBackend.runs["a"] >= 1)
    assert {answer.payload for answer in heard} == {b'{"result":1}'}
    assert CountingBackend.runs["a"] == 1
