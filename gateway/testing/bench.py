"""The bench a backend is put on: how it is built, opened, asked, and looked after when it is closed.

A check raises `Fault` for a promise that is not kept, `Advice` for what is worth mending all the same, and `Skipped`
where there is nothing to check.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from gateway.plugin import Backend, BackendSettings, LinkSample, Part, Result, Task
from gateway.testing import census
from gateway.testing.asking import shown, tasks_of
from gateway.testing.network import FakeNetwork
from gateway.workers import WorkerBackend

START_S, STOP_S = 60.0, 5.0
TIDY_S = 0.5  # how long after its stop a backend's last things may take to go away
CANCEL_S = 1.0  # how soon a cancelled task is over
DISPOSAL = {
    "tasks": "keep a reference to every task you create, and cancel and await it in `__aexit__`",
    "files": "close every file, socket and session in `__aexit__` (and in `__aenter__`, where that fails half-way)",
    "threads": "stop every thread and executor in `__aexit__`, and join it",
    "processes": "end every process in `__aexit__`, and wait for it",
}
ONE = {"tasks": "asyncio task", "files": "open file or socket", "threads": "thread", "processes": "process"}

Dispatch = Callable[[Task], Awaitable[Result]]


class Fault(AssertionError):
    """A promise that a backend does not keep: what is wrong, and what to do about it.

    raised: the type's name, where it raised what is no error of `gateway.plugin`.
    """

    def __init__(self, message: str, fix: str, raised: str = "") -> None:
        super().__init__(message)
        self.message, self.fix, self.raised = message, fix, raised


class Advice(Exception):
    """No broken promise, but clients or operators would be better served: by what, and how to do it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


class Skipped(Exception):
    """There is nothing to check: why, and what to do to have it checked, where that can be."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


class KitLog:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **keys: Any) -> None:
        """Keep it."""
        self.events.append((event, keys))

    info = warning = error = debug


class KitView:
    """Other backends that nothing is known of."""

    def seconds(self, backend: str, task: Task) -> float | None:
        """A tenth of a second."""
        return 0.1

    def p95_s(self, backend: str, task: Task) -> float | None:
        """Twice that."""
        return 0.2

    def slots(self, backend: str) -> int:
        """One."""
        return 1


@dataclass
class KitServices:
    """`gateway.plugin.Services` for a backend on the bench: subtasks go to `answer`."""

    name: str
    answer: Dispatch
    log: KitLog = field(default_factory=KitLog)
    samples: list[LinkSample] = field(default_factory=list)

    async def dispatch(self, task: Task) -> Result:
        """Let the bench answer."""
        return await self.answer(task)

    def observe(self, sample: LinkSample) -> None:
        """Keep the sample."""
        self.samples.append(sample)

    @property
    def view(self) -> KitView:
        """The bench's view."""
        return KitView()


async def hand_back(task: Task) -> Result:
    """What subtasks are answered with unless `check_backend` is told otherwise: the list they hold, or their body."""
    await asyncio.sleep(0)
    body = task.json
    lists = [value for value in body.values() if isinstance(value, list)] if isinstance(body, dict) else []
    return Result(json={"result": lists[0] if lists else body}, backend=task.pin, site="edge")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one run: the parts of a stream, or the one result."""

    parts: tuple[Any, ...] = ()
    result: Any = None


@dataclass
class Bench:
    """One backend's class, settings and requests, and what was found out about it so far."""

    cls: type[Backend[Any]]
    settings: BackendSettings
    given: Mapping[str, Any] | Sequence[Task] | None = None
    network: FakeNetwork | None = None
    dispatch: Dispatch = hand_back
    tasks: list[Task] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    services: KitServices = field(init=False)
    _shared: Backend[Any] | None = None
    _before: census.Census | None = None

    def __post_init__(self) -> None:
        self.services = KitServices(self.cls.__name__.lower(), self.dispatch)

    @property
    def is_process(self) -> bool:
        """Whether it runs in worker processes."""
        return (self.settings.isolation or self.cls.isolation) == "process"

    def build(self) -> Backend[Any]:
        """A new instance, as the gateway would make it."""
        if self.is_process:
            slots = self.settings.slots or self.cls.slots
            return WorkerBackend(self.cls, self.settings, self.services, slots=min(slots, 2))
        return self.cls(self.settings, self.services)

    def look(self, backend: Backend[Any]) -> None:
        """Note what it serves, and requests for that."""
        self.tasks, self.unknown = tasks_of(backend, self.cls, self.given)

    def some_tasks(self) -> list[Task]:
        """Requests that it should answer. Raises Skipped where none is known: the check `run` says what to do."""
        if not self.tasks:
            raise Skipped("no request is known that it should answer")
        return self.tasks

    # ── open and closed ──────────────────────────────────────────────────────────────────────────

    def opened(self) -> AbstractAsyncContextManager[Backend[Any]]:
        """It, started. Worker processes are dear, so they are started once; nothing of what they did may stay."""
        return self._kept() if self.is_process else self.fresh()

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[Backend[Any]]:
        if self._shared is None:
            self._before = census.take()
            self._shared = await started(self.build())
        yield self._shared

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Backend[Any]]:
        """A new instance, started; when it is left it is stopped, and nothing of it may be left."""
        before = census.take()
        backend = await started(self.build())
        try:
            yield backend
        except BaseException:
            with suppress(Exception):
                await stopped(backend)
            await census.clear_away(before)
            raise
        await stopped(backend)
        await self.nothing_left(before, "after it was stopped")

    async def close(self) -> None:
        """Stop what is shared. Raises Fault where something stays."""
        if self._shared is not None and self._before is not None:
            shared, self._shared = self._shared, None
            await stopped(shared)
            await self.nothing_left(self._before, "after it was stopped")

    async def nothing_left(self, before: census.Census, when: str) -> None:
        """Raises Fault where something is there that was not before; each kind is told once."""
        left = await census.left_behind(before, TIDY_S)
        await census.clear_away(before)
        for kind, names in left.items():
            if kind not in self.told:
                self.told.add(kind)
                raise Fault(f"{counted(len(names), ONE[kind])} left {when}: {', '.join(names[:3])}", DISPOSAL[kind])

    def pids(self, backend: Backend[Any]) -> list[int]:
        """The processes it lives in."""
        workers = backend.workers if isinstance(backend, WorkerBackend) else []
        return [os.getpid(), *(worker["pid"] for worker in workers if worker["pid"])]

    # ── asked ────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, backend: Backend[Any], task: Task) -> Answer:
        """Run it, as the gateway would. Raises Fault where what it gives is no answer, and what it raises."""
        produced = backend.run(task)
        if isinstance(produced, AsyncIterator):
            return await _collected(produced, task)
        if not isinstance(produced, Awaitable):
            raise Fault(
                f"{shown(task)}: `run` gave {_a(produced)} at once, which cannot be awaited",
                "make `run` an `async def` that returns a Result, or an async generator",
            )
        return Answer(result=checked(await produced, task))

    def worker_raised(self, since: int, told: BaseException) -> str | None:
        """What a worker's backend raised since then, if it was no error of the interface; `told`: what reached us."""
        raised = [keys for event, keys in self.services.log.events[since:] if event == "worker.raised"]
        if not raised:
            return None
        text = getattr(told, "text", "")
        return f"{raised[-1]['error']}: {text}" if text else str(raised[-1]["error"])


