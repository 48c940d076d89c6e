"""Faults of a plugin that opens, is probed or declares affect no other backend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.testing import RunningGateway, running_gateway
from support.faulty_lifecycle import SECRET, FaultyLifecycle, Panic
from support.raw import answered, post
from support.wiring import STUB, backend

SERVE = post("/v1/tasks/serve", b"{}")
SAY = post("/v1/tasks/say", b"1")


@pytest.fixture(autouse=True)
def _reset_rascal() -> Iterator[None]:
    yield
    FaultyLifecycle.health_results, FaultyLifecycle.open_error = [], ""


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def listed(gateway: RunningGateway, path: str) -> tuple[int, str]:
    found = await answered(gateway.url, get(path))
    return found.status, found.body.decode()


@pytest.mark.parametrize("opens", ["cancelled", "panic", "speechless"])
async def test_backend_fails_and_others_serve_however_its_opening_ends(
    monkeypatch: pytest.MonkeyPatch, opens: str
) -> None:
    monkeypatch.setattr("gateway.service.service.START_S", 1.0)  # shortens the wait for a backend that never opens
    async with running_gateway(
        **backend("bad", "support.faulty_lifecycle:FaultyLifecycle", OPENS=opens), **STUB
    ) as gateway:
        member = gateway.service.registry.members["bad"]
        assert (member.state, member.opening_done.is_set()) == ("failed", True)
        (told,) = gateway.lines.of("backend.failed_to_open")
        assert told["backend"] == "bad"
        status, body = await listed(gateway, "/v1/models")
        assert (status, "clerk" in body) == (200, True)
        assert (await answered(gateway.url, SAY)).status == 200


@pytest.mark.parametrize("raised", [Panic, asyncio.CancelledError])
async def test_health_check_that_raises_marks_the_backend_unhealthy_and_is_repeated(raised: Any) -> None:
    FaultyLifecycle.health_results = [None, raised()]
    rascal = backend("bad", "support.faulty_lifecycle:FaultyLifecycle") | {"GATEWAY_POLICY__PROBE_S": "0.1"}
    async with running_gateway(**rascal) as gateway:
        (told,) = await gateway.lines.wait("backend.unwell")
        assert told["error"].startswith("its health check raised ")
        await gateway.lines.wait("backend.well")
        assert gateway.service.registry.members["bad"].state == "serving"
        assert (await answered(gateway.url, SERVE)).status == 200


async def test_plugin_that_cancels_its_lifecycle_task_is_closed_and_logged() -> None:
    FaultyLifecycle.health_results = ["cancels itself"]
    async with running_gateway(**backend("bad", "support.faulty_lifecycle:FaultyLifecycle"), **STUB) as gateway:
        (told,) = await gateway.lines.wait("backend.ended")
        assert told["backend"] == "bad"
        member = gateway.service.registry.members["bad"]
        assert (member.state, member.error, member.opening_done.is_set()) == ("closed", told["error"], True)
        assert (await answered(gateway.url, SAY)).status == 200


@pytest.mark.parametrize(
    ("plugin", "how"), [("RaisingProperty", ""), ("InvalidDeclaration", "number"), ("InvalidDeclaration", "kinds")]
)
async def test_faulty_declaration_of_one_plugin_is_logged_and_others_are_listed(plugin: str, how: str) -> None:
    liar = backend("aliar", f"support.faulty_lifecycle:{plugin}", OPENS=how)
    async with running_gateway(**liar, **STUB) as gateway:
        for _ in range(2):
            status, body = await listed(gateway, "/v1/models")
            assert (status, "clerk" in body) == (200, True)
            assert (await listed(gateway, "/v1/tasks"))[0] == 200
            chat = post("/v1/chat/completions", b'{"model":"clerk","messages":[{"role":"user","content":"x"}]}')
            assert (await answered(gateway.url, chat)).status == 200
        told = gateway.lines.of("backend.unwell")
        assert {line["backend"] for line in told} == {"aliar"}
        assert len(told) == len(gateway.service.registry.members["aliar"].declaration_errors)
        assert SECRET not in str(told)


@pytest.mark.parametrize("what", ["site", "slots", "remote"])
async def test_backend_with_an_invalid_declaration_fails_and_the_error_names_the_field(what: str) -> None:
    async with running_gateway(
        **backend("aliar", "support.faulty_lifecycle:InvalidAttribute", OPENS=what), **STUB
    ) as gateway:
        (told,) = gateway.lines.of("backend.failed_to_open")
        assert (told["backend"], f"`{what}`" in told["error"]) == ("aliar", True)
        admin = f"http://{gateway.service.admin_bound[0]}"
        assert (await answered(admin, get("/status"))).json["backends"]["aliar"]["state"] == "failed"
        assert (await answered(gateway.url, SAY)).status == 200


@pytest.mark.parametrize("isolation", ["loop", "process"])
async def test_exception_text_reaches_the_operator_and_no_client(isolation: str) -> None:
    rascal = backend("bad", "support.faulty_lifecycle:FaultyLifecycle", OPENS="raises", ISOLATION=isolation)
    async with running_gateway(**rascal) as gateway:
        (told,) = gateway.lines.of("backend.failed_to_open")
        assert SECRET in told["error"]
        admin = f"http://{gateway.service.admin_bound[0]}"
        assert SECRET in (await answered(admin, get("/status"))).json["backends"]["bad"]["error"]
        refused = await answered(gateway.url, post("/v1/tasks/serve", b"{}"))
        pinned = post("/v1/chat/completions", b'{"model":"bad/x","messages":[{"role":"user","content":"x"}]}')
        for found in (refused, await answered(gateway.url, pinned), await answered(gateway.url, get("/v1/models"))):
            assert "hunter2" not in found.body.decode()


async def test_plugins_own_error_message_is_shown_to_clients() -> None:
    FaultyLifecycle.open_error = "the licence is missing; set LICENCE"
    async with running_gateway(**backend("bad", "support.faulty_lifecycle:FaultyLifecycle")) as gateway:
        refused = await answered(gateway.url, SERVE)
        assert (refused.status, FaultyLifecycle.open_error in refused.json["error"]["message"]) == (503, True)


async def test_exception_text_from_a_worker_plugin_is_not_shown_to_clients() -> None:
    async with running_gateway(**backend("buggy", "support.worker_backends:RaisesInRun")) as gateway:
        answer = await answered(gateway.url, post("/v1/tasks/echo", b"1"))
        assert answer.json["error"]["message"] == "`echo` raised LookupError"
