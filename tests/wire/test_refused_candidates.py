"""The log line of an unserved request lists why each candidate was excluded."""

from __future__ import annotations

import pytest

from gateway.testing import RunningGateway, running_gateway
from support.raw import answered, post
from support.wiring import backend

TWO_FAR = backend("far", "support.stub_backend:StubBackend", SITE="cloud") | backend(
    "farther", "support.stub_backend:StubBackend", SITE="cloud"
)
LOCKED = backend("locked", "support.stub_backend:StubBackend", REFUSES_TO_OPEN="true", TASKS="say")
SAY = "/v1/tasks/say"
CHAT = b'{"model":"far/clerk","messages":[{"role":"user","content":"x"}]}'


async def line_of(gateway: RunningGateway, sent: bytes, status: int) -> dict:
    answer = await answered(gateway.url, sent)
    assert answer.status == status
    line = await gateway.line(request_id=answer.headers["x-request-id"])
    assert set(line["load"]) == {"cpu", "psi", "mem", "temp_c"}
    return line


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [(SAY, b"{}", {"far", "farther"}), ("/v1/chat/completions", CHAT, {"far"})],
    ids=["free", "pinned"],
)
async def test_log_line_lists_each_exclusion_when_policy_excludes_every_backend(
    path: str, body: bytes, names: set
) -> None:
    async with running_gateway(**TWO_FAR) as gateway:
        line = await line_of(gateway, post(path, body, "x-gateway-locality: edge-only"), 503)
    assert line["reason"] == "no_backend"
    assert line["queue"] == {"far": 0, "farther": 0}
    assert line["candidates"] == {name: {"refused": "edge-only: its data would leave the site"} for name in names}


async def test_log_line_lists_each_exclusion_when_no_backend_is_reachable() -> None:
    async with running_gateway(**LOCKED) as gateway:
        line = await line_of(gateway, post(SAY, b"{}"), 503)
    assert line["reason"] == "unavailable"
    assert "the desk is locked" in line["candidates"]["locked"]["refused"]


async def test_log_line_keeps_the_estimates_when_the_deadline_passed_before_the_start() -> None:
    async with running_gateway(**TWO_FAR) as gateway:
        line = await line_of(gateway, post(SAY, b"{}", "x-gateway-deadline-ms: 0.001"), 504)
    assert set(line["candidates"]) == {"far", "farther"}
    assert all({"t_ms", "j"} == set(each) for each in line["candidates"].values())
    assert line["backend"] == "none"
    assert line["prediction_error_ratio"] is None
