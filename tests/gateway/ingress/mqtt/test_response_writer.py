"""Responses as MQTT messages: whole, in parts, collected, aborted."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.ingress.mqtt import response_writer as rules
from gateway.ingress.mqtt.connection import PublishRefused
from gateway.ingress.mqtt.messages import Message, Publication
from gateway.ingress.mqtt.request import Address
from gateway.ingress.mqtt.response_writer import MqttResponseWriter
from gateway.plugin import GatewayError

HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "x-request-id": "7"}


class Post:
    """Collects publications; `send` blocks while `is_open` is not set."""

    def __init__(self) -> None:
        self.sent: list[Publication] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.refuses_over = float("inf")

    async def send(self, it: Publication) -> None:
        await self.is_open.wait()
        if len(it.payload) > self.refuses_over:
            raise PublishRefused("Packet too large")
        self.sent.append(it)

    def said(self, name: str) -> list[str | None]:
        return [dict(it.user).get(name) for it in self.sent]


def reply_to(post: Post, *, in_parts: bool = True, answer_to: str | None = "r", qos: int = 1) -> MqttResponseWriter:
    message = Message(topic="t", payload=b"", qos=qos, mid=1, correlation=b"c")
    return MqttResponseWriter(message, Address(target="/", response_topic=answer_to, takes_parts=in_parts), post.send)


async def test_whole_response_is_one_message_with_status_and_headers() -> None:
    post = Post()
    await reply_to(post, qos=0).send(200, {"Content-Type": "application/json", "x-request-id": "7"}, b"{}")
    (it,) = post.sent
    assert (it.topic, it.payload, it.qos, it.retain, it.correlation) == ("r", b"{}", 0, False, b"c")
    assert it.content_type == "application/json"
    assert it.user == (("status", "200"), ("x-request-id", "7"))


async def test_stream_parts_are_numbered_and_only_the_last_is_final() -> None:
    post = Post()
    reply = reply_to(post)
    await reply.begin(200, HEADERS)
    for data in (b"a", b"b", b"c"):
        await reply.write(data)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await reply.write(b"end")
    await reply.end()
    assert b"".join(it.payload for it in post.sent) == b"abcend"
    assert post.said("seq") == [str(n) for n in range(len(post.sent))]
    assert post.said("final") == [None] * (len(post.sent) - 1) + ["true"]
    assert post.sent[-1].payload.endswith(b"end")
    assert post.said("x-request-id") == ["7"] + [None] * (len(post.sent) - 1)
    assert {it.content_type for it in post.sent} == {"text/event-stream"}
    assert "cache-control" not in {name.lower() for name, _ in post.sent[0].user}


async def test_data_written_while_a_part_is_in_flight_is_merged_into_the_next() -> None:
    post = Post()
    reply = reply_to(post)
    post.is_open.clear()
    await reply.begin(200, HEADERS)
    for data in (b"a", b"b", b"c"):
        await reply.write(data)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    post.is_open.set()
    await reply.end()
    assert [it.payload for it in post.sent] == [b"a", b"bc"]
    assert post.said("final") == [None, "true"]


async def test_stream_write_blocks_while_the_broker_accepts_nothing() -> None:
    post = Post()
    reply = reply_to(post)
    post.is_open.clear()
    await reply.begin(200, HEADERS)
    await reply.write(b"a")
    await asyncio.sleep(0)
    writing = asyncio.create_task(reply.write(b"x" * (rules.MAX_AHEAD_BYTES + 1)))
    done, _ = await asyncio.wait({writing}, timeout=0.01)
    assert not done
    post.is_open.set()
    await writing
    await reply.end()
    assert sum(len(it.payload) for it in post.sent) == rules.MAX_AHEAD_BYTES + 2


async def test_stream_write_raises_when_the_broker_refuses_a_part() -> None:
    post = Post()
    post.refuses_over = 0
    reply = reply_to(post)
    await reply.begin(200, HEADERS)
    await reply.write(b"a")
    with pytest.raises(PublishRefused):
        await reply.write(b"x" * (rules.MAX_AHEAD_BYTES + 1))


async def test_aborted_stream_marks_its_last_part_as_aborted() -> None:
    post = Post()
    reply = reply_to(post)
    await reply.begin(200, HEADERS)
    await reply.write(b"a")
    await reply.abort(b"error")
    assert post.said("final")[-1] == "true"
    assert post.said("aborted")[-1] == "true"
    assert b"".join(it.payload for it in post.sent) == b"aerror"


async def test_stream_without_parts_is_one_message_at_its_end() -> None:
    post = Post()
    reply = reply_to(post, in_parts=False)
    await reply.begin(200, HEADERS)
    await reply.write(b"a")
    await reply.write(b"b")
    assert post.sent == []
    await reply.end()
    assert [it.payload for it in post.sent] == [b"ab"]
    assert post.said("seq") == [None]


async def test_aborted_stream_without_parts_sends_only_its_error() -> None:
    post = Post()
    reply = reply_to(post, in_parts=False)
    await reply.begin(200, HEADERS)
    await reply.write(b"half an ans")
    await reply.abort(b"error")
    assert [it.payload for it in post.sent] == [b"error"]


async def test_stream_without_parts_fails_when_it_exceeds_the_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_COLLECTED_BYTES", 10)
    reply = reply_to(Post(), in_parts=False)
    await reply.begin(200, HEADERS)
    with pytest.raises(GatewayError, match="10 bytes"):
        await reply.write(b"x" * 11)


async def test_response_refused_by_the_broker_is_replaced_by_an_error_message() -> None:
    post = Post()
    post.refuses_over = 1000
    with pytest.raises(PublishRefused):
        await reply_to(post).send(200, HEADERS, b"x" * 2000)
    (it,) = post.sent
    assert dict(it.user)["status"] == "502"
    assert msgspec.json.decode(it.payload)["error"]["code"] == "upstream_bad_response"


@pytest.mark.parametrize("in_parts", [True, False])
async def test_no_message_is_sent_without_a_response_topic(in_parts: bool) -> None:
    post = Post()
    await reply_to(post, answer_to=None).send(200, HEADERS, b"{}")
    reply = reply_to(post, answer_to=None, in_parts=in_parts)
    await reply.begin(200, HEADERS)
    await reply.write(b"x" * 100_000)
    await reply.end()
    assert post.sent == []
