"""Subtasks sent from a worker.

The gateway serves them under the limits of the parent task and cancels them with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.plugin import BackendFailed, BackendUnavailable, GatewayError, Result, Task, TaskRefused, Upload
from gateway.plugin.errors import PluginRaised
from gateway.timing import Watch
from gateway.workers import WorkerBackend
from gateway.workers.subtask_rpc import MAX_SUBTASKS
from support.recording_services import RecordingServices
from support.worker_backends import Dispatches
from support.workers import a_task, answer, pids

Serve = Callable[[Task], Awaitable[Result]]


class Serving(RecordingServices):
    """Services that dispatch subtasks to `serve` and record them."""

    def __init__(self, serve: Serve) -> None:
        super().__init__()
        self.serve = serve
        self.seen: list[Task] = []

    async def dispatch(self, task: Task) -> Result:
        self.seen.append(task)
        return await self.serve(task)


@asynccontextmanager
async def sending(serve: Serve) -> AsyncIterator[tuple[WorkerBackend, Serving]]:
    services = Serving(serve)
    async with WorkerBackend(Dispatches, Dispatches.Settings(), services, slots=1) as backend:
        yield backend, services


async def echoes(task: Task) -> Result:
    return Result(json=task.json)


class Silence:
    """A service that never answers: sets `asked` when called, `over` when cancelled."""

    def __init__(self) -> None:
        self.asked, self.over = asyncio.Event(), asyncio.Event()

    async def __call__(self, task: Task) -> Result:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.over.set()
        raise AssertionError


async def test_subtask_is_served_and_its_result_returns_with_all_fields() -> None:
    async def serve(task: Task) -> Result:
        return Result(json={"result": task.json}, backend="there", site="cloud", confidence=0.5)

    parent = a_task("one", terms=Watch(), may_leave=False)
    async with sending(serve) as (backend, services):
        assert await answer(backend, parent) == [{"result": {"a": 1}}, 200, "there", "cloud", 0.5]
    (part,) = services.seen
    assert (part.name, part.pin, part.parent_id, part.depth, part.headers) == ("add", "there", parent.id, 1, {"x": "y"})
    assert part.terms is parent.terms
    assert part.deadline <= parent.deadline
    assert not part.may_leave


async def test_form_subtask_is_dispatched_with_its_body() -> None:
    form = {"fields": {"model": "m"}, "files": {"file": Upload(b"sound")}, "content_type": "multipart/form-data"}
    parent = a_task("m", **form).replace(kind="chat", body=b"as it came")

    async def serve(task: Task) -> Result:
        return Result(json=[task.body.decode(), task.files["file"].data.decode()])

    async with sending(serve) as (backend, _):
        assert await answer(backend, parent) == ["as it came", "sound"]


async def test_concurrent_subtasks_are_limited() -> None:
    at_once = most = 0
    overlapped = asyncio.Event()

    async def serve(task: Task) -> Result:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once > 1:
            overlapped.set()
        await overlapped.wait()
        at_once -= 1
        return Result(json=task.json)

    async with sending(serve) as (backend, _):
        assert await answer(backend, a_task("many", 3 * MAX_SUBTASKS)) == list(range(3 * MAX_SUBTASKS))
    assert 1 < most <= MAX_SUBTASKS


@pytest.mark.parametrize(
    ("error", "met"),
    [
        (TaskRefused("busy", retry_after_s=2.0, began=False), ["TaskRefused", "busy", "overloaded", 2.0, False]),
        (BackendFailed("no", began=True), ["BackendFailed", "no", "plugin_error", None, True]),
        (PluginRaised("it raised", raised="KeyError"), ["BackendUnavailable", "it raised", "plugin_error", None, True]),
        (RuntimeError("a bug"), ["BackendUnavailable", "the gateway raised RuntimeError", "plugin_error", None, True]),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_subtask_error_is_raised_in_the_worker(error: Exception, met: list[Any]) -> None:
    async def serve(task: Task) -> Result:
        raise error

    async with sending(serve) as (backend, _):
        assert await answer(backend, a_task("again")) == met


async def test_subtask_result_too_long_for_a_frame_raises_and_keeps_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with sending(echoes) as (backend, services):
        before = pids(backend)
        monkeypatch.setattr("gateway.workers.frame_channel.MAX_FRAME_BYTES", 1000)
        services.serve = lambda task: echoes(task.replace(body=b'"%s"' % (b"x" * 2000)))
        kind, message, *_ = await answer(backend, a_task("again"))
        assert kind == "BackendFailed"
        assert "too long" in message
        assert pids(backend) == before


async def test_cancelled_task_cancels_its_subtasks() -> None:
    silence = Silence()
    async with sending(silence) as (backend, _):
        job = asyncio.create_task(answer(backend, a_task("whole")))
        await silence.asked.wait()
        job.cancel()
        await silence.over.wait()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert await answer(backend, a_task("leaves")) == "left"


@pytest.mark.parametrize(("name", "said"), [("gives_up", "gave up"), ("leaves", "left")])
async def test_abandoned_subtask_is_cancelled(name: str, said: str) -> None:
    silence = Silence()
    async with sending(silence) as (backend, _):
        assert await answer(backend, a_task(name)) == said
        if silence.asked.is_set():
            await silence.over.wait()


async def test_death_of_a_worker_cancels_its_subtasks() -> None:
    silence = Silence()
    async with sending(silence) as (backend, _):
        job = asyncio.create_task(answer(backend, a_task("whole")))
        await silence.asked.wait()
        process = backend._slots[0].process
        assert process is not None
        process.kill("a test wants it")
        await silence.over.wait()
        with pytest.raises(BackendUnavailable):
            await job


async def test_dispatch_outside_the_current_task_is_refused() -> None:
    async with sending(echoes) as (backend, services):
        with pytest.raises(GatewayError, match="parts of the task it works on"):
            await answer(backend, a_task("strays"))
        assert services.seen == []
