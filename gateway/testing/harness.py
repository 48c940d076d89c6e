"""The harness for a backend under test: it builds, starts, runs and stops the backend, and detects leaks.

A check raises `CheckFailed` if the contract is violated, `CheckAdvice` if it is kept but the backend should improve,
and `CheckSkipped` if the check does not apply.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from gateway.plugin import Backend, BackendSettings, Part, Result, Task
from gateway.testing import resource_snapshot
from gateway.testing.fake_services import Dispatch, FakeServices, echo_subtask
from gateway.testing.network import FakeNetwork
from gateway.testing.requests import describe, example_tasks
from gateway.testing.resource_snapshot import ResourceSnapshot
from gateway.workers import WorkerBackend

START_S, STOP_S = 60.0, 5.0
RELEASE_S = 0.5  # how long after its stop a backend's resources may take to be released
CANCEL_S = 1.0  # how long a cancelled task may take to end
LEAK_FIXES = {
    "tasks": "keep a reference to every task you create, and cancel and await it in `__aexit__`",
    "files": "close every file, socket and session in `__aexit__` (and in `__aenter__`, if that fails half-way)",
    "threads": "stop every thread and executor in `__aexit__`, and join it",
    "processes": "end every process in `__aexit__`, and wait for it",
}
RESOURCE_NOUNS = {
    "tasks": "asyncio task", "files": "open file or socket", "threads": "thread", "processes": "process",
}  # fmt: skip


class CheckFailed(AssertionError):
    """The backend violates its contract. message: the fault. fix: how to fix it.

    raised: the name of the exception's type, if the fault is an exception that is not a GatewayError.
    """

    def __init__(self, message: str, fix: str, raised: str = "") -> None:
        super().__init__(message)
        self.message, self.fix, self.raised = message, fix, raised


class CheckAdvice(Exception):
    """The backend keeps its contract, but should improve. message: the weakness. fix: how to fix it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


class CheckSkipped(Exception):
    """The check does not apply. message: the reason. fix: how to have it checked, if that is possible."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one run, as comparable values: the parts of a stream, or the result."""

    parts: tuple[Any, ...] = ()
    result: Any = None


