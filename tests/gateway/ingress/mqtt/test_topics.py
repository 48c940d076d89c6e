"""What a topic asks for, and where answers may go."""

from __future__ import annotations

import pytest

from gateway.ingress.mqtt.properties import Message
from gateway.ingress.mqtt.topics import Rejected, Topics

OURS = Topics(host="box")


def message(topic: str, response_topic: str | None = "a/b") -> Message:
    return Message(topic=topic, payload=b"", qos=1, mid=1, response_topic=response_topic)


def test_a_gateway_is_known_by_its_host() -> None:
    assert OURS.client_id == "edge-gateway-box"
    assert OURS.status == "edge-gateway/status/box"
    assert OURS.telemetry == "edge-gateway/telemetry/box"
    assert OURS.subscriptions == ("$share/edge-gateway/edge-gateway/req/#", "$share/edge-gateway/edge-gateway/call/#")
    site = Topics(prefix="site/7", group="press", host="box")
    assert site.subscriptions[0] == "$share/press/site/7/req/#"
    assert site.client_id == "edge-gateway-box"


def test_the_rest_of_a_request_topic_is_the_path() -> None:
    address = OURS.read(message("edge-gateway/req/v1/tasks/add"))
    assert (address.target, address.answer_to, address.in_parts) == ("/v1/tasks/add", "a/b", True)


def test_a_call_says_who_asks_and_which_of_its_calls_it_is() -> None:
    address = OURS.read(message("edge-gateway/call/lamp/42/v1/tasks/add", None))
    assert (address.target, address.answer_to) == ("/v1/tasks/add", "edge-gateway/reply/lamp/42")
    assert not address.in_parts


def test_a_request_without_a_response_topic_wants_no_answer() -> None:
    assert OURS.read(message("edge-gateway/req/v1/tasks/add", None)).answer_to is None


@pytest.mark.parametrize("topic", ["edge-gateway/req", "edge-gateway/req/", "edge-gateway/call/lamp/42"])
def test_a_topic_without_a_path_asks_for_what_is_not_there(topic: str) -> None:
    assert OURS.read(message(topic)).target == "/"


@pytest.mark.parametrize("topic", ["", "else/req/v1", "edge-gateway/status/box", "edge-gateway", "edge-gateway/"])
def test_a_topic_that_is_not_ours_is_rejected(topic: str) -> None:
    with pytest.raises(Rejected, match="topic"):
        OURS.read(message(topic))


@pytest.mark.parametrize("rest", ["", "/", "lamp", "lamp/", "/42/v1/tasks/add", "lamp//v1/tasks/add"])
def test_a_call_nobody_could_be_answered_on_is_rejected(rest: str) -> None:
    with pytest.raises(Rejected, match="CLIENT/ID"):
        OURS.read(message(f"edge-gateway/call/{rest}", None))


@pytest.mark.parametrize(
    ("response_topic", "why"),
    [
        ("a/+/b", "wildcards"),
        ("a/#", "wildcards"),
        ("$SYS/broker", "the broker's"),
        ("$share/g/t", "the broker's"),
        ("edge-gateway/req/v1/tasks/add", "edge-gateway/req"),
        ("edge-gateway/req", "edge-gateway/req"),
        ("edge-gateway/call/a/b/v1", "edge-gateway/call"),
        ("edge-gateway/status/box", "edge-gateway/status"),
        ("edge-gateway/telemetry/box", "edge-gateway/telemetry"),
        ("", "no topic"),
        ("a\0b", "no topic"),
        ("x" * 65_536, "no topic"),
    ],
)
def test_an_answer_never_goes_where_it_would_do_harm(response_topic: str, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        OURS.read(message("edge-gateway/req/v1/tasks/add", response_topic))


@pytest.mark.parametrize("response_topic", ["edge-gateway/reply/a", "edge-gateway/requests", "edge-gateway-2/req", "x"])
def test_any_other_response_topic_is_good(response_topic: str) -> None:
    assert OURS.read(message("edge-gateway/req/v1/tasks/add", response_topic)).answer_to == response_topic
