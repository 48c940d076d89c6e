"""When a cancelled attempt that keeps running counts as leaked."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.dispatch.leaks import LEAKED_S, LeakDetector
from gateway.health.breaker import Breaker
from gateway.health.quarantine import Quarantine
from gateway.plugin import Backend, Task
from gateway.registry import ManagedBackend
from gateway.workers import WorkerBackend
from support.clock import Clock
from support.recording_services import RecordingServices
from support.worker_backends import Quick

DAY_S = 86_400.0


def _member(backend: Backend[Any]) -> ManagedBackend:
    clock = Clock()
    return ManagedBackend(
        name="b",
        plugin="p",
        settings=backend.settings,
        backend=backend,
        breaker=Breaker(clock, lambda *_: None),
        quarantine=Quarantine(clock, lambda *_: None),
    )


def _pool(drain_s: float) -> Backend[Any]:
    return WorkerBackend(Quick, Quick.Settings(), RecordingServices(), slots=1, drain_s=lambda: drain_s)


@pytest.mark.parametrize(
    ("backend", "deadline", "late_after_s"),
    [
        (Quick(Quick.Settings(), RecordingServices()), DAY_S, LEAKED_S),
        (_pool(30.0), DAY_S, 30.0 + LEAKED_S),
        (_pool(30.0), 10.0, 30.0 + LEAKED_S),
    ],
    ids=["in the loop", "worker", "worker, a client's short deadline"],
)
async def test_cancelled_attempt_counts_as_leaked_after_its_grace_period(
    backend: Backend[Any], deadline: float, late_after_s: float
) -> None:
    may_end = asyncio.Event()

    async def ignores() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await may_end.wait()
        await may_end.wait()

    member, running = _member(backend), asyncio.create_task(ignores())
    attempts: Any = {running: SimpleNamespace(task=Task(kind="task", name="t", deadline=deadline), member=member)}
    await asyncio.sleep(0)
    running.cancel()
    leaks = LeakDetector()
    for now, leaked in ((0.0, 0), (late_after_s - 0.1, 0), (late_after_s, 1)):
        leaks.check(attempts, {"b": member}, now)
        assert member.quarantine.leaked == leaked
    may_end.set()
    await running