@dataclass
class BackendHarness:
    """One backend under test: its class, settings and requests.

    examples: the requests given to `check_backend`. tasks: requests that the backend should answer, known once it was
    started. unknown: names that it serves for which no request is known.
    """

    cls: type[Backend[Any]]
    settings: BackendSettings
    examples: Mapping[str, Any] | Sequence[Task] | None = None
    network: FakeNetwork | None = None
    dispatch: Dispatch = echo_subtask
    tasks: list[Task] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    services: FakeServices = field(init=False)
    _reported_leaks: set[str] = field(default_factory=set)
    _shared: Backend[Any] | None = None
    _before_shared: ResourceSnapshot | None = None

    def __post_init__(self) -> None:
        self.services = FakeServices(self.cls.__name__.lower(), self.dispatch)

    @property
    def is_process(self) -> bool:
        """Whether the backend runs in worker processes."""
        return (self.settings.isolation or self.cls.isolation) == "process"

    def build(self) -> Backend[Any]:
        """Return a new instance, made as the gateway makes it, but with at most two worker processes."""
        if self.is_process:
            slots = self.settings.slots or self.cls.slots
            return WorkerBackend(self.cls, self.settings, self.services, slots=min(slots, 2))
        return self.cls(self.settings, self.services)

    def find_tasks(self, backend: Backend[Any]) -> None:
        """Set `tasks` and `unknown` from the names that the started `backend` serves."""
        self.tasks, self.unknown = example_tasks(backend, self.cls, self.examples)

    def known_tasks(self) -> list[Task]:
        """Return `tasks`. Raises CheckSkipped if it is empty, without a fix: that of the check `run` is enough."""
        if not self.tasks:
            raise CheckSkipped("no request is known that it should answer")
        return self.tasks

    # ── start and stop ───────────────────────────────────────────────────────────────────────────

    def started_backend(self) -> AbstractAsyncContextManager[Backend[Any]]:
        """Return a context with a started instance.

        Worker processes are slow to start, so all checks share one instance, which `close` stops.
        """
        return self._shared_backend() if self.is_process else self.fresh_backend()

    @asynccontextmanager
    async def _shared_backend(self) -> AsyncIterator[Backend[Any]]:
        if self._shared is None:
            self._before_shared = resource_snapshot.take_snapshot()
            self._shared = await start(self.build())
        yield self._shared

    @asynccontextmanager
    async def fresh_backend(self) -> AsyncIterator[Backend[Any]]:
        """Start a new instance and stop it at the end. Raises CheckFailed if it leaks resources."""
        before = resource_snapshot.take_snapshot()
        backend = await start(self.build())
        try:
            yield backend
        except BaseException:
            with suppress(Exception):
                await stop(backend)
            await resource_snapshot.clean_up(before)
            raise
        await stop(backend)
        await self.expect_no_leaks(before, "after it was stopped")

    async def close(self) -> None:
        """Stop the shared instance. Raises CheckFailed if it leaks resources."""
        if self._shared is not None and self._before_shared is not None:
            shared, self._shared = self._shared, None
            await stop(shared)
            await self.expect_no_leaks(self._before_shared, "after it was stopped")

    async def expect_no_leaks(self, before: ResourceSnapshot, when: str) -> None:
        """Raise CheckFailed if resources are new since `before`; each kind is reported once."""
        leaks = await resource_snapshot.wait_for_release(before, RELEASE_S)
        await resource_snapshot.clean_up(before)
        for kind, names in leaks.items():
            if kind not in self._reported_leaks:
                self._reported_leaks.add(kind)
                count = plural(len(names), RESOURCE_NOUNS[kind])
                raise CheckFailed(f"{count} left {when}: {', '.join(names[:3])}", LEAK_FIXES[kind])

    def process_ids(self, backend: Backend[Any]) -> list[int]:
        """Return the ids of the processes in which `backend` runs, this process included."""
        workers = backend.workers if isinstance(backend, WorkerBackend) else []
        return [os.getpid(), *(worker["pid"] for worker in workers if worker["pid"])]

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    async def run(self, backend: Backend[Any], task: Task) -> Answer:
        """Run `task` as the gateway does. Raises CheckFailed for an invalid answer, and the backend's errors."""
        produced = backend.run(task)
        if isinstance(produced, AsyncIterator):
            return await _collect(produced, task)
        if not isinstance(produced, Awaitable):
            raise CheckFailed(
                f"{describe(task)}: `run` returned {_with_article(produced)}, which cannot be awaited",
                "make `run` an `async def` that returns a Result, or an async generator",
            )
        return Answer(result=check_result(await produced, task))

    def worker_exception(self, since: int, received: BaseException) -> str | None:
        """Return the type and text of the last unexpected exception in a worker, or None.

        since: the number of log events before the run. received: the error that the run raised here.
        """
        raised = [keys for event, keys in self.services.log.events[since:] if event == "worker.raised"]
        if not raised:
            return None
        text = getattr(received, "text", "")
        return f"{raised[-1]['error']}: {text}" if text else str(raised[-1]["error"])


# ── start and stop ───────────────────────────────────────────────────────────────────────────────


async def start(backend: Backend[Any]) -> Backend[Any]:
    """Enter the backend. Raises CheckFailed if that fails or takes longer than START_S."""
    try:
        async with asyncio.timeout(START_S):
            entered = await backend.__aenter__()
    except TimeoutError:
        fix = "start slow work in the background"
        raise CheckFailed(f"`__aenter__` was not done after {START_S:g} s", fix) from None
    except Exception as exc:
        detail = getattr(exc, "detail", "")  # the text of an exception that a worker raised
        raised = describe_exception(exc) + (f": {detail}" if detail else "")
        fix = "see the message; is a setting missing (--set KEY=VALUE)?"
        raise CheckFailed(f"`__aenter__` raised {raised}", fix) from exc
    if entered is not backend:
        returned = _with_article(entered)
        raise CheckFailed(
            f"`__aenter__` returned {returned}, not the backend itself", "end `__aenter__` with `return self`"
        )
    return backend


