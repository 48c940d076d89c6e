"""Subtasks of a plugin in a worker process follow the rules of the parent request."""

from __future__ import annotations

import json

import pytest

from gateway.testing import running_gateway
from support.raw import answered, post
from support.wiring import STUB, backend
from wire.test_request_timing import check as check_account

SENDING = {"SLOTS": "1", "TASKS": '{"pass_on":"whole"}'}
SENDS = backend("sends", "support.worker_backends:Dispatches", ISOLATION="process", **SENDING)
NEAR = backend("near", "support.stub_backend:StubBackend", TASKS='{"whole":"say"}')
FAR = backend("far", "support.stub_backend:StubBackend", SITE="cloud", TASKS='{"whole":"say"}')


async def test_subtask_has_its_own_log_line_and_its_time_in_the_parents_account() -> None:
    async with running_gateway(**SENDS, **NEAR) as gateway:
        got = await answered(gateway.url, post("/v1/tasks/pass_on", b'{"a":1}'))
        assert (got.status, got.json) == (200, {"result": {"a": 1}})
        line = await gateway.line(request_id=got.headers["x-request-id"])
        part = await gateway.line("subtask.finished", parent_id=line["request_id"])
    assert (line["backend"], part["backend"], part["outcome"]) == ("sends", "near", "served")
    assert line["t_edge_ms"] >= part["t_edge_ms"] > 0
    check_account(line)


async def test_subtask_of_an_edge_only_request_stays_on_the_site() -> None:
    async with running_gateway(**SENDS, **FAR) as gateway:
        got = await answered(gateway.url, post("/v1/tasks/pass_on", b"{}", "x-gateway-locality: edge-only"))
        assert (got.status, got.json["error"]["code"]) == (503, "no_backend")
        part = await gateway.line("subtask.finished")
        assert part["candidates"] == {"far": {"refused": "edge-only: its data would leave the site"}}
        assert gateway.lines.of("egress.sent") == []
        free = await answered(gateway.url, post("/v1/tasks/pass_on", b"{}"))
        assert free.json == {"result": {}}


async def test_exception_in_a_subtasks_plugin_is_not_charged_to_the_calling_backend() -> None:
    broken = backend("broken", "support.stub_backend:StubBackend", TASKS='{"whole":"boom"}')
    async with running_gateway(**SENDS, **broken, **STUB) as gateway:
        got = await answered(gateway.url, post("/v1/tasks/pass_on", json.dumps({}).encode()))
        assert (got.status, got.json["error"]["code"]) == (500, "plugin_error")
        assert "broken" in got.json["error"]["message"]
        assert gateway.lines.of("worker.raised") == []
        assert "secret" not in str(gateway.lines.all)


@pytest.mark.parametrize("isolation", ["loop", "process"])
async def test_failed_subtasks_open_no_breaker(isolation: str) -> None:
    sends = backend("sends", "support.worker_backends:Dispatches", ISOLATION=isolation, **SENDING)
    async with running_gateway(**sends, **FAR) as gateway:
        for _ in range(8):
            asked = post("/v1/tasks/pass_on", b"{}", "x-gateway-locality: edge-only")
            assert (await answered(gateway.url, asked)).status == 503
        assert (await answered(gateway.url, post("/v1/tasks/pass_on", b"{}"))).status == 200
        assert gateway.lines.of("breaker.opened") == []
