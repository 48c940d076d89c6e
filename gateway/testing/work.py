"""Checks of the work itself: answers, streams, cancellation, deadlines, concurrency, errors, and what builds up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from gateway.plugin import Backend, NotServed, Task
from gateway.plugin.errors import GatewayError
from gateway.testing import census
from gateway.testing.asking import a_task, again, mistaken, shown
from gateway.testing.bench import CANCEL_S, Advice, Answer, Bench, Fault, Skipped, after_turns, counted, ended, named
from gateway.testing.life import TURNS
from gateway.testing.network import FAULTS
from gateway.testing.watch import BLOCKED_S, Stalls

MAX_AT_ONCE = 16
SHORT_S = 0.05
OVER_S = 1.0  # how long after its deadline a task may take to be over
ROUNDS = 8
TRIES = 3
EXPECTED = (GatewayError, Fault)
UNCHECKED = frozenset({"AttributeError", "IndexError", "KeyError", "TypeError"})  # of reading what is not there


async def run(bench: Bench) -> None:
    """Each request is answered by a Result, or by Parts."""
    if not bench.tasks and not bench.unknown:
        raise Fault("it names no models and no tasks: nobody can ask it for anything", "declare `models` or `tasks`")
    if not bench.tasks:
        name = bench.unknown[0]
        raise Skipped(
            f"no request is known that it should answer, for the task `{name}`",
            f"declare one on the class, examples = {{\"{name}\": {{…}}}}, or give one: --task '{name}={{…}}'",
        )
    async with bench.opened() as backend:
        served = [task for task in bench.tasks if await _is_served(bench, backend, task)]
    if not served:
        raise Fault("it says of each request that it does not serve such", "give the kit a request that it answers")
    bench.tasks = served


async def _is_served(bench: Bench, backend: Backend[Any], task: Task) -> bool:
    """Whether it is answered; False where the backend says that it does not serve such, which is a promise kept."""
    try:
        await _answer(bench, backend, again(task))
    except NotServed:
        return False
    return True


async def _answer(bench: Bench, backend: Backend[Any], task: Task) -> Answer:
    since = len(bench.services.log.events)
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + 30):
            return await bench.ask(backend, task)
    except (Fault, NotServed):
        raise
    except TimeoutError:
        raise Fault(f"{shown(task)}: no answer within 30 s", "answer, or raise") from None
    except Exception as exc:
        what = bench.worker_raised(since, exc) or named(exc)
        raise Fault(
            f"{shown(task)}: `run` raised {what}", "answer it, or give the kit a request that it answers"
        ) from exc


async def stream(bench: Bench) -> None:
    """Asked for parts it streams or gives one Result; a reader that leaves after the first part stops the work."""
    async with bench.opened() as backend:
        for task in bench.some_tasks():
            await _answer(bench, backend, again(task, stream=True))
            await _leave_early(backend, again(task, stream=True))


async def _leave_early(backend: Backend[Any], task: Task) -> None:
    produced = backend.run(task)
    if not isinstance(produced, AsyncIterator):
        cast(Any, produced).close()
        return
    with suppress(GatewayError):
        await anext(aiter(produced), None)
    closing = asyncio.create_task(cast(Any, produced).aclose())
    if not await ended(closing, CANCEL_S):
        closing.cancel()
        raise Fault(
            f"{shown(task)}: its stream went on after the reader had left", "stop at GeneratorExit; clean up quickly"
        )
    if (exc := closing.exception()) is not None:
        raise Fault(
            f"{shown(task)}: closing its stream raised {named(exc)}", "let GeneratorExit through: yield no more"
        )


async def cancel(bench: Bench) -> None:
    """A task that is cancelled, wherever it has got to, is over within a second and lets CancelledError through."""
    async with bench.opened() as backend:
        for task in bench.some_tasks():
            for turns in TURNS if not bench.is_process else (1, 13):
                if not await _cancelled_after(bench, backend, task, turns):
                    break
            await _answer(bench, backend, again(task))


async def _cancelled_after(bench: Bench, backend: Backend[Any], task: Task, turns: int) -> bool:
    """Whether it was still at work by then."""
    job = asyncio.create_task(bench.ask(backend, again(task, within_s=5 if bench.is_process else 30)))
    await after_turns(turns)
    if not job.cancel():
        with suppress(*EXPECTED):
            job.result()
        return False
    if not await ended(job, 10 if bench.is_process else CANCEL_S):
        await ended(job, 5)
        job.cancel()
        raise Fault(f"{shown(task)}: it went on for more than {CANCEL_S:g} s after it was cancelled", _LET_THROUGH)
    if not job.cancelled():
        exc = job.exception()
        came = f"raised {named(exc)}" if exc else "answered"
        raise Fault(f"{shown(task)}: it swallowed its cancellation and {came}", _LET_THROUGH)
    return True


_LET_THROUGH = "nobody waits any more: clean up in `finally`, and let asyncio.CancelledError through"


async def deadline(bench: Bench) -> None:
    """A task whose time is up, or is up soon, is over soon: answered, DeadlineExceeded, or stopped by the gateway."""
    async with bench.opened() as backend:
        for task in bench.some_tasks():
            for within_s in (-1.0, SHORT_S):
                await _over_in_time(bench, backend, again(task, within_s=within_s))


async def _over_in_time(bench: Bench, backend: Backend[Any], task: Task) -> None:
    job = asyncio.create_task(bench.ask(backend, task))
    await ended(job, SHORT_S)
    job.cancel()  # as the gateway does
    if not await ended(job, OVER_S):
        await ended(job, 5)
        raise Fault(
            f"{shown(task)}: it went on for more than {OVER_S:g} s after its deadline",
            "stop when you are cancelled; a blocking call belongs into isolation = 'process'",
        )
    if job.cancelled() or (exc := job.exception()) is None or isinstance(exc, EXPECTED):
        return
    raise Fault(f"{shown(task)}: with its time up it raised {named(exc)}", "raise DeadlineExceeded, or let go") from exc


async def concurrency(bench: Bench) -> None:
    """As many tasks at once as it has slots: each gets the answer it gets alone."""
    tasks = bench.some_tasks()
    async with bench.opened() as backend:
        alone = [[await _answer(bench, backend, again(task)) for _ in range(2)] for task in tasks]
        slots = min(backend.slots, MAX_AT_ONCE)
        jobs = [(n % len(tasks), again(tasks[n % len(tasks)])) for n in range(max(slots, 1))]
        answers = await _all(bench, backend, [task for _, task in jobs])
        for (number, task), answer in zip(jobs, answers, strict=True):
            if isinstance(answer, BaseException):
                raise Fault(
                    f"{shown(task)}: alone it is answered, among {slots} at once it raised {named(answer)}",
                    f"declare fewer slots than {slots}, or keep what belongs to one task out of `self`",
                )
            if alone[number][0] == alone[number][1] != answer:
                raise Fault(
                    f"{shown(task)}: among {slots} at once it got another answer than alone",
                    "keep what belongs to one task out of `self`: tasks run at the same time",
                )


async def _all(bench: Bench, backend: Backend[Any], tasks: list[Task]) -> list[Answer | BaseException]:
    try:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(bench.ask(backend, task) for task in tasks), return_exceptions=True)
    except TimeoutError:
        raise Fault(f"{counted(len(tasks), 'task')} at once were not done after 60 s", "is there a lock?") from None


async def errors(bench: Bench) -> None:
    """Whatever a client sends, and whatever the network does, ends in an answer or an error of `gateway.plugin`."""
    tasks = bench.tasks + [a_task(name, {}) for name in bench.unknown]
    if not tasks:
        raise Skipped("it names nothing that it serves")
    async with bench.opened() as backend:
        unchecked = [fault for task in tasks if (fault := await _mistaken_for_a_bug(bench, backend, task))]
        if bench.network is not None:
            for trouble, meaning in FAULTS.items():
                with bench.network.failing(trouble):
                    for task in bench.tasks:
                        await _must_fail(bench, backend, again(task, within_s=0.3), trouble, meaning)
    if unchecked:
        told = "; its client is told 500 plugin_error where 400 is due"
        raise Advice(unchecked[0].message + told, unchecked[0].fix)


async def _mistaken_for_a_bug(bench: Bench, backend: Backend[Any], task: Task) -> Fault | None:
    """The first of a client's mistakes that it did not look for before it read what was not there."""
    first: Fault | None = None
    fix = "raise TaskInvalid for a client's mistake: task.argument(name, type) does"
    for wrong in mistaken(task):
        try:
            await _ends_well(bench, backend, wrong, fix)
        except Fault as fault:
            if fault.raised not in UNCHECKED:
                raise
            first = first or fault
    return first


