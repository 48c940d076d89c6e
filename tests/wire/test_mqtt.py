"""The MQTT transport with a real broker: requests, streams, errors, presence."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import Key, hash_of
from gateway.ingress.mqtt.connection import Delivery
from gateway.ingress.mqtt.messages import Message
from gateway.testing import RunningGateway, running_gateway
from support.broker import PASSWORDS, Broker, running_broker
from support.mqtt_backend import COUNTING_BACKEND, CountingBackend
from support.mqtt_clients import Device, device, run, streamed
from support.programs import needs

pytestmark = needs("mosquitto", "mosquitto_passwd")

ECHO = {"GATEWAY_BACKENDS__E__PLUGIN": "echo", "GATEWAY_BACKENDS__E__DIMENSION": "2"}
TALK = {"model": "echo", "messages": [{"role": "user", "content": "to be or not"}]}


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[RunningGateway]:
    async with running_gateway(**ECHO, **COUNTING_BACKEND, GATEWAY_MQTT__URL=broker.url) as gateway:
        await gateway.line("mqtt.connected")
        yield gateway


# ── requests and responses ───────────────────────────────────────────────────────────────────────


async def test_request_is_answered_on_its_response_topic(lamp: Device, gateway: RunningGateway) -> None:
    answer = await lamp.ask("/v1/tasks/echo", {"a": 1}, b"\0\xff")
    assert answer.json == {"result": {"a": 1}}
    assert answer.correlation == b"\0\xff"
    assert answer.content_type == "application/json"
    assert not answer.is_retained
    assert answer.user["status"] == "200"
    assert (answer.user["x-gateway-backend"], answer.user["x-gateway-site"]) == ("e", "edge")
    assert answer.user["x-gateway-attempts"] == "1"
    assert "total;dur=" in answer.user["Server-Timing"]
    line = await gateway.line(request_id=answer.user["x-request-id"])
    assert (line["door"], line["kind"], line["outcome"], line["status"]) == ("mqtt", "task", "served", 200)


async def test_time_account_of_an_mqtt_request_balances(lamp: Device, gateway: RunningGateway) -> None:
    await lamp.ask("/v1/tasks/echo", "x" * 10_000)
    line = await gateway.line(door="mqtt")
    terms = {key: value for key, value in line.items() if key.startswith("t_") and key.endswith("_ms")}
    total = terms.pop("t_total_ms")
    overlap, _ = terms.pop("t_overlap_ms"), terms.pop("t_first_byte_ms")
    assert sum(terms.values()) - overlap == pytest.approx(total, abs=0.01)
    assert min(terms.values()) >= 0
    assert terms["t_write_ms"] > 0


@pytest.mark.parametrize(
    ("path", "body", "look"),
    [
        ("/v1/chat/completions", TALK, lambda it: it["choices"][0]["message"]["content"] == "to be or not"),
        ("/v1/completions", {"model": "echo", "prompt": "x"}, lambda it: it["choices"][0]["text"] == "x"),
        ("/v1/embeddings", {"model": "echo", "input": "x"}, lambda it: len(it["data"][0]["embedding"]) == 2),
        ("/chat/completions", TALK, lambda it: it["object"] == "chat.completion"),
    ],
)
async def test_routes_with_a_body_work_over_mqtt_as_over_http(
    lamp: Device, path: str, body: object, look: object
) -> None:
    assert look((await lamp.ask(path, body)).json)  # type: ignore[operator]


async def test_base64_embedding_over_mqtt_matches_http(lamp: Device) -> None:
    answer = await lamp.ask("/v1/embeddings", {"model": "echo", "input": "x", "encoding_format": "base64"})
    assert len(struct.unpack("<2f", base64.b64decode(answer.json["data"][0]["embedding"]))) == 2


async def test_form_is_recognised_by_its_mqtt_content_type(lamp: Device) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nnobody\r\n--x--\r\n'
    answer = await lamp.ask("/v1/audio/transcriptions", form, ContentType="multipart/form-data; boundary=x")
    assert answer.json["error"]["message"].startswith("the form has no file")


async def test_qos_0_request_is_answered(lamp: Device) -> None:
    assert (await lamp.ask("/v1/tasks/echo", 1, qos=0)).json == {"result": 1}


async def test_request_without_a_response_topic_is_run(lamp: Device, gateway: RunningGateway) -> None:
    await lamp.publish("edge-gateway/req/v1/tasks/tally", {"id": "a"})
    await gateway.line(door="mqtt", outcome="served")
    assert CountingBackend.runs["a"] == 1


async def test_user_properties_are_read_as_request_headers(lamp: Device, gateway: RunningGateway) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await lamp.ask("/v1/tasks/echo", 1, user=[("traceparent", trace)])
    assert (await gateway.line(door="mqtt"))["trace_id"] == trace.split("-")[1]
    answer = await lamp.ask("/v1/tasks/echo", 1, b"2", user=[("x-gateway-locality", "anywhere")])
    assert answer.json["error"]["param"] == "x-gateway-locality"


# ── common MQTT clients ──────────────────────────────────────────────────────────────────────────


@needs("mosquitto_rr", "mosquitto_pub")
async def test_mosquitto_rr_gets_its_response_over_mqtt_5(broker: Broker, gateway: RunningGateway) -> None:
    out = await run(
        "mosquitto_rr", "-V", "5", "-p", str(broker.port), "-q", "1", "-W", "10",
        "-t", "edge-gateway/req/v1/tasks/echo", "-e", "answers/rr", "-m", "[1]",
        "-D", "publish", "correlation-data", "7",
    )  # fmt: skip
    assert json.loads(out) == {"result": [1]}


@needs("mosquitto_rr", "mosquitto_pub")
async def test_mqtt_3_1_1_client_is_answered_on_its_reply_topic(broker: Broker, gateway: RunningGateway) -> None:
    out = await run(
        "mosquitto_rr", "-V", "311", "-p", str(broker.port), "-q", "1", "-W", "10",
        "-t", "edge-gateway/call/lamp/1/v1/tasks/echo", "-e", "edge-gateway/reply/lamp/1", "-m", "[1]",
    )  # fmt: skip
    assert json.loads(out) == {"result": [1]}


async def test_retained_message_on_the_response_topic_is_left_alone(broker: Broker, lamp: Device) -> None:
    await lamp.client.publish("edge-gateway/reply/lamp/1", b"junk", qos=1, retain=True)
    v311 = {"protocol": aiomqtt.ProtocolVersion.V311}
    async with device(broker.port, "edge-gateway/reply/lamp/1", **v311) as old:
        await old.wait_until(lambda heard: len(heard) == 1)
        await old.client.publish("edge-gateway/call/lamp/1/v1/tasks/echo", b"5", qos=1)
        heard = await old.wait_until(lambda heard: len(heard) == 2)
    assert [(answer.payload, answer.is_retained) for answer in heard] == [(b"junk", True), (b'{"result":5}', False)]
    async with device(broker.port, "edge-gateway/reply/#") as later:
        heard = await later.wait_until(lambda heard: len(heard) == 1)
    assert heard[0].payload == b"junk"  # the gateway left no retained message


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


async def test_stream_arrives_in_numbered_parts(lamp: Device, gateway: RunningGateway) -> None:
    parts = await streamed(lamp, "/v1/chat/completions", TALK | {"stream": True})
    assert [part.user["seq"] for part in parts] == [str(n) for n in range(len(parts))]
    assert ["final" in part.user for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[0].user["status"] == "200"
    assert {part.content_type for part in parts} == {"text/event-stream"}
    events = b"".join(part.payload for part in parts).decode().split("\n\n")
    said = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in said) == "to be or not"
    assert events[-3].startswith(": timing {")
    assert events[-2] == "data: [DONE]"
    assert (await gateway.line(door="mqtt"))["outcome"] == "served"


async def test_long_stream_arrives_complete_and_in_order(lamp: Device) -> None:
    parts = await streamed(lamp, "/v1/tasks/parts", {"n": 2000})
    text = b"".join(part.payload for part in parts).decode()
    assert [json.loads(event[6:])["part"] for event in text.split("\n\n") if event.startswith("data: {")] == [
        *range(2000)
    ]


async def test_stream_that_breaks_is_marked_as_aborted(lamp: Device, gateway: RunningGateway) -> None:
    parts = await streamed(lamp, "/v1/tasks/breaks", {})
    assert parts[-1].user["aborted"] == "true"
    text = b"".join(part.payload for part in parts)
    assert b"it broke in the middle" in text
    assert b"[DONE]" not in text
    assert (await gateway.line(door="mqtt"))["outcome"] == "failed"


async def test_stream_to_an_mqtt_3_1_1_client_arrives_as_one_message(broker: Broker, gateway: RunningGateway) -> None:
    async with device(broker.port, "edge-gateway/reply/lamp/#", protocol=aiomqtt.ProtocolVersion.V311) as old:
        await old.client.publish("edge-gateway/call/lamp/1/v1/tasks/parts", b'{"n":3}', qos=1)
        (answer,) = await old.wait_until(lambda heard: len(heard) == 1)
    assert answer.payload.count(b'{"part":') == 3
    assert answer.payload.endswith(b"data: [DONE]\n\n")


async def test_repeated_stream_request_is_answered_with_the_same_parts(lamp: Device) -> None:
    first = await streamed(lamp, "/v1/tasks/parts", {"n": 3})
    lamp.received.clear()
    again = await streamed(lamp, "/v1/tasks/parts", {"n": 3})
    assert [(part.payload, part.user) for part in again] == [(part.payload, part.user) for part in first]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/tasks/ech", 1, "404", "not_found"),
        ("/v1/nonsense", 1, "404", "not_found"),
        ("/v1/models", 1, "405", "method_not_allowed"),
        ("/livez", 1, "405", "method_not_allowed"),
        ("", 1, "404", "not_found"),
        ("/v1/tasks/%zz", 1, "400", "bad_request"),
        ("/v1/tasks/echo", b"{broken", "400", "bad_request"),
        ("/v1/tasks/echo", b"\xff\xfe", "400", "bad_request"),
        ("/v1/tasks/echo", b"[" * 100_000, "400", "bad_request"),
        ("/v1/chat/completions", {"model": "echo"}, "400", "bad_request"),
        ("/v1/chat/completions", TALK | {"model": "nobody"}, "404", "model_not_found"),
    ],
)
async def test_invalid_mqtt_request_gets_the_same_error_as_over_http(
    lamp: Device, gateway: RunningGateway, path: str, body: object, status: str, code: str
) -> None:
    answer = await lamp.ask(path, body)
    assert (answer.user["status"], answer.json["error"]["code"]) == (status, code)
    line = await gateway.line(door="mqtt")
    assert (line["status"], line["reason"]) == (int(status), code)


async def test_oversized_mqtt_body_is_answered_413(broker: Broker) -> None:
    async with (
        running_gateway(**ECHO, GATEWAY_MQTT__URL=broker.url, GATEWAY_MAX_BODY_BYTES="1000") as gateway,
        device(broker.port) as lamp,
    ):
        await gateway.line("mqtt.connected")
        answer = await lamp.ask("/v1/tasks/echo", "x" * 1000)
        assert (answer.user["status"], answer.json["error"]["code"]) == ("413", "body_too_large")


async def test_response_over_the_brokers_packet_limit_becomes_an_error() -> None:
    async with (
        running_broker(more="max_packet_size 5000") as broker,
        running_gateway(**COUNTING_BACKEND, GATEWAY_MQTT__URL=broker.url) as gateway,
        device(broker.port) as lamp,
    ):
        await gateway.line("mqtt.connected")
        answer = await lamp.ask("/v1/tasks/huge", {"bytes": 6000})
        assert (answer.user["status"], answer.json["error"]["code"]) == ("502", "upstream_bad_response")
        assert "5000" in (await gateway.line("mqtt.answer_refused"))["why"]
        assert (await lamp.ask("/v1/tasks/huge", {"bytes": 10}, b"2")).user["status"] == "200"
        assert len(gateway.lines.of("mqtt.connected")) == 1


async def test_message_expiry_interval_is_the_request_deadline(lamp: Device, gateway: RunningGateway) -> None:
    answer = await lamp.ask("/v1/tasks/hold", {"id": 1}, MessageExpiryInterval=1)
    assert (answer.user["status"], answer.json["error"]["code"]) == ("504", "deadline_exceeded")
    assert (await gateway.line(door="mqtt"))["outcome"] == "timed_out"


async def test_expired_request_is_dropped_and_logged(gateway: RunningGateway) -> None:
    settled: list[bool] = []
    message = Message(topic="edge-gateway/req/v1/tasks/tally", payload=b'{"id":"a"}', qos=1, mid=1, expiry_s=0)
    assert gateway.service.mqtt is not None
    gateway.service.mqtt._on_message(Delivery(message, lambda: settled.append(True), asyncio.Event()))
    assert (await gateway.line("mqtt.expired"))["topic"] == message.topic
    assert settled == [True]
    assert CountingBackend.runs["a"] == 0
    assert gateway.lines.of("request.finished") == []


@pytest.mark.parametrize("response", ["edge-gateway/req/v1/tasks/tally", "edge-gateway/call/a/1/v1/tasks/tally"])
async def test_response_topic_that_is_a_request_topic_is_rejected(
    lamp: Device, gateway: RunningGateway, response: str
) -> None:
    await lamp.send("/v1/tasks/tally", {"id": "a"}, ResponseTopic=response)
    assert response.rpartition("/")[0].split("/")[1] in (await gateway.line("mqtt.rejected"))["why"]
    assert (await lamp.ask("/v1/tasks/echo", 1)).json == {"result": 1}  # and the rejected message was acknowledged
    assert CountingBackend.runs["a"] == 0


async def test_message_on_an_invalid_request_topic_is_rejected_and_logged(
    lamp: Device, gateway: RunningGateway
) -> None:
    await lamp.publish("edge-gateway/call/lamp", b"x")
    assert "CLIENT/ID" in (await gateway.line("mqtt.rejected"))["why"]
    assert (await lamp.ask("/v1/tasks/echo", 1)).json == {"result": 1}


async def test_qos_0_messages_over_the_limit_are_answered_503_with_retry_after(
    lamp: Device, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ingress.mqtt.adapter.MAX_QOS_0", 2)
    for n in range(2):
        await lamp.send("/v1/tasks/hold", {"id": n}, str(n).encode(), qos=0)
    await CountingBackend.held.wait()
    answer = await lamp.ask("/v1/tasks/echo", 1, b"x", qos=0)
    assert (answer.user["status"], answer.user["Retry-After"]) == ("503", "1")
    assert (await lamp.ask("/v1/tasks/echo", 1, b"y", qos=1)).user["status"] == "200"
    CountingBackend.open.set()


async def test_request_that_kills_its_worker_is_answered_once_and_not_redelivered(broker: Broker) -> None:
    tool = {"GATEWAY_BACKENDS__TOOL__PLUGIN": "support.worker_backends:Tool", "GATEWAY_MQTT__URL": broker.url}
    async with device(broker.port) as lamp:
        async with running_gateway(**tool) as gateway:
            await gateway.line("mqtt.connected")
            await lamp.send("/v1/tasks/segfault", {})
            (*_, last) = await lamp.wait_until(lambda heard: any("final" in part.user for part in heard))
            assert last.user["aborted"] == "true"
            await gateway.line("worker.died")
        async with running_gateway(**tool) as gateway:
            assert (await gateway.line("mqtt.connected"))["resumed"] is True
            assert (await lamp.ask("/v1/tasks/json", {"x": 1}, b"2")).json == {"x": 1}
            assert len(gateway.lines.of("request.finished")) == 1


@pytest.mark.parametrize("more", [" ", " HTTP/1.1", ";x", "?a b"])
async def test_topic_with_characters_not_allowed_in_a_path_is_400(lamp: Device, more: str) -> None:
    refused = await lamp.ask(f"/v1/images/edits{more}", {"model": "echo"})
    assert (refused.user["status"], refused.json["error"]["code"]) == ("400", "bad_request")


async def test_non_ascii_topic_is_accepted_as_a_task_name(lamp: Device) -> None:
    refused = await lamp.ask("/v1/tasks/caf\u00e9", {})
    assert (refused.user["status"], refused.json["error"]["code"]) == ("404", "not_found")
    assert "caf\u00e9" in refused.json["error"]["message"]


# ── keys and broker accounts ─────────────────────────────────────────────────────────────────────


async def test_rules_of_the_configured_mqtt_key_apply(broker: Broker, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    write_keys(keys, {"mqtt": Key(sha256=hash_of("secret"), tasks=("echo",))})
    with_keys = {"GATEWAY_KEYS_FILE": str(keys), "GATEWAY_MQTT__KEY": "mqtt", "GATEWAY_MQTT__URL": broker.url}
    async with running_gateway(**ECHO, **COUNTING_BACKEND, **with_keys) as gateway, device(broker.port) as lamp:
        await gateway.line("mqtt.connected")
        assert (await lamp.ask("/v1/tasks/echo", 1)).user["status"] == "200"
        refused = await lamp.ask("/v1/tasks/tally", {"id": 1}, b"2")
        assert (refused.user["status"], refused.json["error"]["code"]) == ("403", "forbidden")


async def test_each_device_receives_its_own_responses_on_a_broker_with_acls() -> None:
    lamp_is = {"username": "lamp", "password": PASSWORDS["lamp"]}
    ours = {"GATEWAY_MQTT__USERNAME": "edge-gateway", "GATEWAY_MQTT__PASSWORD": PASSWORDS["edge-gateway"]}
    async with (
        running_broker(anonymous=False) as broker,
        running_gateway(**ECHO, **ours, GATEWAY_MQTT__URL=broker.url) as gateway,
        device(broker.port, "edge-gateway/reply/lamp/#", **lamp_is) as lamp,
        device(broker.port, "edge-gateway/reply/lamp/#", username="meter", password=PASSWORDS["meter"]) as meter,
    ):
        await gateway.line("mqtt.connected")
        own = {"ResponseTopic": "edge-gateway/reply/lamp/1"}
        assert (await lamp.ask("/lamp/v1/tasks/echo", 1, **own)).json == {"result": 1}
        await meter.client.subscribe("edge-gateway/reply/meter/#", qos=1)
        await meter.publish("edge-gateway/req/meter/v1/tasks/echo", 2, ResponseTopic="edge-gateway/reply/meter/1")
        assert [answer.json for answer in await meter.wait_until(lambda heard: len(heard) == 1)] == [{"result": 2}]


# ── presence and telemetry ───────────────────────────────────────────────────────────────────────


async def test_retained_status_is_online_while_serving_and_offline_after_the_stop(broker: Broker) -> None:
    async with running_gateway(**ECHO, GATEWAY_MQTT__URL=broker.url) as gateway:
        await gateway.line("mqtt.connected")
        host = gateway.service.mqtt.session.topics.host  # type: ignore[union-attr]
        async with device(broker.port, "edge-gateway/status/+") as watcher:
            (status,) = await watcher.wait_until(lambda heard: len(heard) == 1)
        assert (status.topic, status.payload, status.is_retained) == (f"edge-gateway/status/{host}", b"online", True)
    async with device(broker.port, "edge-gateway/status/+") as watcher:
        (status,) = await watcher.wait_until(lambda heard: len(heard) == 1)
    assert (status.payload, status.is_retained) == (b"offline", True)


async def test_telemetry_is_published_at_the_configured_interval(broker: Broker) -> None:
    faster = {"GATEWAY_MQTT__TELEMETRY_S": "0.05", "GATEWAY_MQTT__URL": broker.url, "GATEWAY_MQTT__PREFIX": "site/7"}
    async with device(broker.port, "site/7/telemetry/+") as watcher, running_gateway(**ECHO, **faster):
        said = [answer.json for answer in await watcher.wait_until(lambda heard: len(heard) == 3)]
    assert said[0]["ts"] < said[1]["ts"] < said[2]["ts"]
    assert said[-1]["ready"] is True
    assert set(said[-1]["load"]) >= {"cpu", "psi", "mem", "temp_c"}
    e = said[-1]["backends"]["e"]
    assert (e["site"], e["state"], e["breaker"], e["busy"], e["waiting"]) == ("edge", "serving", "closed", 0, 0)
    assert {"rtt_ms", "uplink_bytes_per_s", "downlink_bytes_per_s", "link_state", "slots"} <= e.keys()


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────


async def test_running_request_is_answered_at_a_stop_and_a_later_one_stays_queued(broker: Broker) -> None:
    with_broker = COUNTING_BACKEND | {"GATEWAY_MQTT__URL": broker.url}
    async with device(broker.port) as lamp:
        async with running_gateway(**with_broker) as gateway:
            await gateway.line("mqtt.connected")
            await lamp.send("/v1/tasks/hold", {"id": "a"}, b"a")
            await CountingBackend.held.wait()
            stopping = asyncio.create_task(gateway.service.stop())
            await asyncio.sleep(0)  # lets the stop begin
            await lamp.send("/v1/tasks/tally", {"id": "b"}, b"b")
            CountingBackend.open.set()
            await stopping
            assert [answer.correlation for answer in lamp.received] == [b"a"]
            assert CountingBackend.runs["b"] == 0
            gateway.service.stop = _nothing  # type: ignore[method-assign]
        async with running_gateway(**with_broker) as gateway:
            await lamp.wait_until(lambda heard: [answer.correlation for answer in heard] == [b"a", b"b"])
            assert CountingBackend.runs == {"b": 1}


async def _nothing() -> None:
    """Replace `stop` after the test has stopped the service."""
