"""Messages as requests, publications as packets, reconnect back-off."""

from __future__ import annotations

import pytest
from paho.mqtt.client import MQTTMessage

from gateway.ingress.mqtt.messages import Message, Publication, clean_text, message_of
from gateway.ingress.mqtt.request import body_of, headers_of
from gateway.ingress.mqtt.session import STABLE_S, Backoff
from gateway.plugin import GatewayError


def message(**more: object) -> Message:
    told = {"topic": "t", "payload": b"body", "qos": 1, "mid": 1} | more
    return Message(**told)  # type: ignore[arg-type]


def test_only_documented_headers_are_read_from_user_properties() -> None:
    user = (("X-Gateway-Locality", "edge-only"), ("traceparent", "t"), ("authorization", "Bearer x"), ("cookie", "c"))
    headers = headers_of(message(user=user, content_type="application/json"))
    assert headers == {"x-gateway-locality": "edge-only", "traceparent": "t", "content-type": "application/json"}


@pytest.mark.parametrize(
    ("asked", "expiry_s", "deadline_ms"),
    [
        (None, 2, "2000"),
        ("500", 2, "500"),
        ("5000", 2, "2000"),
        ("500", None, "500"),
        ("soon", 2, "soon"),
        ("1_0", 2, "1_0"),
    ],
)
def test_message_expiry_becomes_a_deadline(asked: str | None, expiry_s: int | None, deadline_ms: str) -> None:
    user = (("x-gateway-deadline-ms", asked),) if asked else ()
    assert headers_of(message(user=user, expiry_s=expiry_s))["x-gateway-deadline-ms"] == deadline_ms


@pytest.mark.parametrize("waited_s", [0.9996, 1.0, 1.5])
def test_deadline_from_message_expiry_is_at_least_one_millisecond(waited_s: float) -> None:
    assert headers_of(message(expiry_s=1), waited_s)["x-gateway-deadline-ms"] == "1"


def test_body_larger_than_the_limit_is_refused_with_the_limit() -> None:
    assert body_of(message(), 4, is_too_many=False) == b"body"
    with pytest.raises(GatewayError, match="larger than 3 bytes") as caught:
        body_of(message(), 3, is_too_many=False)
    assert caught.value.code == "body_too_large"


def test_excess_concurrent_requests_are_refused_with_retry_after() -> None:
    with pytest.raises(GatewayError) as caught:
        body_of(message(), 4, is_too_many=True)
    assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 1.0)


def test_topic_that_is_not_utf_8_is_read_as_empty() -> None:
    got = MQTTMessage(mid=3, topic=b"edge-gateway/req/\xff")
    got.properties = None
    assert message_of(got).topic == ""


def test_publication_properties_contain_its_fields() -> None:
    it = Publication(
        topic="t", payload=b"", correlation=b"\0\1", content_type="text/plain", user=(("a", "1"), ("b", "2"))
    )
    packed = it.properties()
    assert packed.CorrelationData == b"\0\1"
    assert packed.ContentType == "text/plain"
    assert packed.UserProperty == [("a", "1"), ("b", "2")]
    assert Publication(topic="t", payload=b"").properties().isEmpty()


@pytest.mark.parametrize(("text", "cleaned"), [("a\0b", "ab"), ("\ud800", "?"), ("é" * 40_000, "é" * 32_767)])
def test_clean_text_makes_any_text_a_valid_property(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_backoff_doubles_up_to_the_maximum_and_resets_after_a_good_connection() -> None:
    backoff = Backoff(uniform=lambda low, high: high)
    assert [backoff.next(0.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.next(STABLE_S) == 0.5
    assert backoff.next(STABLE_S / 2) == 1.0


def test_jitter_is_drawn_from_the_whole_interval() -> None:
    backoff = Backoff(uniform=lambda low, high: low)
    assert backoff.next(0.0) == 0.0
