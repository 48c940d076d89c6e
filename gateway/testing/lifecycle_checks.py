"""Conformance checks of a backend's declaration, start, stop, site, and of `size`, `estimate` and `health`."""

from __future__ import annotations

import asyncio
import inspect
import math
from contextlib import suppress
from typing import Any, get_args

from gateway.plugin import Backend, Isolation, Kind, Site, Task
from gateway.plugin.checks import parse_names
from gateway.testing import resource_snapshot
from gateway.testing.fake_services import FakeView
from gateway.testing.harness import (
    CANCEL_S,
    START_S,
    BackendHarness,
    CheckFailed,
    CheckSkipped,
    describe_exception,
    ends_within,
    run_loop_turns,
    stop,
)
from gateway.testing.monitors import MAX_BLOCKED_S, ConnectionGuard, LoopMonitor
from gateway.testing.requests import describe, malformed, repeat

CANCEL_AFTER_TURNS = (0, 1, 2, 3, 5, 8, 13, 21, 34)


async def declaration(harness: BackendHarness) -> None:
    """The class attributes have valid values, and `run` is a coroutine function or an async generator."""
    cls = harness.cls
    _one_of("site", cls.site, get_args(Site))
    _one_of("isolation", cls.isolation, get_args(Isolation))
    for kind in cls.kinds:
        _one_of("kinds", kind, get_args(Kind))
    if type(cls.slots) is not int or cls.slots < 1:
        raise CheckFailed(f"slots is {cls.slots!r}", "a whole number, at least 1")
    for attribute in ("models", "tasks"):
        names = getattr(cls, attribute)
        if isinstance(names, str):
            raise CheckFailed(f"{attribute} is the string {names!r}", f'a tuple: {attribute} = ("{names}",)')
        if names is not None and not isinstance(names, property):
            parse_names(names)
    if not (inspect.iscoroutinefunction(cls.run) or inspect.isasyncgenfunction(cls.run)):
        raise CheckFailed("`run` is a plain function", "make it `async def run(self, task)`")


def _one_of(attribute: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise CheckFailed(f"{attribute} is {value!r}", f"one of: {', '.join(allowed)}")


async def construction(harness: BackendHarness) -> None:
    """The constructor is cheap and starts nothing; with worker processes it also runs in the gateway."""
    before = resource_snapshot.take_snapshot()
    with LoopMonitor() as monitor:
        try:
            harness.cls(harness.settings, harness.services)
        except Exception as exc:
            raise CheckFailed(
                f"`__init__` raised {describe_exception(exc)}",
                "only store settings and services; start in `__aenter__`",
            ) from exc
    await harness.expect_no_leaks(before, "by `__init__`")
    if monitor.longest_s > MAX_BLOCKED_S * 5:  # the first instance may import modules
        where = f" ({monitor.where})" if monitor.where else ""
        raise CheckFailed(
            f"`__init__` took {monitor.longest_s * 1000:.0f} ms{where}", "load models and large data in `__aenter__`"
        )


async def start_and_stop(harness: BackendHarness) -> None:
    """The backend starts, declares what it serves, stops, releases all resources, and can be started again."""
    for _ in range(1 if harness.is_process else 2):
        async with harness.fresh_backend() as backend:
            harness.find_tasks(backend)
            for attribute in ("models", "tasks"):
                parse_names(getattr(backend, attribute) or ())


async def half_start(harness: BackendHarness) -> None:
    """A start that is cancelled, at any await, releases its resources: `__aexit__` is not called then."""
    if harness.is_process:
        raise CheckSkipped("the end of a worker process releases the resources of an unfinished start")
    for turns in CANCEL_AFTER_TURNS:
        before = resource_snapshot.take_snapshot()
        backend = harness.build()
        starting = asyncio.create_task(backend.__aenter__())
        await run_loop_turns(turns)
        if not starting.cancel():
            await stop(backend)
            return
        if not await ends_within(starting, CANCEL_S):
            await ends_within(starting, START_S)
            raise CheckFailed("a cancelled `__aenter__` went on", "let CancelledError through; use no asyncio.shield")
        if not starting.cancelled():
            await _stop_started(backend, starting)
            raise CheckFailed("`__aenter__` swallowed its cancellation", "let CancelledError through after cleaning up")
        await harness.expect_no_leaks(before, "after a start that was cancelled half-way")


async def _stop_started(backend: Backend[Any], starting: asyncio.Task[Any]) -> None:
    with suppress(BaseException):
        starting.exception()
        await stop(backend)


async def questions(harness: BackendHarness) -> None:
    """`size`, `estimate` and `health` return valid values; `size` does so for any body, before the start too."""
    unstarted = harness.cls(harness.settings, harness.services)
    for task in harness.known_tasks():
        _check_size(unstarted, task)
        for bad in malformed(task):
            _check_size(unstarted, bad)
        _check_estimate(unstarted, task)
    async with harness.started_backend() as backend:
        error = await backend.health()
        if error is not None and not isinstance(error, str):
            raise CheckFailed(f"`health` returned {error!r}", "None if healthy, else a string that describes the fault")


def _check_size(backend: Backend[Any], task: Task) -> None:
    try:
        sizes = [backend.size(repeat(task)) for _ in range(2)]
    except Exception as exc:
        raise CheckFailed(
            f"`size` raised {describe_exception(exc)} for {describe(task)}",
            "return a size for any body that a client may send, before `__aenter__` too, such as len(task.body)",
        ) from exc
    size = sizes[0]
    if not isinstance(size, int | float) or not math.isfinite(size) or size < 0:
        raise CheckFailed(f"`size` is {size!r} for {describe(task)}", "a finite number, 0 or more")
    if sizes[0] != sizes[1]:
        raise CheckFailed(
            f"`size` is {sizes[0]!r}, then {sizes[1]!r}, for one request", "derive it from the task alone"
        )


def _check_estimate(backend: Backend[Any], task: Task) -> None:
    seconds = backend.estimate(repeat(task), FakeView())
    if seconds is not None and not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0):
        raise CheckFailed(f"`estimate` is {seconds!r} for {describe(task)}", "seconds, 0 or more, or None")


async def site(harness: BackendHarness) -> None:
    """A backend of site `edge` connects to loopback and private addresses only; the kit refuses other connections."""
    declared = harness.settings.site or harness.cls.site
    if declared == "cloud":
        raise CheckSkipped("its site is cloud, so data may leave")
    before = resource_snapshot.take_snapshot()
    with ConnectionGuard() as guard:
        backend = harness.cls(harness.settings, harness.services)
        with suppress(Exception):
            async with asyncio.timeout(START_S):
                await _use_all(harness, backend)
    await resource_snapshot.clean_up(before)
    if guard.refused:
        raise CheckFailed(
            f"its site is {declared}, and it connected to {', '.join(sorted(set(guard.refused)))}",
            'data leaves the site: declare site = "cloud", so that requests that must stay are not sent to it',
        )


async def _use_all(harness: BackendHarness, backend: Backend[Any]) -> None:
    async with backend:
        await backend.health()
        for task in harness.tasks:
            for stream in (False, True):
                with suppress(Exception):
                    await harness.run(backend, repeat(task, within_s=5, stream=stream))
