"""Detection of repeated requests, and limits of the stored responses."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from gateway.ingress.mqtt import deduplication as rules
from gateway.ingress.mqtt.connection import Delivery
from gateway.ingress.mqtt.deduplication import PendingRequest, RequestHistory, identity_of
from gateway.ingress.mqtt.messages import Message, Publication
from gateway.ingress.mqtt.request import Topics
from gateway.testing import FakeClock

TOPICS = Topics(host="box")


def request(body: bytes = b"1", *, correlation: bytes | None = b"c", response: str = "r", **more: object) -> Message:
    told = {"topic": "edge-gateway/req/v1/tasks/add", "qos": 1, "mid": 1} | more
    return Message(payload=body, correlation=correlation, response_topic=response, **told)  # type: ignore[arg-type]


def call(call_id: str, body: bytes = b"1") -> Message:
    return Message(topic=f"edge-gateway/call/lamp/{call_id}/v1/tasks/add", payload=body, qos=1, mid=1)


def known(memory: RequestHistory, message: Message) -> PendingRequest | None:
    return memory.find(message, identity_of(message, TOPICS.parse(message)))


def answered(memory: RequestHistory, message: Message, size: int = 0, *, invites_retry: bool = False) -> None:
    identity = identity_of(message, TOPICS.parse(message))
    exchange = memory.begin(identity)
    exchange.on("start")
    exchange.on_published(Publication(topic="r", payload=b"x" * size))
    memory.finish(identity, exchange, exchange.outcome(invites_retry=invites_retry))


def test_joined_deliveries_are_acknowledged_unless_their_connection_was_lost() -> None:
    exchange, settled, lost = PendingRequest(), list[str](), asyncio.Event()
    exchange.join(Delivery(request(), lambda: settled.append("old"), lost))
    lost.set()
    for name in ("new", "newer"):
        exchange.join(Delivery(request(), partial(settled.append, name), asyncio.Event()))
    exchange.acknowledge()
    exchange.acknowledge()
    assert settled == ["new", "newer"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def memory(clock: FakeClock) -> RequestHistory:
    return RequestHistory(clock)


@pytest.mark.parametrize(
    "other",
    [
        request(correlation=b"d"),
        request(response="s"),
        request(b"2"),
        request(topic="edge-gateway/req/v1/tasks/sub"),
        call("1"),
    ],
)
def test_message_that_differs_in_any_field_is_another_request(memory: RequestHistory, other: Message) -> None:
    answered(memory, request())
    assert known(memory, request(mid=2)) is not None
    assert known(memory, other) is None


def test_call_with_the_same_id_and_body_is_a_repeat(memory: RequestHistory) -> None:
    answered(memory, call("1"))
    assert known(memory, call("1")) is not None
    assert known(memory, call("2")) is None
    assert known(memory, call("1", b"2")) is None


def test_message_without_correlation_data_repeats_only_as_a_broker_redelivery(memory: RequestHistory) -> None:
    answered(memory, request(correlation=None, mid=7))
    assert known(memory, request(correlation=None, mid=7)) is None
    assert known(memory, request(correlation=None, mid=8, is_duplicate=True)) is None
    assert known(memory, request(correlation=None, mid=7, is_duplicate=True)) is not None


def test_running_request_is_joined_and_an_abandoned_request_is_forgotten(memory: RequestHistory) -> None:
    identity = identity_of(request(), TOPICS.parse(request()))
    exchange = memory.begin(identity)
    assert known(memory, request()) is exchange
    memory.finish(identity, exchange, "expire")
    assert not exchange.is_open
    assert known(memory, request()) is None


def test_client_retry_after_a_retry_later_response_is_run_but_redelivery_is_not(memory: RequestHistory) -> None:
    answered(memory, request(mid=7), invites_retry=True)
    assert known(memory, request(mid=7, is_duplicate=True)) is not None
    assert known(memory, request(mid=8)) is None
    identity = identity_of(request(), TOPICS.parse(request()))
    exchange = memory.begin(identity)
    exchange.on("start")
    assert known(memory, request(mid=9)) is exchange
    memory.finish(identity, exchange, "answer")
    assert known(memory, request(mid=10)) is exchange


def test_response_is_stored_as_long_as_the_broker_keeps_the_session(memory: RequestHistory, clock: FakeClock) -> None:
    answered(memory, request())
    clock.move(rules.KEEP_S - 1)
    assert known(memory, request()) is not None
    clock.move(2)
    assert known(memory, request()) is None


def test_oldest_responses_are_evicted_when_the_byte_limit_is_reached(memory: RequestHistory) -> None:
    third = rules.MAX_BYTES // 3
    for name in (b"a", b"b", b"c"):
        answered(memory, request(name), third)
    assert known(memory, request(b"a")) is None
    assert known(memory, request(b"b")) is not None
    assert known(memory, request(b"c")) is not None


def test_number_of_stored_responses_is_bounded(memory: RequestHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_RESPONSES", 10)
    for n in range(20):
        answered(memory, request(str(n).encode()))
    assert [n for n in range(20) if known(memory, request(str(n).encode()))] == list(range(10, 20))


def test_response_larger_than_the_byte_limit_is_not_stored(memory: RequestHistory) -> None:
    answered(memory, request(b"small"))
    answered(memory, request(), rules.MAX_BYTES)
    assert known(memory, request()) is None
    assert known(memory, request(b"small")) is not None


def test_response_to_the_same_request_counts_once_towards_the_limit(memory: RequestHistory) -> None:
    for _ in range(10):
        answered(memory, request(), rules.MAX_BYTES // 4)
    answered(memory, request(b"other"), rules.MAX_BYTES // 4)
    assert known(memory, request()) is not None
