"""Tasks, results and errors between the gateway and a worker, on real processes."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from gateway.plugin import (
    BackendFailed,
    Part,
    Result,
    TaskInvalid,
    TaskRefused,
    Upload,
)
from gateway.plugin.errors import PluginRaised
from gateway.workers import WorkerBackend
from support.worker_backends import Quick, Tool
from support.workers import (
    a_task,
    answer,
    begun,
    events,
    items,
    of,
    pids,
    wait_until,
)

# ── tasks and results ────────────────────────────────────────────────────────────────────────────


async def test_worker_backend_exposes_the_names_its_worker_serves(tool: WorkerBackend) -> None:
    assert tool.models == {"gpt": "tiny"}
    assert "pid" in tool.tasks
    assert tool.kinds == {"chat"}
    assert tool.isolation == "process"
    assert tool.size(a_task("pid")) == 7.0
    assert tool.estimate(a_task("pid"), None) is None  # type: ignore[arg-type]


def test_names_are_unknown_until_a_worker_is_ready() -> None:
    backend = of(Tool)
    assert backend.models is None
    assert backend.tasks is None


async def test_worker_is_a_separate_process_and_is_reused(tool: WorkerBackend) -> None:
    first = await answer(tool, a_task("pid"))
    assert first == await answer(tool, a_task("pid")) == pids(tool)[0] != os.getpid()


async def test_result_arrives_with_all_its_fields(tool: WorkerBackend) -> None:
    (result,) = await items(tool, a_task("pid"))
    assert isinstance(result, Result)
    assert (result.confidence, result.headers) == (0.5, {"x": "y"})
    (result,) = await items(tool, a_task("body", "…"))
    assert result == Result(body='"…"'.encode(), content_type="image/png", status=201)


@pytest.mark.parametrize("value", [None, 2**80, -1.5, "ü", [], {"a": [1, {"b": None}]}])
async def test_json_values_arrive_unchanged(tool: WorkerBackend, value: Any) -> None:
    assert await answer(tool, a_task("json", value)) == value


async def test_multipart_task_is_sent_as_its_parts_without_the_body(tool: WorkerBackend) -> None:
    file = Upload(b"RIFF", "a.wav", "audio/wav")
    task = a_task(
        "task", "the body", fields={"language": "en"}, files={"file": file},
        headers={"traceparent": "00"}, items=3, may_leave=False,
    )  # fmt: skip
    seen = await answer(tool, task)
    assert 19 < seen.pop("left_s") < 20
    assert seen == {
        "fields": {"language": "en"}, "file": "RIFF", "filename": "a.wav", "body": "",
        "headers": {"traceparent": "00"}, "items": 3, "may_leave": False,
    }  # fmt: skip


async def test_settings_including_secrets_arrive_in_the_worker(tmp_path: Path) -> None:
    async with of(Tool, folder=tmp_path, password="hunter2") as backend:
        assert await answer(backend, a_task("settings_seen")) == [str(tmp_path), "hunter2", "here"]


async def test_a_generators_parts_arrive_in_order(tool: WorkerBackend) -> None:
    got = await items(tool, a_task("parts", {"n": 300}))
    assert got == [*(Part(n) for n in range(300)), Part(b"\x00"), Part(raw=b"data: x\n\n")]


async def test_slow_reader_applies_backpressure_to_the_worker(tool: WorkerBackend) -> None:
    async with aclosing(tool.run(a_task("endless"))) as stream:
        assert await anext(stream) == Part(0)
        process = tool._slots[0].process
        assert process is not None
        await wait_until(lambda: process._inbox.qsize() >= 64)
        held = process._inbox.qsize()
        await tool.health()
        assert process._inbox.qsize() - held < 20_000  # at most the data of one read
        assert process._channel._transport is not None
        assert not process._channel._transport.is_reading()
        assert [await anext(stream) for _ in range(5000)] == [Part(n) for n in range(1, 5001)]


async def test_large_parts_apply_backpressure_sooner(tool: WorkerBackend) -> None:
    async with aclosing(tool.run(a_task("large_parts"))) as stream:
        await anext(stream)
        process = tool._slots[0].process
        assert process is not None
        await wait_until(lambda: process._inbox.qsize() > 0)
        assert process._channel._transport is not None
        assert not process._channel._transport.is_reading()
        assert process._inbox.qsize() == 1
        assert len([part async for part in stream]) == 7


async def test_worker_is_idle_only_after_the_backend_has_cleaned_up(tool: WorkerBackend) -> None:
    for _ in range(20):
        assert await answer(tool, a_task("slow_to_close")) == "early"
        assert await answer(tool, a_task("pid")) == pids(tool)[0]


async def test_each_slot_has_its_own_process_and_they_run_in_parallel() -> None:
    async with (
        of(Tool, slots=2) as backend,
        begun(backend, a_task("wait")) as (one, _),
        begun(backend, a_task("wait")) as (other, _),
    ):
        assert {one, other} == set(pids(backend))
        assert [worker["state"] for worker in backend.workers] == ["busy", "busy"]


async def test_worker_imports_little_and_inherits_no_file_descriptors(tool: WorkerBackend) -> None:
    seen = await answer(tool, a_task("environment"))
    assert not seen["aiohttp"]
    assert seen["oom"] >= 500
    assert len(seen["fds"]) <= 9  # three standard ones, the socket, and those of its event loop


async def test_backend_whose_run_is_a_coroutine_is_served() -> None:
    async with of(Quick) as backend:
        assert await answer(backend, a_task("echo", [1])) == {"result": [1]}


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


async def test_exception_type_is_reported_to_the_client_and_traceback_logged(tool: WorkerBackend) -> None:
    task = a_task("divide", 0)
    with pytest.raises(PluginRaised) as caught:
        await answer(tool, task)
    assert (caught.value.message, caught.value.detail) == ("`divide` raised ZeroDivisionError", "")
    assert (caught.value.code, caught.value.text) == ("plugin_error", "division by zero")
    (line,) = events(tool, "worker.raised")
    assert line["request_id"] == task.id
    assert line["traceback"].splitlines()[-1].partition("worker_backends.py:")[2].endswith(" divide")
    assert "1 / task.json" not in line["traceback"]  # no source line


async def test_gateway_errors_keep_their_class_and_fields(tool: WorkerBackend) -> None:
    with pytest.raises(TaskRefused) as caught:
        await answer(tool, a_task("refuse"))
    error = caught.value
    assert (error.message, error.code, error.param, error.status, error.retry_after_s) == (
        "busy", "rate_limited", "n", 429, 2.5,
    )  # fmt: skip
    with pytest.raises(TaskInvalid, match="no"):
        await answer(tool, a_task("invalid"))
    assert not events(tool, "worker.raised")


async def test_result_that_is_not_json_raises_backend_failed(tool: WorkerBackend) -> None:
    with pytest.raises(BackendFailed, match=r"the answer is not JSON.*object"):
        await answer(tool, a_task("not_json"))


async def test_result_too_long_for_a_frame_raises_backend_failed(tool: WorkerBackend) -> None:
    with pytest.raises(BackendFailed, match="too long to go between processes"):
        await answer(tool, a_task("huge"))
    assert await answer(tool, a_task("pid")) == pids(tool)[0]


async def test_task_too_long_for_a_frame_raises_and_keeps_the_worker(tool: WorkerBackend) -> None:
    task = a_task("body").replace(body=bytes(65 * 1024 * 1024))
    with pytest.raises(BackendFailed, match="too long to go between processes"):
        await answer(tool, task)
    assert await answer(tool, a_task("pid")) == pids(tool)[0]


@pytest.mark.parametrize(
    ("name", "what"), [("sys_exit", "SystemExit"), ("panic", "Panic"), ("cancelled", "CancelledError")]
)
async def test_base_exceptions_are_reported_like_other_errors(tool: WorkerBackend, name: str, what: str) -> None:
    before = pids(tool)
    with pytest.raises(PluginRaised, match=f"`{name}` raised {what}") as caught:
        await items(tool, a_task(name))
    assert caught.value.detail == ""
    assert await answer(tool, a_task("pid")) == before[0]