def _said(exc: Exception) -> str:
    """What a worker said when it could not start it."""
    words = getattr(exc, "detail", "")
    return f": {words}" if words else ""


async def started(backend: Backend[Any]) -> Backend[Any]:
    """Enter it. Raises Fault where that fails, or takes more than a minute."""
    try:
        async with asyncio.timeout(START_S):
            entered = await backend.__aenter__()
    except TimeoutError:
        raise Fault(
            f"`__aenter__` was not done after {START_S:g} s", "start what takes long in the background"
        ) from None
    except Exception as exc:
        raise Fault(
            f"`__aenter__` raised {named(exc)}{_said(exc)}", "see the message; is a setting missing (--set KEY=VALUE)?"
        ) from exc
    if entered is not backend:
        raise Fault(f"`__aenter__` gave {_a(entered)}, not the backend itself", "end `__aenter__` with `return self`")
    return backend


async def stopped(backend: Backend[Any]) -> None:
    """Leave it. Raises Fault where that fails, or takes more than a few seconds."""
    try:
        async with asyncio.timeout(STOP_S):
            await backend.__aexit__(None, None, None)
    except TimeoutError:
        raise Fault(
            f"`__aexit__` was not done after {STOP_S:g} s", "cancel what still runs instead of waiting"
        ) from None
    except Exception as exc:
        raise Fault(f"`__aexit__` raised {named(exc)}", "release what there is, whatever state it is in") from exc


async def _collected(produced: AsyncIterator[Any], task: Task) -> Answer:
    parts: list[Any] = []
    async with aclosing(cast("AsyncGenerator[Any]", produced)) as items:
        async for item in items:
            if not isinstance(item, Part):
                if parts:
                    raise Fault(
                        f"{shown(task)}: `run` yielded {_a(item)} after {counted(len(parts), 'Part')}",
                        "yield Parts only; a Result is the first and only item, where no stream came about",
                    )
                return Answer(result=checked(item, task))
            parts.append(_encodable(item.data, task) if item.raw is None else item.raw)
    if not parts:
        raise Fault(f"{shown(task)}: `run` yielded nothing", "yield at least one Part, or one Result")
    return Answer(parts=tuple(parts))


def checked(result: Any, task: Task) -> Any:
    """A result as a value to compare. Raises Fault where it is none."""
    if not isinstance(result, Result):
        raise Fault(
            f"{shown(task)}: `run` gave {_a(result)}, which is neither Result nor Part", "return Result(json=…)"
        )
    if not isinstance(result.status, int) or not 200 <= result.status < 600:
        raise Fault(f"{shown(task)}: its status is {result.status!r}", "an HTTP status: 200 where all is well")
    sure = result.confidence
    if sure is not None and not (isinstance(sure, int | float) and 0 <= sure <= 1):
        raise Fault(f"{shown(task)}: its confidence is {sure!r}", "a number from 0 to 1, or None")
    if result.body is None:
        return _encodable(result.json, task)
    if not isinstance(result.body, bytes):
        raise Fault(f"{shown(task)}: its body is {_a(result.body)}", "bytes, or use Result(json=…)")
    return result.body


def _encodable(value: Any, task: Task) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise Fault(
            f"{shown(task)}: its answer cannot be written as JSON: {exc}",
            "answer with numbers, texts, bytes, lists, maps, dates or dataclasses of these",
        ) from exc


async def ended(job: asyncio.Task[Any], within_s: float) -> bool:
    """Whether it is over within that time; it is left as it is where not."""
    await asyncio.wait([job], timeout=within_s)
    return job.done()


async def after_turns(turns: int) -> None:
    """Let the loop go round; where there is nothing to do, a few milliseconds pass."""
    for turn in range(turns):
        await asyncio.sleep(0 if turn < 5 else 0.002)


def counted(number: int, what: str) -> str:
    """`1 thread`, `3 threads`."""
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")


def named(exc: BaseException) -> str:
    """An exception in a message."""
    text = str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _a(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def spent(since: float) -> str:
    """Seconds since an instant, for messages."""
    return f"{time.monotonic() - since:.1f} s"
