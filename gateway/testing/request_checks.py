"""Conformance checks of requests: answers, streams, cancellation, deadlines, concurrency, errors, leaks, blocking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from gateway.plugin import Backend, NotServed, Task
from gateway.plugin.errors import GatewayError
from gateway.testing import resource_snapshot
from gateway.testing.harness import (
    CANCEL_S,
    Answer,
    BackendHarness,
    CheckAdvice,
    CheckFailed,
    CheckSkipped,
    describe_exception,
    ends_within,
    plural,
    run_loop_turns,
)
from gateway.testing.lifecycle_checks import CANCEL_AFTER_TURNS
from gateway.testing.monitors import MAX_BLOCKED_S, LoopMonitor
from gateway.testing.network import FAULTS
from gateway.testing.requests import a_task, describe, malformed, repeat

MAX_CONCURRENT = 16
SHORT_DEADLINE_S = 0.05
OVERTIME_S = 1.0  # how long after its deadline a task may take to end
ROUNDS = 8
TRIES = 3
EXPECTED_ERRORS = (GatewayError, CheckFailed)
# Raised by code that uses a member of the request without checking that it exists.
UNVALIDATED = frozenset({"AttributeError", "IndexError", "KeyError", "TypeError"})


async def run(harness: BackendHarness) -> None:
    """Each request is answered by a Result or by Parts."""
    if not harness.tasks and not harness.unknown:
        raise CheckFailed("it names no models and no tasks, so no request can reach it", "declare `models` or `tasks`")
    if not harness.tasks:
        name = harness.unknown[0]
        raise CheckSkipped(
            f"no request is known that it should answer for the task `{name}`",
            f"declare one on the class, examples = {{\"{name}\": {{…}}}}, or pass one: --task '{name}={{…}}'",
        )
    async with harness.started_backend() as backend:
        served = [task for task in harness.tasks if await _is_served(harness, backend, task)]
    if not served:
        raise CheckFailed("it raised NotServed for each request", "pass a request that it answers")
    harness.tasks = served


async def _is_served(harness: BackendHarness, backend: Backend[Any], task: Task) -> bool:
    """Return whether the request is answered; NotServed is a valid outcome, too."""
    try:
        await _answer(harness, backend, repeat(task))
    except NotServed:
        return False
    return True


async def _answer(harness: BackendHarness, backend: Backend[Any], task: Task) -> Answer:
    since = len(harness.services.log.events)
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + 30):
            return await harness.run(backend, task)
    except (CheckFailed, NotServed):
        raise
    except TimeoutError:
        raise CheckFailed(f"{describe(task)}: no answer within 30 s", "answer, or raise an error") from None
    except Exception as exc:
        raised = harness.worker_exception(since, exc) or describe_exception(exc)
        raise CheckFailed(
            f"{describe(task)}: `run` raised {raised}", "answer it, or pass a request that it answers"
        ) from exc


async def stream(harness: BackendHarness) -> None:
    """A streaming request gives Parts or one Result; the work stops if the reader closes the stream early."""
    async with harness.started_backend() as backend:
        for task in harness.known_tasks():
            await _answer(harness, backend, repeat(task, stream=True))
            await _close_early(backend, repeat(task, stream=True))


async def _close_early(backend: Backend[Any], task: Task) -> None:
    produced = backend.run(task)
    if not isinstance(produced, AsyncIterator):
        cast(Any, produced).close()
        return
    with suppress(GatewayError):
        await anext(aiter(produced), None)
    closing = asyncio.create_task(cast(Any, produced).aclose())
    if not await ends_within(closing, CANCEL_S):
        closing.cancel()
        raise CheckFailed(
            f"{describe(task)}: its stream went on after the reader had closed it",
            "stop at GeneratorExit; clean up quickly",
        )
    if (exc := closing.exception()) is not None:
        raise CheckFailed(
            f"{describe(task)}: closing its stream raised {describe_exception(exc)}",
            "let GeneratorExit through; do not yield after it",
        )


async def cancel(harness: BackendHarness) -> None:
    """A task that is cancelled, at any await, ends within a second and lets CancelledError through."""
    async with harness.started_backend() as backend:
        for task in harness.known_tasks():
            for turns in CANCEL_AFTER_TURNS if not harness.is_process else (1, 13):
                if not await _cancelled_after(harness, backend, task, turns):
                    break
            await _answer(harness, backend, repeat(task))


async def _cancelled_after(harness: BackendHarness, backend: Backend[Any], task: Task, turns: int) -> bool:
    """Cancel a run after so many turns of the loop. Returns False if it had ended before."""
    job = asyncio.create_task(harness.run(backend, repeat(task, within_s=5 if harness.is_process else 30)))
    await run_loop_turns(turns)
    if not job.cancel():
        with suppress(*EXPECTED_ERRORS):
            job.result()
        return False
    if not await ends_within(job, 10 if harness.is_process else CANCEL_S):
        await ends_within(job, 5)
        job.cancel()
        raise CheckFailed(
            f"{describe(task)}: it went on for more than {CANCEL_S:g} s after it was cancelled", _CANCEL_FIX
        )
    if not job.cancelled():
        exc = job.exception()
        outcome = f"raised {describe_exception(exc)}" if exc else "answered"
        raise CheckFailed(f"{describe(task)}: it swallowed its cancellation and {outcome}", _CANCEL_FIX)
    return True


_CANCEL_FIX = "clean up in `finally`, and let asyncio.CancelledError through"


async def deadline(harness: BackendHarness) -> None:
    """A task at its deadline ends: with an answer, with DeadlineExceeded, or by the gateway's cancellation."""
    async with harness.started_backend() as backend:
        for task in harness.known_tasks():
            for within_s in (-1.0, SHORT_DEADLINE_S):
                await _ends_in_time(harness, backend, repeat(task, within_s=within_s))


