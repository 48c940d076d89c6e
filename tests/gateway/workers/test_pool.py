"""Worker pool: start, back-off, health checks, output, stop, and absence of leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.plugin import (
    Backend,
    BackendUnavailable,
)
from gateway.workers import WorkerBackend
from gateway.workers.process import Process
from support.worker_backends import Broken, CrashesLoading, HealthFromFile, Quick, RaisesOnStart, StartsWhenFileExists
from support.workers import (
    a_task,
    answer,
    begun,
    children,
    events,
    is_gone,
    logged,
    of,
    pids,
    state_of,
    wait_until,
)


@pytest.mark.parametrize(
    ("cls", "why", "words"),
    [
        (Broken, "no worker of backend `here` starts: the model file is missing; set MODEL", ""),
        (RaisesOnStart, "worker_backends:RaisesOnStart` raised KeyError$", "'weights'"),
        (
            CrashesLoading,
            r"the worker was killed by signal 6 \(SIGABRT\) before it was ready$",
            "its last line of output: ",
        ),
    ],
)
async def test_failed_start_reports_the_reason_and_leaks_no_descriptors(
    cls: type[Backend[Any]], why: str, words: str
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendUnavailable, match=why) as caught:
        await of(cls, slots=2).__aenter__()
    assert caught.value.detail.startswith(words)
    assert set(os.listdir("/proc/self/fd")) == before


async def test_failing_starts_back_off_and_recover(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.touch()
    async with of(StartsWhenFileExists, broken_until=allowed) as backend:
        allowed.unlink()
        with pytest.raises(BackendUnavailable):
            await answer(backend, a_task("die"))
        waits = [line["retry_s"] for line in await logged(backend, "worker.start_failed", 2)]
        assert waits == [0.1, 0.2]
        with pytest.raises(BackendUnavailable, match="no worker of backend `here` starts: not yet"):
            await answer(backend, a_task("echo"))
        assert await backend.health() == "no worker of backend `here` starts: not yet"
        allowed.touch()
        await logged(backend, "worker.ready", 2)
        assert await answer(backend, a_task("echo")) == pids(backend)[0]
        assert await backend.health() is None


async def test_health_check_runs_in_an_idle_worker(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    pulse.touch()
    async with of(HealthFromFile, broken_until=pulse) as backend:
        assert await backend.health() is None
        pulse.write_text("the lamp is out")
        assert await backend.health() == "the lamp is out"
        pulse.write_text("raise")
        assert await backend.health() == "its health check raised KeyError"
        pulse.write_text("")
        assert await backend.health() is None
        assert not events(backend, "worker.died")


async def test_busy_pool_is_healthy_without_a_health_check(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    pulse.write_text("the lamp is out")
    async with of(HealthFromFile, broken_until=pulse) as backend:
        backend.drain_s = lambda: 0.1
        async with begun(backend, a_task("block", within_s=1)):
            assert await backend.health() is None


async def test_work_is_not_delayed_by_a_running_health_check(tmp_path: Path) -> None:
    pulse = tmp_path / "pulse"
    pulse.write_text("wait")
    async with of(HealthFromFile, broken_until=pulse) as backend:
        asked = asyncio.ensure_future(backend.health())
        await asyncio.sleep(0)
        assert await answer(backend, a_task("echo")) == pids(backend)[0]
        assert await asked is None
        with pytest.raises(TimeoutError):  # the caller sets the timeout of a health check
            await asyncio.wait_for(backend.health(), 0.01)
        assert await answer(backend, a_task("echo")) == pids(backend)[0]


async def test_stopped_backend_leaves_no_process_and_refuses_tasks() -> None:
    async with of(Quick, slots=2) as backend:
        await logged(backend, "worker.ready", 2)
        started = pids(backend)
    assert all(is_gone(pid) for pid in started)
    with pytest.raises(BackendUnavailable, match="is stopped"):
        await answer(backend, a_task("echo"))


async def test_stop_while_workers_are_starting_leaves_no_process() -> None:
    before = children()
    async with of(Quick, slots=3):
        assert children() != before
    assert children() == before


async def test_cancelled_start_leaks_no_descriptors() -> None:
    before, unstarted = set(os.listdir("/proc/self/fd")), children()
    start = asyncio.create_task(of(Quick, slots=2).__aenter__())
    await wait_until(lambda: children() != unstarted)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert set(os.listdir("/proc/self/fd")) == before


async def test_busy_worker_is_killed_two_seconds_after_the_stop_request(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("block", {"seconds": 60})) as (pid, job):
        began = time.monotonic()
        await tool.__aexit__(None, None, None)
        assert 1.9 < time.monotonic() - began < 4
        assert is_gone(pid)
        with pytest.raises(BackendUnavailable):
            await job


async def test_worker_output_is_logged_by_line_and_truncated(tool: WorkerBackend) -> None:
    await answer(tool, a_task("talk"))
    one, two = await logged(tool, "worker.output", 2)
    assert one == {"pid": pids(tool)[0], "line": "to standard output", "suppressed": 0}
    assert two["line"] == "x" * 500


async def test_endless_output_is_truncated_and_suppressed_lines_counted(tool: WorkerBackend) -> None:
    process = tool._slots[0].process
    assert process is not None
    pipe = process._output
    pipe.data_received(b"\r 1 %\r 2 %\r 3 %")
    assert [line["line"] for line in events(tool, "worker.output")] == [" 1 %", " 2 %"]
    for _ in range(100):
        pipe.data_received(b"=" * 65_536)
    assert len(pipe._line) <= 4 * 500
    process._bucket._tokens = 2.5
    process._bucket._per_s = 0.0
    pipe.data_received(b"\none\n\ntwo\nthree\n")
    process._bucket._tokens = 1.0
    pipe.data_received(b"four\n")
    *_, last, four = events(tool, "worker.output")
    assert last["line"] == "one"
    assert (four["line"], four["suppressed"]) == ("four", 2)


async def test_log_events_of_a_plugin_in_a_worker_reach_the_log(tool: WorkerBackend) -> None:
    await answer(tool, a_task("talk"))
    (line,) = events(tool, "tool.talked")
    assert line == {"where": "PosixPath('/here')", "count": 1}


async def test_a_thousand_tasks_leak_neither_descriptors_nor_processes() -> None:
    async with of(Quick, slots=2) as backend:
        await logged(backend, "worker.ready", 2)
        before, started = len(os.listdir("/proc/self/fd")), pids(backend)
        for n in range(1000):
            assert await answer(backend, a_task("echo", n)) == {"result": n}
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        assert pids(backend) == started
        assert len(asyncio.all_tasks()) < 10


async def test_worker_exits_when_its_gateway_dies(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, time\n"
        "from gateway.plugin import Task\n"
        "from gateway.workers import WorkerBackend\n"
        "from support.recording_services import RecordingServices\n"
        "from support.worker_backends import Tool, ToolSettings\n"
        "async def main():\n"
        "    async with WorkerBackend(Tool, ToolSettings(), RecordingServices(), slots=1) as b:\n"
        "        t = Task(kind='task', name='block', deadline=time.monotonic() + 60, body=b'{\"seconds\":60}')\n"
        "        async for part in b.run(t):\n"
        "            print(part.data, flush=True)\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", program, env=env, stdout=asyncio.subprocess.PIPE
    )
    assert gateway.stdout is not None
    pid = int(await gateway.stdout.readline())
    gateway.kill()
    await gateway.communicate()
    await wait_until(lambda: is_gone(pid) or state_of(pid) == "Z")


async def test_start_that_fails_with_an_unexpected_exception_can_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, failed = Process._spawn, asyncio.Event()

    async def fail_once(self: Process) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")
        await spawn(self)

    monkeypatch.setattr(Process, "_spawn", fail_once)
    backend = of(Quick)
    with pytest.raises(BackendUnavailable, match="no process could be started: RuntimeError"):
        await backend.__aenter__()
    async with backend:
        assert await answer(backend, a_task("echo", 1)) == {"result": 1}
