"""Checks of what a backend declares, of its start and stop, and of the questions it is asked beside the work."""

from __future__ import annotations

import asyncio
import inspect
import math
from contextlib import suppress
from typing import Any, get_args

from gateway.plugin import Backend, Isolation, Kind, Site, Task
from gateway.plugin.checks import parse_names
from gateway.testing import census
from gateway.testing.asking import again, mistaken, shown
from gateway.testing.bench import (
    CANCEL_S,
    START_S,
    Bench,
    Fault,
    KitView,
    Skipped,
    after_turns,
    ended,
    named,
    stopped,
)
from gateway.testing.watch import BLOCKED_S, Border, Stalls

TURNS = (0, 1, 2, 3, 5, 8, 13, 21, 34)


async def declaration(bench: Bench) -> None:
    """Its attributes are what the interface says, and `run` is a coroutine or an async generator."""
    cls = bench.cls
    _one_of("site", cls.site, get_args(Site))
    _one_of("isolation", cls.isolation, get_args(Isolation))
    for kind in cls.kinds:
        _one_of("kinds", kind, get_args(Kind))
    if type(cls.slots) is not int or cls.slots < 1:
        raise Fault(f"slots is {cls.slots!r}", "a whole number from 1 on")
    for attribute in ("models", "tasks"):
        names = getattr(cls, attribute)
        if isinstance(names, str):
            raise Fault(f"{attribute} is the text {names!r}", f'a tuple: {attribute} = ("{names}",)')
        if names is not None and not isinstance(names, property):
            parse_names(names)
    if not (inspect.iscoroutinefunction(cls.run) or inspect.isasyncgenfunction(cls.run)):
        raise Fault("`run` is a plain function", "make it `async def run(self, task)`")


def _one_of(attribute: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Fault(f"{attribute} is {value!r}", f"one of: {', '.join(allowed)}")


async def construction(bench: Bench) -> None:
    """Making one is cheap and starts nothing: it happens before the start, and once more for worker processes."""
    before = census.take()
    with Stalls() as stalls:
        try:
            bench.cls(bench.settings, bench.services)
        except Exception as exc:
            raise Fault(f"`__init__` raised {named(exc)}", "keep settings and services; start in `__aenter__`") from exc
    await bench.nothing_left(before, "by `__init__`")
    if stalls.longest_s > BLOCKED_S * 5:  # the first one may import
        where = f" ({stalls.where})" if stalls.where else ""
        raise Fault(f"`__init__` took {stalls.longest_s * 1000:.0f} ms{where}", "load what is big in `__aenter__`")


async def start_and_stop(bench: Bench) -> None:
    """It starts, says what it serves, stops, and leaves nothing behind; and can be started once more."""
    for _ in range(1 if bench.is_process else 2):
        async with bench.fresh() as backend:
            bench.look(backend)
            for attribute in ("models", "tasks"):
                parse_names(getattr(backend, attribute) or ())


async def half_start(bench: Bench) -> None:
    """A start that is cancelled, wherever it has got to, takes back what it had done: nobody calls its `__aexit__`."""
    if bench.is_process:
        raise Skipped("a worker process that is stopped while it starts takes everything with it")
    for turns in TURNS:
        before = census.take()
        backend = bench.build()
        starting = asyncio.create_task(backend.__aenter__())
        await after_turns(turns)
        if not starting.cancel():
            await stopped(backend)
            return
        if not await ended(starting, CANCEL_S):
            await ended(starting, START_S)
            raise Fault("a cancelled `__aenter__` went on", "let CancelledError through; shield nothing")
        if not starting.cancelled():
            await _tidy_up(backend, starting)
            raise Fault("`__aenter__` swallowed its cancellation", "let CancelledError through after cleaning up")
        await bench.nothing_left(before, "after a start that was cancelled half-way")


async def _tidy_up(backend: Backend[Any], starting: asyncio.Task[Any]) -> None:
    with suppress(BaseException):
        starting.exception()
        await stopped(backend)


async def questions(bench: Bench) -> None:
    """`size`, `estimate` and `health` answer with sane values; `size` for any body, before it was ever started."""
    unopened = bench.cls(bench.settings, bench.services)
    for task in bench.some_tasks():
        _size(unopened, task)
        for wrong in mistaken(task):
            _size(unopened, wrong)
        _estimate(unopened, task)
    async with bench.opened() as backend:
        said = await backend.health()
        if said is not None and not isinstance(said, str):
            raise Fault(f"`health` answered {said!r}", "None when well, else a text that says what is wrong")


def _size(backend: Backend[Any], task: Task) -> None:
    try:
        sizes = [backend.size(again(task)) for _ in range(2)]
    except Exception as exc:
        raise Fault(
            f"`size` raised {named(exc)} for {shown(task)}",
            "answer for any body a client may send, before `__aenter__` as well; len(task.body) is a fair guess",
        ) from exc
    size = sizes[0]
    if not isinstance(size, int | float) or not math.isfinite(size) or size < 0:
        raise Fault(f"`size` is {size!r} for {shown(task)}", "a finite number, 0 or more")
    if sizes[0] != sizes[1]:
        raise Fault(f"`size` is {sizes[0]!r}, then {sizes[1]!r}, for one request", "derive it from the task alone")


def _estimate(backend: Backend[Any], task: Task) -> None:
    seconds = backend.estimate(again(task), KitView())
    if seconds is not None and not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0):
        raise Fault(f"`estimate` is {seconds!r} for {shown(task)}", "seconds, 0 or more, or None")


async def site(bench: Bench) -> None:
    """What says `edge` connects to this site only: loopback and private addresses. The kit refuses any other."""
    declared = bench.settings.site or bench.cls.site
    if declared == "cloud":
        raise Skipped("its site is cloud: data may leave")
    before = census.take()
    with Border() as border:
        backend = bench.cls(bench.settings, bench.services)
        with suppress(Exception):
            async with asyncio.timeout(START_S):
                await _use(bench, backend)
    await census.clear_away(before)
    if border.refused:
        raise Fault(
            f"its site is {declared}, and it connected to {', '.join(sorted(set(border.refused)))}",
            'data leaves the site: declare site = "cloud", so that what may not leave is kept from it',
        )


async def _use(bench: Bench, backend: Backend[Any]) -> None:
    async with backend:
        await backend.health()
        for task in bench.tasks:
            for stream in (False, True):
                with suppress(Exception):
                    await bench.ask(backend, again(task, within_s=5, stream=stream))