async def _ends_in_time(harness: BackendHarness, backend: Backend[Any], task: Task) -> None:
    job = asyncio.create_task(harness.run(backend, task))
    await ends_within(job, SHORT_DEADLINE_S)
    job.cancel()  # as the gateway does
    if not await ends_within(job, OVERTIME_S):
        await ends_within(job, 5)
        raise CheckFailed(
            f"{describe(task)}: it went on for more than {OVERTIME_S:g} s after its deadline",
            "stop when you are cancelled; a blocking call needs isolation = 'process'",
        )
    if job.cancelled() or (exc := job.exception()) is None or isinstance(exc, EXPECTED_ERRORS):
        return
    raise CheckFailed(
        f"{describe(task)}: after its deadline it raised {describe_exception(exc)}",
        "raise DeadlineExceeded, or let CancelledError through",
    ) from exc


async def concurrency(harness: BackendHarness) -> None:
    """With as many tasks at once as there are slots, each gets the same answer as alone."""
    tasks = harness.known_tasks()
    async with harness.started_backend() as backend:
        alone = [[await _answer(harness, backend, repeat(task)) for _ in range(2)] for task in tasks]
        slots = min(backend.slots, MAX_CONCURRENT)
        jobs = [(n % len(tasks), repeat(tasks[n % len(tasks)])) for n in range(max(slots, 1))]
        answers = await _run_all(harness, backend, [task for _, task in jobs])
        for (number, task), answer in zip(jobs, answers, strict=True):
            if isinstance(answer, BaseException):
                raise CheckFailed(
                    f"{describe(task)}: alone it is answered, "
                    f"among {slots} at once it raised {describe_exception(answer)}",
                    f"declare fewer slots than {slots}, or do not store the state of one task in `self`",
                )
            if alone[number][0] == alone[number][1] != answer:
                raise CheckFailed(
                    f"{describe(task)}: among {slots} at once it got another answer than alone",
                    "do not store the state of one task in `self`: tasks run concurrently",
                )


async def _run_all(harness: BackendHarness, backend: Backend[Any], tasks: list[Task]) -> list[Answer | BaseException]:
    try:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(harness.run(backend, task) for task in tasks), return_exceptions=True)
    except TimeoutError:
        raise CheckFailed(
            f"{plural(len(tasks), 'task')} at once were not done after 60 s", "check for a deadlock"
        ) from None


async def errors(harness: BackendHarness) -> None:
    """Malformed requests and network faults end in an answer or in an error of `gateway.plugin`."""
    tasks = harness.tasks + [a_task(name, {}) for name in harness.unknown]
    if not tasks:
        raise CheckSkipped("it names no tasks and no models")
    async with harness.started_backend() as backend:
        unvalidated = [fault for task in tasks if (fault := await _unvalidated_input(harness, backend, task))]
        if harness.network is not None:
            for name, meaning in FAULTS.items():
                with harness.network.failing(name):
                    for task in harness.tasks:
                        await _must_fail(harness, backend, repeat(task, within_s=0.3), name, meaning)
    if unvalidated:
        effect = "; the client gets 500 plugin_error instead of 400"
        raise CheckAdvice(unvalidated[0].message + effect, unvalidated[0].fix)


