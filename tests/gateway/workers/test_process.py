"""How workers end: crashes, deadlines and cancellations, on real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from gateway.plugin import (
    BackendUnavailable,
    DeadlineExceeded,
    Part,
)
from gateway.workers import WorkerBackend
from gateway.workers.pool import SOFT_S
from gateway.workers.process import TRANSITIONS
from support.worker_backends import DelaysCancel, Quick, Tool
from support.workers import (
    a_task,
    answer,
    begun,
    events,
    is_gone,
    items,
    logged,
    of,
    pids,
    state_of,
    wait_until,
)

# ── crashes ──────────────────────────────────────────────────────────────────────────────────────


async def test_worker_killed_during_a_task_is_reported_and_replaced_at_once(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("wait")) as (pid, job):
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BackendUnavailable, match=rf"worker {pid} of backend `here` was killed by signal 9"):
            await job
    replaced = await answer(tool, a_task("pid"))
    assert tool._slots[0].retry_s == 0
    assert not events(tool, "worker.start_failed")
    assert replaced != pid
    assert events(tool, "worker.died") == [{"pid": pid, "how": "was killed by signal 9 (SIGKILL)"}]
    assert tool.workers[0]["restarts"] == 1


async def test_crash_of_one_worker_does_not_affect_other_workers() -> None:
    async with of(Tool, slots=2) as backend, begun(backend, a_task("block", {"seconds": 0.3})) as (_, other):
        with pytest.raises(BackendUnavailable, match="SIGSEGV"):
            await items(backend, a_task("segfault"))
        assert await other == [Part("done")]


async def test_segfault_traceback_is_logged(tool: WorkerBackend) -> None:
    with pytest.raises(BackendUnavailable, match="was killed by signal 11"):
        await items(tool, a_task("segfault"))
    said = "\n".join(line["line"] for line in events(tool, "worker.output"))
    assert "Fatal Python error: Segmentation fault" in said
    assert "in segfault" in said


async def test_exit_of_a_worker_is_reported_with_its_status(tool: WorkerBackend) -> None:
    with pytest.raises(BackendUnavailable, match="exited with status 3"):
        await items(tool, a_task("exit_now"))


async def test_idle_worker_that_dies_is_replaced() -> None:
    async with of(Quick) as backend:
        (pid,) = pids(backend)
        os.kill(pid, signal.SIGKILL)
        await logged(backend, "worker.ready", 2)
        assert await answer(backend, a_task("echo")) == {"result": None}
        assert pids(backend) != [pid]


# ── deadlines and client disconnects ─────────────────────────────────────────────────────────────


async def test_blocking_task_is_killed_after_the_drain_timeout_and_its_worker_replaced(tool: WorkerBackend) -> None:
    tool.drain_s = lambda: 0.3
    (pid,) = pids(tool)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="`block`"):
        await items(tool, a_task("block", {"seconds": 60}, within_s=0.3))
    assert 0.3 + SOFT_S <= time.monotonic() - began < 10
    assert is_gone(pid)
    assert await answer(tool, a_task("pid")) != pid


async def test_short_deadline_of_a_client_keeps_the_worker(tool: WorkerBackend) -> None:
    (pid,) = pids(tool)
    with pytest.raises(DeadlineExceeded, match="`block`"):
        await items(tool, a_task("block", {"seconds": SOFT_S + 0.5}, within_s=0.1))
    assert await answer(tool, a_task("pid")) == pid
    assert tool.workers[0]["restarts"] == 0


async def test_drained_worker_is_replaced_at_once_if_its_slot_is_needed(tool: WorkerBackend) -> None:
    task = a_task("block", {"seconds": 60})
    async with begun(tool, task) as (pid, job):
        job.cancel()
        await wait_until(lambda: bool(tool._drains))
        tool.end_cancelled("another")
        assert not is_gone(pid)
        tool.end_cancelled(task.id)
        with pytest.raises(asyncio.CancelledError):
            await job
    assert is_gone(pid)
    assert await answer(tool, a_task("pid")) != pid


async def test_an_endless_stream_ends_at_its_deadline(tool: WorkerBackend) -> None:
    with pytest.raises(DeadlineExceeded):
        await items(tool, a_task("endless", within_s=0.2))


async def test_killing_a_worker_also_kills_its_child_processes(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("spawn")) as (child, job):
        process = tool._slots[0].process
        assert process is not None
        process.kill("of this test")
        with pytest.raises(BackendUnavailable):
            await job
        await wait_until(lambda: state_of(child) == "Z")


async def test_closed_stream_stops_at_its_next_part_and_keeps_the_worker(tool: WorkerBackend) -> None:
    stream = tool.run(a_task("endless"))
    await anext(stream)
    began = time.monotonic()
    await stream.aclose()
    assert time.monotonic() - began < 2  # rather than the 20 s until its deadline
    assert await answer(tool, a_task("pid")) == pids(tool)[0]
    assert tool.workers[0]["restarts"] == 0


async def test_task_cancelled_before_its_first_step_frees_the_worker_at_once(tool: WorkerBackend) -> None:
    job = asyncio.create_task(items(tool, a_task("wait")))
    while tool.workers[0]["state"] != "busy":  # noqa: ASYNC110 - must cancel in the very next loop iteration
        await asyncio.sleep(0)
    job.cancel()  # so that the cancel frame travels with the start frame
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert time.monotonic() - began < 2  # rather than the 20 s until its deadline
    assert tool.workers[0]["restarts"] == 0


async def test_cancellation_returns_only_when_the_worker_is_idle_again(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("block", {"seconds": 0.3})) as (pid, job):
        began = time.monotonic()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert time.monotonic() - began > 0.2
        assert tool.workers[0]["state"] == "idle"
        assert await answer(tool, a_task("pid")) == pid


async def test_cancelled_task_that_does_not_end_is_killed_after_the_drain_timeout(tmp_path: Path) -> None:
    async with of(DelaysCancel) as backend:
        backend.drain_s = lambda: 1.0
        (pid,) = pids(backend)
        asked = {"seconds": 60, "begun": str(tmp_path / "begun")}
        job = asyncio.create_task(items(backend, a_task("echo", asked, within_s=1.0)))
        await wait_until((tmp_path / "begun").exists)  # a task that is cancelled before its first step ends at once
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert is_gone(pid)
        assert (await logged(backend, "worker.died"))[0]["how"] == (
            "was killed because a cancelled task did not end in time"
        )


async def test_cancelled_stream_that_does_not_end_is_killed_after_the_drain_timeout(tmp_path: Path) -> None:
    async with of(DelaysCancel) as backend:
        backend.drain_s = lambda: 0.2
        (pid,) = pids(backend)
        asked = {"seconds": 60, "begun": str(tmp_path / "begun")}
        job = asyncio.create_task(items(backend, a_task("echo", asked, within_s=86_400)))
        await wait_until((tmp_path / "begun").exists)
        job.cancel()
        await asyncio.wait([job], timeout=10)
        assert job.done()
        assert is_gone(pid)


async def test_second_cancellation_returns_at_once_while_the_worker_keeps_draining(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("block", {"seconds": 0.3})) as (pid, job):
        job.cancel()
        await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert await answer(tool, a_task("pid")) == pid


async def test_worker_that_dies_while_draining_is_replaced(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("block", {"seconds": 5})) as (pid, job):
        job.cancel()
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(asyncio.CancelledError):
            await job
    assert await answer(tool, a_task("pid")) != pid


async def test_task_waits_for_a_free_worker_only_until_its_deadline(tool: WorkerBackend) -> None:
    async with begun(tool, a_task("wait")):
        with pytest.raises(DeadlineExceeded, match="no worker of backend `here` was free"):
            await answer(tool, a_task("pid", within_s=0.05))


# ── states ───────────────────────────────────────────────────────────────────────────────────────


def test_state_table_leads_from_every_state_to_gone_and_never_back() -> None:
    assert all(target in TRANSITIONS for row in TRANSITIONS.values() for target in row.values())
    assert all(row["exited"] == "gone" for state, row in TRANSITIONS.items() if state != "gone")
    assert set(TRANSITIONS["gone"].values()) == {"gone"}


async def test_event_that_the_state_table_does_not_hold_raises(tool: WorkerBackend) -> None:
    process = tool._slots[0].process
    assert process is not None
    with pytest.raises(KeyError):
        process._transition("task_ended")  # no task was sent
    assert process.state == "idle"
