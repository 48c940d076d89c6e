"""Request topics, and the response topics that are allowed."""

from __future__ import annotations

import pytest

from gateway.ingress.mqtt.messages import Message
from gateway.ingress.mqtt.request import Rejected, Topics

OURS = Topics(host="box")


def message(topic: str, response_topic: str | None = "a/b") -> Message:
    return Message(topic=topic, payload=b"", qos=1, mid=1, response_topic=response_topic)


def test_client_id_and_topics_contain_the_host_name() -> None:
    assert OURS.client_id == "edge-gateway-box"
    assert OURS.status == "edge-gateway/status/box"
    assert OURS.telemetry == "edge-gateway/telemetry/box"
    assert OURS.subscriptions == ("$share/edge-gateway/edge-gateway/req/#", "$share/edge-gateway/edge-gateway/call/#")
    site = Topics(prefix="site/7", group="press", host="box")
    assert site.subscriptions[0] == "$share/press/site/7/req/#"
    assert site.client_id == "edge-gateway-box"


def test_request_topic_after_the_prefix_is_the_path() -> None:
    address = OURS.parse(message("edge-gateway/req/v1/tasks/add"))
    assert (address.target, address.response_topic, address.takes_parts) == ("/v1/tasks/add", "a/b", True)


def test_call_topic_contains_client_and_call_id() -> None:
    address = OURS.parse(message("edge-gateway/call/lamp/42/v1/tasks/add", None))
    assert (address.target, address.response_topic) == ("/v1/tasks/add", "edge-gateway/reply/lamp/42")
    assert not address.takes_parts


def test_request_without_a_response_topic_has_no_reply_address() -> None:
    assert OURS.parse(message("edge-gateway/req/v1/tasks/add", None)).response_topic is None


@pytest.mark.parametrize("topic", ["edge-gateway/req", "edge-gateway/req/", "edge-gateway/call/lamp/42"])
def test_topic_without_a_path_targets_the_root(topic: str) -> None:
    assert OURS.parse(message(topic)).target == "/"


@pytest.mark.parametrize("topic", ["", "else/req/v1", "edge-gateway/status/box", "edge-gateway", "edge-gateway/"])
def test_topic_outside_the_prefix_is_rejected(topic: str) -> None:
    with pytest.raises(Rejected, match="topic"):
        OURS.parse(message(topic))


@pytest.mark.parametrize("rest", ["", "/", "lamp", "lamp/", "/42/v1/tasks/add", "lamp//v1/tasks/add"])
def test_call_topic_without_client_or_id_is_rejected(rest: str) -> None:
    with pytest.raises(Rejected, match="CLIENT/ID"):
        OURS.parse(message(f"edge-gateway/call/{rest}", None))


@pytest.mark.parametrize(
    ("response_topic", "why"),
    [
        ("a/+/b", "wildcards"),
        ("a/#", "wildcards"),
        ("$SYS/broker", "reserved for the broker"),
        ("$share/g/t", "reserved for the broker"),
        ("edge-gateway/req/v1/tasks/add", "edge-gateway/req"),
        ("edge-gateway/req", "edge-gateway/req"),
        ("edge-gateway/call/a/b/v1", "edge-gateway/call"),
        ("edge-gateway/status/box", "edge-gateway/status"),
        ("edge-gateway/telemetry/box", "edge-gateway/telemetry"),
        ("edge-gateway/reply/a", "edge-gateway/req/CLIENT/v1"),
        ("edge-gateway", "reserved"),
        ("", "not a valid topic"),
        ("a\0b", "not a valid topic"),
        ("x" * 65_536, "not a valid topic"),
    ],
)
def test_response_topic_that_is_reserved_or_invalid_is_rejected(response_topic: str, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        OURS.parse(message("edge-gateway/req/v1/tasks/add", response_topic))


@pytest.mark.parametrize("response_topic", ["edge-gateway-2/reply/a", "edge-gateway-2/req", "x", "x/edge-gateway/req"])
def test_other_response_topics_are_accepted(response_topic: str) -> None:
    assert OURS.parse(message("edge-gateway/req/v1/tasks/add", response_topic)).response_topic == response_topic


def test_request_topic_may_name_the_client_before_the_path() -> None:
    address = OURS.parse(message("edge-gateway/req/lamp/v1/tasks/add", "edge-gateway/reply/lamp/1"))
    assert (address.target, address.response_topic) == ("/v1/tasks/add", "edge-gateway/reply/lamp/1")
    assert address.takes_parts
    assert OURS.parse(message("edge-gateway/req/lamp/v1/tasks/add", None)).response_topic is None


@pytest.mark.parametrize("topic", ["edge-gateway/req/v1/v1/tasks/add", "edge-gateway/req//v1/tasks/add"])
def test_request_topic_without_a_client_is_a_path(topic: str) -> None:
    assert OURS.parse(message(topic)).target == topic.removeprefix("edge-gateway/req")
