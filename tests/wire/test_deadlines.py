"""Deadlines of streaming tasks compared with the deadline of a whole response."""

from __future__ import annotations

import time

import pytest

from gateway.testing import running_gateway
from support.polling import wait_until
from support.raw import answered, connected, post, read_to_end
from support.wiring import backend, cloud

ASKED = post("/v1/tasks/echo", b"1", "Connection: close")
WHOLE = [b'data: {"part":"in time"}', b'data: {"part":"after that"}', b"data: [DONE]"]


def lingering(deadline_s: float, isolation: str = "loop") -> dict[str, str]:
    lingers = backend("slow", "support.worker_backends:StreamsPastDeadline", ISOLATION=isolation)
    return lingers | {"GATEWAY_DEADLINE_S": str(deadline_s)}


def data_lines(body: bytes) -> list[bytes]:
    return [line for line in body.splitlines() if line.startswith(b"data: ")]


@pytest.mark.parametrize("isolation", ["loop", "process"])
async def test_streaming_task_may_continue_past_the_deadline_of_a_whole_response(isolation: str) -> None:
    async with running_gateway(**lingering(0.3, isolation)) as gateway:
        answer = await answered(gateway.url, ASKED)
        line = await gateway.line(kind="task")
    assert data_lines(answer.body) == WHOLE
    assert line["outcome"] == "served"


async def test_upstream_task_stream_may_continue_past_the_deadline_of_a_whole_response() -> None:
    async with running_gateway(**lingering(0.6)) as peer:
        front = cloud(peer.url, TASKS='{"echo":"/v1/tasks/echo"}') | {"GATEWAY_DEADLINE_S": "0.3"}
        async with running_gateway(**front) as gateway:
            answer = await answered(gateway.url, ASKED)
    assert data_lines(answer.body) == WHOLE


async def test_client_deadline_header_also_limits_a_stream() -> None:
    async with running_gateway(**lingering(30)) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/echo", b"1", "x-gateway-deadline-ms: 100"))
        told = await read_to_end(reader)
    assert b"in time" in told
    assert b"deadline_exceeded" in told
    assert b"[DONE]" not in told


async def test_worker_is_freed_when_the_client_leaves_a_stream_past_its_deadline() -> None:
    environ = lingering(0.05, "process") | backend("slow", "support.worker_backends:Tool", SLOTS="1")
    async with running_gateway(**environ) as gateway:
        async with connected(gateway.url) as (reader, writer):
            writer.write(post("/v1/tasks/endless", b"1"))
            while b'"part":' not in await reader.read(4096):
                pass
            (attempt,) = gateway.service.dispatcher._attempts.values()
            while time.monotonic() < attempt.task.deadline:
                await reader.read(4096)
        await wait_until(lambda: gateway.service.dispatcher.scheduler.busy()["slow"] == 0)
        assert (await answered(gateway.url, post("/v1/tasks/json", b"1"))).json == 1
        assert gateway.lines.of("worker.died") == []
