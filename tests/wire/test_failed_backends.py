"""Backends that failed to open: they are tried again, and their own names get 503 with the reason."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.testing import RunningGateway, running_gateway
from support.faulty_lifecycle import FaultyLifecycle
from support.polling import wait_until
from support.raw import answered, post
from support.wiring import STUB, backend

FAULTY = "support.faulty_lifecycle:FaultyLifecycle"


@pytest.fixture(autouse=True)
def _opens_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("gateway.registry.lifecycle.FIRST_RETRY_S", 0.05)
    yield
    FaultyLifecycle.open_error = ""


async def task(gateway: RunningGateway, name: str) -> tuple[int, str]:
    found = await answered(gateway.url, post(f"/v1/tasks/{name}", b"{}"))
    return found.status, found.json.get("error", {}).get("message", "")


async def chat(gateway: RunningGateway, model: str) -> tuple[int, str]:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]}).encode()
    found = await answered(gateway.url, post("/v1/chat/completions", body))
    return found.status, found.json["error"]["message"]


async def test_worker_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        f"mark = pathlib.Path({str(tmp_path / 'pid')!r})\n"
        "if not mark.exists():\n    mark.write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "def fine():\n    return 1\n"
    )
    local = backend("here", "local", TASKS_DIR=str(tmp_path), SLOTS="1")

    async def kill_the_first() -> None:
        mark = tmp_path / "pid"
        await wait_until(lambda: mark.exists() and mark.read_text() != "")
        os.kill(int(mark.read_text()), signal.SIGKILL)

    killing = asyncio.create_task(kill_the_first())
    async with running_gateway(**local, **STUB) as gateway:
        await killing
        await gateway.lines.wait("backend.opened", 2)
        assert await task(gateway, "fine") == (200, "")
        assert gateway.service.registry.members["here"].error is None
        (line,) = gateway.lines.of("backend.failed_to_open")
        assert "SIGKILL" in line["error"]


async def test_backend_that_failed_to_open_serves_once_it_can() -> None:
    FaultyLifecycle.open_error = "the device is busy"
    async with running_gateway(**backend("bad", FAULTY), **STUB) as gateway:
        status, message = await task(gateway, "serve")
        assert (status, "the device is busy" in message) == (503, True)
        FaultyLifecycle.open_error = ""
        await wait_until(lambda: gateway.service.registry.members["bad"].state == "serving")
        assert await task(gateway, "serve") == (200, "")
        assert len(gateway.lines.of("backend.failed_to_open")) == 1


async def test_bug_of_a_plugin_in_the_gateway_process_is_not_tried_again() -> None:
    async with running_gateway(**backend("bad", FAULTY, OPENS="raises"), **STUB) as gateway:
        member = gateway.service.registry.members["bad"]
        assert member.state == "failed"
        assert member.task is not None
        assert member.task.done()


async def test_names_of_a_failed_backend_are_503_with_the_reason_and_others_404(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_library\n")
    folder = backend("folder", "local", TASKS_DIR=str(tmp_path), SLOTS="1")
    named = backend("named", "local", TASKS='{"lost": "no_such_library:f"}', SLOTS="1")
    async with running_gateway(**named, **STUB) as gateway:
        status, message = await task(gateway, "lost")
        assert (status, "`named` failed to open" in message, "no_such_library" in message) == (503, True, True)
        assert (await task(gateway, "other"))[0] == 404
        assert (await chat(gateway, "unknown"))[0] == 404
    async with running_gateway(**folder, **STUB) as gateway:
        status, message = await task(gateway, "any")
        assert (status, "`folder` failed to open" in message) == (503, True)
        assert (await task(gateway, "say"))[0] == 200


async def test_models_of_a_plugin_that_cannot_be_loaded_are_503() -> None:
    broken = backend("gone", "local", MODELS="m1", TASKS_DIR="/", SLOTS="1")
    async with running_gateway(**broken, **STUB) as gateway:
        for model in ("m1", "gone/m1"):
            status, message = await chat(gateway, model)
            assert (status, "`gone` failed to open" in message) == (503, True)
        assert (await chat(gateway, "m2"))[0] == 404