async def _ends_well(bench: Bench, backend: Backend[Any], task: Task, fix: str) -> Answer | GatewayError | None:
    since = len(bench.services.log.events)
    try:
        async with asyncio.timeout(max(task.deadline - time.monotonic(), 0) + OVER_S):
            answer: Answer | GatewayError = await bench.ask(backend, task)
    except Fault:
        raise
    except GatewayError as exc:
        if (raised := bench.worker_raised(since, exc)) is None:
            return exc
        raise Fault(f"{shown(task)}: `run` raised {raised}", fix, raised.partition(":")[0]) from exc
    except TimeoutError:
        return None
    except Exception as exc:
        raise Fault(f"{shown(task)}: `run` raised {named(exc)}", fix, type(exc).__name__) from exc
    return answer


async def _must_fail(bench: Bench, backend: Backend[Any], task: Task, fault: str, meaning: str) -> None:
    fix = f"where {meaning}, raise BackendUnavailable (another may be asked) `from` it"
    came = await _ends_well(bench, backend, task, fix)
    if isinstance(came, Answer) and fault not in ("shapeless", "silence"):
        raise Fault(f"{shown(task)}: it was answered although {meaning}", fix)
    if came is None:
        raise Fault(
            f"{shown(task)}: it went on {OVER_S:g} s beyond its deadline while {meaning}",
            "bound every wait by task.deadline: `async with asyncio.timeout_at(…)`, and raise DeadlineExceeded",
        )


