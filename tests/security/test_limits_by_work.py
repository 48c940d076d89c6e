"""Limits count work, not connections: a client that hangs up gives no slot back that is still in use."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.dispatch import drains
from gateway.testing import RunningGateway, running_gateway
from support.raw import Answer, answered, connected, post
from support.wiring import backend

JOBS = """
import os, time
from pathlib import Path

def compute(mark: str, seconds: float) -> int:
    Path(mark).write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()

def pid() -> int:
    return os.getpid()
"""
GRACE_S = 0.5
SLOTS = 2


def bearer(name: str) -> str:
    return f"Authorization: Bearer egw_{name}_{'a' * SECRET_CHARS}"


@asynccontextmanager
async def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> AsyncIterator[RunningGateway]:
    """A gateway with worker processes and two keys: `one` may have one request, `other` any number."""
    monkeypatch.setattr(drains, "GRACE_S", GRACE_S)
    monkeypatch.setattr(drains, "LOGGED_AFTER_S", 0.0)
    (folder / "jobs").mkdir()
    (folder / "jobs" / "jobs.py").write_text(JOBS)
    secret = hash_of("a" * SECRET_CHARS)
    keys = {"one": Key(sha256=secret, concurrency=1), "other": Key(sha256=secret)}
    write_keys(folder / "keys.json", keys)
    here = backend("here", "local", TASKS_DIR=str(folder / "jobs"), SLOTS=str(SLOTS), **more)
    async with running_gateway(**here, GATEWAY_KEYS_FILE=str(folder / "keys.json")) as gateway:
        yield gateway


def computation(mark: Path, *lines: str, key: str = "one", seconds: float = 60) -> bytes:
    body = json.dumps({"mark": str(mark), "seconds": seconds}).encode()
    return post("/v1/tasks/compute", body, bearer(key), *lines)


async def ask(gateway: RunningGateway, key: str, name: str = "pid") -> Answer:
    return await answered(gateway.url, post(f"/v1/tasks/{name}", b"{}", bearer(key)))


async def until(claim: Callable[[], bool], within_s: float = 20) -> None:
    """Wait for another process, which sends no event."""
    async with asyncio.timeout(within_s):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def hang_up(gateway: RunningGateway, mark: Path, data: bytes) -> int:
    """Start a computation and reset the connection; return the process that computes."""
    async with connected(gateway.url) as (_, writer):
        writer.write(data)
        await until(lambda: mark.exists() and mark.read_text() != "")
        writer.transport.abort()
    return int(mark.read_text())  # noqa: ASYNC240


def status(gateway: RunningGateway) -> list[dict[str, Any]]:
    workers = gateway.service.registry.members["here"].workers
    assert workers is not None
    return workers


def active(gateway: RunningGateway) -> int:
    return gateway.service.gate._limiters["one"].active


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_client_that_hangs_up_repeatedly_never_holds_more_slots_than_its_key_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch) as gateway:
        started = 0
        for attempt in range(6):
            mark = tmp_path / f"mark{attempt}"
            async with connected(gateway.url) as (reader, writer):
                writer.write(computation(mark))
                refused = asyncio.create_task(reader.readline())
                await until(lambda: mark.exists() or refused.done())  # noqa: B023 - awaited in this iteration
                started += not refused.done()
                writer.transport.abort()
                await asyncio.wait([refused])
            assert active(gateway) == 1
            assert sum(worker["state"] == "busy" for worker in status(gateway)) == 1
            assert (await ask(gateway, "other")).status == 200  # the other slot is free
        assert started >= 1
        await until(lambda: active(gateway) == 0)  # its worker was replaced, because the key needed the slot
        assert (await ask(gateway, "one")).status == 200
        await until(lambda: active(gateway) == 0)


async def test_cancelled_computation_keeps_its_worker_while_no_request_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch) as gateway:
        pid = await hang_up(gateway, tmp_path / "mark", computation(tmp_path / "mark", seconds=GRACE_S * 4))
        line = await gateway.line("dispatch.draining")
        assert line["backend"] == "here"
        metrics = await answered(
            gateway.admin_url, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert b'edge_gateway_slots_draining{backend="here"} 1' in metrics.body
        await until(lambda: all(worker["state"] == "idle" for worker in status(gateway)))
        assert is_running(pid)
        assert [worker["restarts"] for worker in status(gateway)] == [0, 0]
        await until(lambda: active(gateway) == 0)
        assert len(gateway.lines.of("dispatch.draining")) == 1


async def test_cancelled_computations_are_replaced_while_another_client_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch) as gateway:
        for number in range(SLOTS):
            mark = tmp_path / f"mark{number}"
            await hang_up(gateway, mark, computation(mark, key="other"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await ask(gateway, "one")).status == 200
        assert GRACE_S / 2 < loop.time() - began < 10
        died = await gateway.line("worker.died")
        assert died["how"] == "was killed because a cancelled task did not end while other requests waited"


async def test_short_deadline_of_a_client_kills_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as gateway:
        for number in range(3):
            asked = computation(tmp_path / f"m{number}", "x-gateway-deadline-ms: 150", key="other", seconds=1.5)
            assert (await answered(gateway.url, asked)).status == 504
            await until(lambda: all(worker["state"] == "idle" for worker in status(gateway)))
        assert [worker["restarts"] for worker in status(gateway)] == [0, 0]
