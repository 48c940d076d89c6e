"""Helpers for tests of workers; the workers are real processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from gateway.plugin import (
    Backend,
    Part,
    Result,
    Task,
)
from gateway.workers import WorkerBackend
from support.recording_services import RecordingServices


def a_task(name: str, json: Any = None, *, within_s: float = 20, **more: Any) -> Task:
    body = msgspec.json.encode(json)
    return Task(kind="task", name=name, deadline=time.monotonic() + within_s, body=body, **more)


def of(cls: type[Backend[Any]], slots: int = 1, **settings: Any) -> WorkerBackend:
    return WorkerBackend(cls, cls.Settings(**settings), RecordingServices(), slots=slots)


def events(backend: WorkerBackend, event: str) -> list[dict[str, Any]]:
    return backend.services.log.of(event)


async def logged(backend: WorkerBackend, event: str, count: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await backend.services.log.wait_for(event, count)
    return found


async def items(backend: WorkerBackend, task: Task) -> list[Part | Result]:
    async with aclosing(backend.run(task)) as stream:
        return [item async for item in stream]


async def answer(backend: WorkerBackend, task: Task) -> Any:
    (item,) = await items(backend, task)
    assert isinstance(item, Result)
    return item.value()


def pids(backend: WorkerBackend) -> list[int]:
    return [worker["pid"] for worker in backend.workers if worker["pid"]]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# Other processes send no event when they end, so their state is polled.
async def wait_until(claim: Callable[[], bool], within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def begun(backend: WorkerBackend, task: Task) -> AsyncIterator[tuple[Any, asyncio.Task[list[Any]]]]:
    """Start `task`. Yields its first part, and the asyncio task for the rest."""
    first: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def collect() -> list[Any]:
        rest = []
        async with aclosing(backend.run(task)) as stream:
            async for item in stream:
                if first.done():
                    rest.append(item)
                else:
                    first.set_result(item.data)
        return rest

    job = asyncio.create_task(collect())
    yield await first, job
    if not job.done():
        job.cancel()
        with suppress(asyncio.CancelledError):
            await job


def children() -> set[int]:
    """Return the children of this process, zombies included."""
    own = os.getpid()
    found = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return {pid for pid in found if parent_of(pid) == own}


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