async def growth(bench: Bench) -> None:
    """What it holds does not grow with the number of tasks it has done."""
    async with bench.opened() as backend:
        for task in bench.some_tasks():
            await _rounds(bench, backend, task, TRIES)
            before = census.held(bench.pids(backend))
            await _rounds(bench, backend, task, ROUNDS)
            await asyncio.sleep(0)
            after = census.held(bench.pids(backend))
            for kind, count in after.items():
                if count - before[kind] >= ROUNDS:
                    raise Fault(
                        f"{shown(task)}: each run leaves something behind: after {ROUNDS} runs there are "
                        f"{counted(count - before[kind], _THING[kind])} more",
                        "close in `finally`, or use `with`",
                    )


_THING = {"files": "open file", "threads": "thread", "tasks": "asyncio task", "processes": "process"}


async def _rounds(bench: Bench, backend: Backend[Any], task: Task, rounds: int) -> None:
    for number in range(rounds):
        with suppress(GatewayError):
            await bench.ask(backend, again(task, stream=bool(number % 2)))


async def responsive(bench: Bench) -> None:
    """In the gateway's loop it never keeps the others waiting for more than 20 ms."""
    if bench.is_process:
        raise Skipped("in worker processes it may block")
    async with bench.opened() as backend:
        for task in bench.some_tasks():
            blocked = [await _blocked(bench, backend, task) for _ in range(TRIES)]
            longest_s = min(blocked)[0]  # a stall that is the backend's own is there each time
            where = next((place for _, place in blocked if place), "")
            if longest_s > BLOCKED_S:
                raise Fault(
                    f"{shown(task)}: it blocked the event loop for {longest_s * 1000:.0f} ms"
                    + (f", at {where}" if where else ""),
                    "await what waits, or set isolation = 'process' and block there as you like",
                )


async def _blocked(bench: Bench, backend: Backend[Any], task: Task) -> tuple[float, str]:
    with Stalls() as stalls:
        with suppress(GatewayError):
            await bench.ask(backend, again(task))
        await asyncio.sleep(0)
    return stalls.longest_s, stalls.where
