"""The end of a drain: unfinished requests get an error, late requests are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.testing import RunningGateway, running_gateway
from support.broker import running_broker
from support.chat_streams import all_events, next_event
from support.mqtt_backend import COUNTING_BACKEND, CountingBackend
from support.mqtt_clients import device
from support.polling import wait_until
from support.programs import needs
from support.raw import connected, post, read_answer, read_head
from support.stub_backend import StubBackend
from support.wiring import STUB

WAIT = post("/v1/tasks/wait", b"{}")


@asynccontextmanager
async def to_be_stopped(**environ: str) -> AsyncIterator[RunningGateway]:
    """Run a gateway that the test stops itself."""
    async with running_gateway(**environ) as gateway:
        yield gateway
        gateway.service.stop = _nothing  # type: ignore[method-assign]


async def _nothing() -> None:
    """Replace `stop` after the test has stopped the service."""


@pytest.fixture
def no_drain_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give running requests no time to finish at a stop."""
    monkeypatch.setattr("gateway.service.service.DRAIN_S", 0.0)


@pytest.mark.usefixtures("no_drain_time")
async def test_request_unfinished_at_the_end_of_a_drain_is_answered_503() -> None:
    async with to_be_stopped(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        await gateway.service.stop()
        answer = await read_answer(reader)
        assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
        assert answer.json["error"]["retryable"] is True
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
        line = await gateway.line()
        assert (line["status"], line["outcome"], line["reason"]) == (503, "failed", "unavailable")


@pytest.mark.usefixtures("no_drain_time")
async def test_stream_unfinished_at_the_end_of_a_drain_ends_in_an_error() -> None:
    async with to_be_stopped(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/pause", b"{}"))
        status, _ = await read_head(reader)
        first = await next_event(reader)
        await gateway.service.stop()
        (said,), is_whole = await all_events(reader)
        assert (status, first, is_whole) == (200, 'data: {"part":1}', False)
        assert '"code":"unavailable"' in said
        line = await gateway.line()
        assert (line["status"], line["outcome"]) == (200, "failed")


async def test_request_that_arrives_during_a_drain_is_served_within_the_drain_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.service.listeners.FINISH_S", 0.0)
    async with (
        to_be_stopped(**STUB, **COUNTING_BACKEND) as gateway,
        connected(gateway.url) as (first, to_first),
        connected(gateway.url) as (late, to_late),
    ):
        to_first.write(post("/v1/tasks/wait", b'{"who":"first"}'))
        await StubBackend.callers["first"].wait()
        stopping = asyncio.create_task(gateway.service.stop())
        http = gateway.service.listeners.http
        await wait_until(lambda: http is not None and http.is_draining)
        to_late.write(post("/v1/tasks/hold", b'{"id":"late"}'))
        await CountingBackend.held.wait()
        StubBackend.open.set()
        assert (await read_answer(first)).status == 200
        await wait_until(lambda: not gateway.service.listeners.sites[0].is_accepting)
        for _ in range(10):  # lets a wrong cancellation begin
            await asyncio.sleep(0)
        CountingBackend.open.set()
        assert (await read_answer(late)).status == 200
        await stopping


@pytest.mark.usefixtures("no_drain_time")
@needs("mosquitto")
async def test_mqtt_request_unfinished_at_a_stop_is_redelivered_after_the_restart() -> None:
    async with running_broker() as broker, device(broker.port) as lamp:
        with_broker = COUNTING_BACKEND | {"GATEWAY_MQTT__URL": broker.url}
        async with to_be_stopped(**with_broker) as gateway:
            await gateway.line("mqtt.connected")
            await lamp.send("/v1/tasks/hold", {"id": "a"}, b"a")
            await CountingBackend.held.wait()
            await gateway.service.stop()
            line = await gateway.line()
            assert (line["status"], line["outcome"]) == (None, "failed")
            assert lamp.received == []
        async with running_gateway(**with_broker):
            await CountingBackend.held.wait()
            CountingBackend.open.set()
            await lamp.wait_until(lambda heard: [answer.correlation for answer in heard] == [b"a"])