async def _unvalidated_input(harness: BackendHarness, backend: Backend[Any], task: Task) -> CheckFailed | None:
    """Return the first failure that validation of the request would have prevented, if any."""
    first: CheckFailed | None = None
    fix = "raise TaskInvalid for a client's mistake: task.argument(name, type) does"
    for bad in malformed(task):
        try:
            await _outcome_of(harness, backend, bad, fix)
        except CheckFailed as fault:
            if fault.raised not in UNVALIDATED:
                raise
            first = first or fault
    return first


async def _outcome_of(
    harness: BackendHarness, backend: Backend[Any], task: Task, fix: str
) -> Answer | GatewayError | None:
    since = len(harness.services.log.events)
    try:
        async with asyncio.timeout(max(task.deadline - time.monotonic(), 0) + OVERTIME_S):
            answer: Answer | GatewayError = await harness.run(backend, task)
    except CheckFailed:
        raise
    except GatewayError as exc:
        if (raised := harness.worker_exception(since, exc)) is None:
            return exc
        raise CheckFailed(f"{describe(task)}: `run` raised {raised}", fix, raised.partition(":")[0]) from exc
    except TimeoutError:
        return None
    except Exception as exc:
        raise CheckFailed(f"{describe(task)}: `run` raised {describe_exception(exc)}", fix, type(exc).__name__) from exc
    return answer


async def _must_fail(harness: BackendHarness, backend: Backend[Any], task: Task, fault: str, meaning: str) -> None:
    fix = f"if {meaning}, raise BackendUnavailable `from` the exception; another backend is tried then"
    outcome = await _outcome_of(harness, backend, task, fix)
    if isinstance(outcome, Answer) and fault not in ("shapeless", "silence"):
        raise CheckFailed(f"{describe(task)}: it answered although {meaning}", fix)
    if outcome is None:
        raise CheckFailed(
            f"{describe(task)}: it went on {OVERTIME_S:g} s after its deadline while {meaning}",
            "limit every wait to task.deadline with `asyncio.timeout_at(…)`, and raise DeadlineExceeded",
        )


async def growth(harness: BackendHarness) -> None:
    """The number of open files, threads, asyncio tasks and processes does not grow with the number of runs."""
    async with harness.started_backend() as backend:
        for task in harness.known_tasks():
            await _run_rounds(harness, backend, task, TRIES)
            before = resource_snapshot.resource_counts(harness.process_ids(backend))
            await _run_rounds(harness, backend, task, ROUNDS)
            await asyncio.sleep(0)
            after = resource_snapshot.resource_counts(harness.process_ids(backend))
            for kind, count in after.items():
                if count - before[kind] >= ROUNDS:
                    raise CheckFailed(
                        f"{describe(task)}: each run leaves something behind: after {ROUNDS} runs there are "
                        f"{plural(count - before[kind], _RESOURCE_NOUNS[kind])} more",
                        "close in `finally`, or use `with`",
                    )


_RESOURCE_NOUNS = {"files": "open file", "threads": "thread", "tasks": "asyncio task", "processes": "process"}


async def _run_rounds(harness: BackendHarness, backend: Backend[Any], task: Task, rounds: int) -> None:
    for number in range(rounds):
        with suppress(GatewayError):
            await harness.run(backend, repeat(task, stream=bool(number % 2)))


async def responsive(harness: BackendHarness) -> None:
    """In the gateway's event loop the backend never blocks for more than 20 ms."""
    if harness.is_process:
        raise CheckSkipped("a backend in worker processes may block")
    async with harness.started_backend() as backend:
        for task in harness.known_tasks():
            blocked = [await _blocked(harness, backend, task) for _ in range(TRIES)]
            longest_s = min(blocked)[0]  # other load delays some tries, the backend's own code all of them
            where = next((place for _, place in blocked if place), "")
            if longest_s > MAX_BLOCKED_S:
                raise CheckFailed(
                    f"{describe(task)}: it blocked the event loop for {longest_s * 1000:.0f} ms"
                    + (f", at {where}" if where else ""),
                    "use async calls, or set isolation = 'process', which allows blocking calls",
                )


async def _blocked(harness: BackendHarness, backend: Backend[Any], task: Task) -> tuple[float, str]:
    with LoopMonitor() as monitor:
        with suppress(GatewayError):
            await harness.run(backend, repeat(task))
        await asyncio.sleep(0)
    return monitor.longest_s, monitor.where