async def stop(backend: Backend[Any]) -> None:
    """Leave the backend. Raises CheckFailed if that fails or takes longer than STOP_S."""
    try:
        async with asyncio.timeout(STOP_S):
            await backend.__aexit__(None, None, None)
    except TimeoutError:
        fix = "cancel running work instead of waiting for it"
        raise CheckFailed(f"`__aexit__` was not done after {STOP_S:g} s", fix) from None
    except Exception as exc:
        fix = "release the resources in whatever state the backend is"
        raise CheckFailed(f"`__aexit__` raised {describe_exception(exc)}", fix) from exc


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


async def _collect(produced: AsyncIterator[Any], task: Task) -> Answer:
    parts: list[Any] = []
    async with aclosing(cast("AsyncGenerator[Any]", produced)) as items:
        async for item in items:
            if not isinstance(item, Part):
                if parts:
                    raise CheckFailed(
                        f"{describe(task)}: `run` yielded {_with_article(item)} after {plural(len(parts), 'Part')}",
                        "yield Parts only; a Result must be the first and only item",
                    )
                return Answer(result=check_result(item, task))
            parts.append(_encode(item.data, task) if item.raw is None else item.raw)
    if not parts:
        raise CheckFailed(f"{describe(task)}: `run` yielded no item", "yield at least one Part, or one Result")
    return Answer(parts=tuple(parts))


def check_result(result: Any, task: Task) -> Any:
    """Return the value of a result, for comparisons. Raises CheckFailed if it is not a valid Result."""
    if not isinstance(result, Result):
        returned = _with_article(result)
        raise CheckFailed(
            f"{describe(task)}: `run` returned {returned}, which is neither Result nor Part", "return Result(json=…)"
        )
    if not isinstance(result.status, int) or not 200 <= result.status < 600:
        raise CheckFailed(f"{describe(task)}: its status is {result.status!r}", "an HTTP status: 200 for a success")
    confidence = result.confidence
    if confidence is not None and not (isinstance(confidence, int | float) and 0 <= confidence <= 1):
        raise CheckFailed(f"{describe(task)}: its confidence is {confidence!r}", "a number from 0 to 1, or None")
    if result.body is None:
        return _encode(result.json, task)
    if not isinstance(result.body, bytes):
        raise CheckFailed(f"{describe(task)}: its body is {_with_article(result.body)}", "bytes, or use Result(json=…)")
    return result.body


def _encode(value: Any, task: Task) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise CheckFailed(
            f"{describe(task)}: its answer cannot be written as JSON: {exc}",
            "answer with numbers, strings, bytes, lists, maps, dates or dataclasses of these",
        ) from exc


# ── small helpers ────────────────────────────────────────────────────────────────────────────────


async def ends_within(job: asyncio.Task[Any], within_s: float) -> bool:
    """Wait for the end of `job`, at most `within_s` seconds, without cancelling it. Returns whether it has ended."""
    await asyncio.wait([job], timeout=within_s)
    return job.done()


async def run_loop_turns(turns: int) -> None:
    """Let the event loop turn; from the sixth turn on, each takes at least 2 ms."""
    for turn in range(turns):
        await asyncio.sleep(0 if turn < 5 else 0.002)


def plural(number: int, noun: str) -> str:
    """Return `1 thread` or `3 threads`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def describe_exception(exc: BaseException) -> str:
    """Return the type and the text of an exception, for messages."""
    text = str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _with_article(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
