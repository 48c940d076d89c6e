"""When a request counts out for its key, and when a worker that drains is replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from gateway.admit import Gate
from gateway.admit.keys import Key
from gateway.dispatch.drains import GRACE_S, DrainMonitor
from gateway.plugin import TaskRefused


class Attempts:
    """Running attempts by their asyncio tasks, as the dispatcher keeps them."""

    def __init__(self) -> None:
        self.by_task: dict[Any, Any] = {}
        self.ended: list[str] = []
        self.waiting = 0
        scheduler: Any = SimpleNamespace(waiting=lambda: {"b": self.waiting})
        self.monitor = DrainMonitor(self.by_task, scheduler)
        self.member = SimpleNamespace(name="b", end_cancelled=self.ended.append)

    @asynccontextmanager
    async def running(self, task_id: str, parent_id: str | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """An attempt that ignores its cancellation until the block ends."""
        may_end = asyncio.Event()

        async def compute() -> None:
            while not may_end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await may_end.wait()

        task = asyncio.create_task(compute())
        self.by_task[task] = SimpleNamespace(task=SimpleNamespace(id=task_id, parent_id=parent_id), member=self.member)
        task.add_done_callback(self.by_task.pop)
        if parent_id is not None:
            self.monitor.add_subtask(task, parent_id)
        await asyncio.sleep(0)
        yield task
        may_end.set()
        await task
        await asyncio.sleep(0)  # its callbacks


def one_at_a_time() -> tuple[Gate, Any]:
    gate = Gate({"one": Key(sha256="", concurrency=1)})
    caller = gate.caller_for("one")
    gate.admit(caller)
    return gate, caller


def is_admitted(gate: Gate, caller: Any) -> bool:
    try:
        gate.admit(caller)
    except TaskRefused:
        return False
    caller.release()
    return True


async def test_request_without_running_attempts_counts_out_at_once() -> None:
    attempts, (gate, caller) = Attempts(), one_at_a_time()
    async with attempts.running("another"):
        attempts.monitor.release(caller, "r")
        assert is_admitted(gate, caller)


async def test_request_counts_until_its_subtasks_have_ended() -> None:
    attempts, (gate, caller) = Attempts(), one_at_a_time()
    async with attempts.running("inner-root") as other:
        assert not other.done()
        async with contextlib.AsyncExitStack() as stack:
            async with attempts.running("r"):
                child = attempts.running("child", "r")
                async with child:
                    await stack.enter_async_context(attempts.running("grandchild", "child"))
            attempts.monitor.release(caller, "r")  # only the grandchild still runs
            assert not is_admitted(gate, caller)
        assert is_admitted(gate, caller)


async def test_worker_is_replaced_only_after_the_grace_period_and_only_if_its_slot_is_needed() -> None:
    attempts = Attempts()
    async with attempts.running("r") as task:
        task.cancel()
        await asyncio.sleep(0)
        members: Any = {"b": attempts.member}
        for now, waiting, ended in ((0.0, 1, []), (GRACE_S - 0.1, 1, []), (GRACE_S, 0, []), (GRACE_S, 1, ["r"])):
            attempts.waiting = waiting
            attempts.monitor.check(members, now)
            assert attempts.ended == ended


async def test_refused_request_of_the_same_key_needs_the_slot() -> None:
    attempts, (gate, caller) = Attempts(), one_at_a_time()
    async with attempts.running("r") as task:
        task.cancel()
        await asyncio.sleep(0)
        attempts.monitor.release(caller, "r")
        attempts.monitor.check({"b": attempts.member}, 0.0)  # type: ignore[dict-item]
        attempts.monitor.check({"b": attempts.member}, GRACE_S)  # type: ignore[dict-item]
        assert attempts.ended == []
        assert not is_admitted(gate, caller)
        attempts.monitor.check({"b": attempts.member}, GRACE_S)  # type: ignore[dict-item]
        assert attempts.ended == ["r"]
    assert is_admitted(gate, caller)
