"""Limits on memory, time, slow clients and log lines."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from gateway.ingress.http import body, response_writer, server
from gateway.plugin import DeadlineExceeded
from gateway.service.main import on_unhandled_exception
from gateway.telemetry import metrics
from gateway.testing import RunningGateway, running_gateway
from support.polling import wait_until
from support.raw import answered, connected, post, read_answer, read_to_end
from support.stub_backend import StubBackend
from support.wiring import STUB

SAY = post("/v1/tasks/say", b"1")


class Gauge:
    """A memory gauge with the ratio that the test sets."""

    def __init__(self, used: float) -> None:
        self._used = used

    def ratio(self) -> float:
        return self._used

    def free_bytes(self, up_to: float) -> float:
        return 1e9


async def pressed(gateway: RunningGateway, ratio: float) -> None:
    relief = gateway.service.memory_guard
    relief.gauge = Gauge(ratio)  # type: ignore[assignment]
    await relief.check(gateway.service.listeners.sites)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


async def test_new_requests_are_rejected_unread_when_memory_is_short_and_running_ones_finish(
    desk: RunningGateway,
) -> None:
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        await pressed(desk, 0.86)
        async with connected(desk.url) as (other, to):
            to.write(post("/v1/tasks/say", b"", length=20_000_000))
            refused = await read_answer(other)
        assert (refused.status, refused.json["error"]["code"]) == (503, "overloaded")
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("2", "close")
        assert (await answered(desk.url, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200
        StubBackend.open.set()
        assert (await read_answer(reader)).status == 200
    await pressed(desk, 0.84)
    assert (await answered(desk.url, SAY)).status == 200
    assert [line["event"] for line in desk.lines.all if line["event"].startswith("memory.")] == [
        "memory.pressed",
        "memory.relieved",
    ]


async def test_new_connections_wait_unaccepted_while_memory_is_exhausted(desk: RunningGateway) -> None:
    async with connected(desk.url) as (inside, to):
        to.write(SAY)
        assert (await read_answer(inside)).status == 200
        await pressed(desk, 0.96)
        async with connected(desk.url) as (outside, out):
            out.write(SAY)
            to.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await read_answer(inside)).status == 200
            waiting = asyncio.ensure_future(read_answer(outside))
            await pressed(desk, 0.92)
            assert not waiting.done()
            await pressed(desk, 0.5)
            assert (await waiting).status == 200
    assert len(desk.lines.of("memory.accepting_again")) == 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_bodies_rejected_at_the_limit_leave_no_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.5)
    piece = b"x" * 1_000_000
    chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
    head = b"POST /v1/tasks/say HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def too_much(gateway: RunningGateway) -> None:
        async with connected(gateway.url) as (reader, writer):
            writer.write(head)
            try:
                for _ in range(12):
                    writer.write(chunk)
                    await writer.drain()
                assert (await read_answer(reader)).status == 413
            except ConnectionError:
                pass

    async with running_gateway(**STUB, GATEWAY_MAX_BODY_BYTES="4000000") as gateway:
        for _ in range(5):
            await too_much(gateway)
        before = resident_bytes()
        for _ in range(40):
            await too_much(gateway)
        assert resident_bytes() - before < 24_000_000


async def test_bodies_over_the_total_body_budget_are_rejected_before_they_are_read(desk: RunningGateway) -> None:
    desk.service.shedding.bodies.set_free_memory(4 * 1_000_000)
    async with connected(desk.url) as (_, first):
        first.write(post("/v1/tasks/say", b"", length=900_000))  # announced by Content-Length but not sent yet
        await wait_until(lambda: desk.service.shedding.bodies.announced_bytes == 900_000)
        refused = await answered(desk.url, post("/v1/tasks/say", b"", length=900_000))
        assert (refused.status, refused.json["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "2"
        assert (await answered(desk.url, SAY)).status == 200
    await desk.line(outcome="cancelled")
    assert desk.service.shedding.bodies.announced_bytes == 0


async def test_pipelined_requests_whose_responses_are_not_read_use_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(response_writer, "WRITE_TIMEOUT_S", 1.0)
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = resident_bytes()
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4_000)
        await gateway.line(outcome="cancelled")
        assert len(gateway.lines.of("request.finished")) < 400
        assert resident_bytes() - before < 16_000_000


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


async def test_request_predicted_to_exceed_its_deadline_is_504_before_it_starts(desk: RunningGateway) -> None:
    for _ in range(8):
        desk.service.measurements.learn("desk", "task", "say", 1.0, 3.0)
    before = metrics.SHED.values.get(("deadline",), 0)
    for _ in range(3):  # explain does not count as shed load
        with pytest.raises(DeadlineExceeded, match="too long"):
            desk.service.handler.explain("/v1/tasks/say", {"x-gateway-deadline-ms": "500"}, b"1")
    assert metrics.SHED.values.get(("deadline",), 0) == before
    answer = await answered(desk.url, post("/v1/tasks/say", b"1", "x-gateway-deadline-ms: 500"))
    assert (answer.status, answer.json["error"]["code"]) == (504, "deadline_exceeded")
    assert "too long" in answer.json["error"]["message"]
    assert answer.headers["x-gateway-attempts"] == "0"
    assert metrics.SHED.values[("deadline",)] == before + 1
    assert (await answered(desk.url, post("/v1/tasks/say", b"1", "x-gateway-deadline-ms: 60000"))).status == 200
    assert (await answered(desk.url, SAY)).status == 200


# ── slow clients ─────────────────────────────────────────────────────────────────────────────────

ATTACKERS = 40


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"POST /v1/tasks/say HTTP/1.1\r\nX-Drip: " + b"a" * 10_000:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(post("/v1/tasks/say", b"", length=100_000))
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.01)


async def no_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = b'"' + b"x" * 4_000_000 + b'"'
    writer.write(post("/v1/tasks/say", body))
    await writer.drain()
    await asyncio.sleep(60)


Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def attack(gateway: RunningGateway, attacking: Attack) -> None:
    """Run one attacking client until its connection is closed."""
    async with connected(gateway.url) as (reader, writer):
        attacker = asyncio.ensure_future(attacking(reader, writer))
        try:
            if attacking is no_reader:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await attacker
            else:
                await read_to_end(reader)
        except ConnectionError:
            pass
        finally:
            attacker.cancel()


async def latencies(gateway: RunningGateway, attacks: Sequence[asyncio.Future[None]] = ()) -> list[float]:
    """Of 60 requests, or of as many as there is time for before the first attacker is gone."""
    took: list[float] = []
    async with connected(gateway.url) as (reader, writer):
        while len(took) < 60 and not any(attacker.done() for attacker in attacks):
            began = time.perf_counter()
            writer.write(SAY)
            assert (await read_answer(reader)).status == 200
            took.append(time.perf_counter() - began)
    return took


@pytest.mark.alone  # compares latencies at two times
@pytest.mark.parametrize("attacking", [slow_head, slow_body])
async def test_slow_head_and_slow_body_clients_are_disconnected_and_others_stay_fast(
    attacking: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(server, "LINGER_S", 0.1)
    async with running_gateway(**STUB) as gateway:
        undisturbed = await latencies(gateway)
        attacks = [asyncio.ensure_future(attack(gateway, attacking)) for _ in range(ATTACKERS)]
        disturbed = await latencies(gateway, attacks)
        assert len(disturbed) >= 20, "the attacking clients were disconnected before the measurement ended"
        async with asyncio.timeout(5):
            await asyncio.gather(*attacks)
        ratio = statistics.median(disturbed) / statistics.median(undisturbed)
        assert ratio < 3  # measured: 0.9 to 1.4
        assert (await answered(gateway.url, SAY)).status == 200


async def test_late_request_head_is_408_and_an_idle_connection_closes_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.2)
    async with running_gateway(**STUB) as gateway:
        async with connected(gateway.url) as (reader, writer):
            writer.write(SAY)
            assert (await read_answer(reader)).status == 200
            assert await read_to_end(reader) == b""
        async with connected(gateway.url) as (reader, writer):
            writer.write(SAY)
            assert (await read_answer(reader)).status == 200
            writer.write(SAY[:40])
            late = await read_answer(reader)
            assert (late.status, late.json["error"]["code"]) == (408, "request_timeout")
            assert await read_to_end(reader) == b""


async def test_client_that_does_not_read_a_whole_response_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_writer, "WRITE_TIMEOUT_S", 0.3)
    async with running_gateway(**STUB) as gateway:
        attacks = [asyncio.ensure_future(attack(gateway, no_reader)) for _ in range(4)]
        await gateway.lines.wait("request.finished", 4)
        assert {line["outcome"] for line in gateway.lines.of("request.finished")} == {"cancelled"}
        for each in attacks:
            each.cancel()
        await asyncio.wait(attacks)


async def test_write_timeout_is_shortened_when_many_clients_do_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_writer, "WRITE_TIMEOUT_S", 60.0)
    monkeypatch.setattr(response_writer, "CROWDED_S", 0.2)
    monkeypatch.setattr(response_writer, "MANY", 3)
    async with running_gateway(**STUB) as gateway:
        attacks = [asyncio.ensure_future(attack(gateway, no_reader)) for _ in range(3)]
        await gateway.lines.wait("request.finished", 3)
        assert {line["outcome"] for line in gateway.lines.of("request.finished")} == {"cancelled"}
        for each in attacks:
            each.cancel()
        await asyncio.wait(attacks)


async def test_slow_reader_receives_a_whole_response_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_writer, "WRITE_TIMEOUT_S", 0.2)
    said = b'"' + b"x" * 6_000_000 + b'"'
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", said))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        began, heard = time.monotonic(), 0
        while heard < length:
            heard += len(await reader.read(65_536))
            await asyncio.sleep(0.01)  # makes the reader slow, which is the tested condition
        line = await gateway.line()
        assert time.monotonic() - began > 2 * response_writer.WRITE_TIMEOUT_S
    assert (heard, line["outcome"], line["bytes_out"]) == (length, "served", length)


async def test_client_that_does_not_read_is_disconnected_with_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_writer, "WRITE_TIMEOUT_S", 0.1)
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post("/v1/tasks/say", b'"' + b"x" * 6_000_000 + b'"'))
        await gateway.line()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(6_000_000)


async def test_flood_of_event_loop_errors_writes_few_log_lines(desk: RunningGateway) -> None:
    for _ in range(500):
        on_unhandled_exception(asyncio.get_running_loop(), {"message": "socket.accept() out of system resource"})
    assert 1 <= len(desk.lines.of("service.unhandled")) <= 12
