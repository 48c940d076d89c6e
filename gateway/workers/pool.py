"""The stand-in for a backend that lives in worker processes: same interface, one process per slot.

A process that dies is replaced at once; one that dies before it was ever given work died starting, and the next
try waits 0.1 s, then twice as long each time up to 10 s. While every slot is in that state the backend is
unavailable at once, rather than at each request's deadline.

A task ends here only when its process is free again: a cancelled one is drained first, because a warm model is
dear, and killed only when the task's deadline comes, or `drain_s` have passed: a stream's deadline is a day away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from pydantic import SecretBytes, SecretStr

from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    Part,
    Result,
    Services,
    Task,
    View,
)
from gateway.plugin.errors import PluginRaised
from gateway.workers import wire
from gateway.workers.process import Process

FIRST_RETRY_S = 0.1
MAX_RETRY_S = 10.0
DRAIN_S = 300.0  # as much as a whole request has, where nobody says otherwise

State = Literal["starting", "failing", "idle", "busy"]


@dataclass(slots=True)
class Slot:
    """One slot and the process that fills it. failures: starts that failed in a row; error: how the last one did.

    words: what was said at it, which is for the operator and no client.
    """

    process: Process | None = None
    restarts: int = 0
    failures: int = 0
    error: str = ""
    words: str = ""

    @property
    def state(self) -> State:
        """What it is doing."""
        if self.process is None:
            return "failing" if self.failures else "starting"
        return "busy" if self.process.is_busy else "idle"

    @property
    def retry_s(self) -> float:
        """Seconds until the next start."""
        return min(FIRST_RETRY_S * 2 ** (self.failures - 1), MAX_RETRY_S) if self.failures else 0.0


class WorkerBackend(Backend[BackendSettings]):
    """`cls` in `slots` worker processes. Its site, names and kinds are mirrored; None while nobody has told them.

    drain_s: seconds a cancelled task has to end in.
    """

    def __init__(
        self,
        cls: type[Backend[Any]],
        settings: BackendSettings,
        services: Services,
        *,
        slots: int,
        drain_s: Callable[[], float] = lambda: DRAIN_S,
    ) -> None:
        super().__init__(settings, services)
        self._start = wire.Start(_path_of(cls), _plain(settings), services.name)
        self._unopened = cls(settings, services)
        self.site, self.repeatable = self._unopened.site, self._unopened.repeatable
        self.kinds, self.models, self.tasks = self._unopened.kinds, None, None
        self.isolation = "process"
        self.slots, self.drain_s = slots, drain_s
        self._slots = [Slot() for _ in range(slots)]
        self._keepers: list[asyncio.Task[None]] = []
        self._idle: list[Process] = []
        self._changed = asyncio.Event()
        self._drains: set[asyncio.Task[None]] = set()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        """Start all workers, return when the first is ready. Raises BackendUnavailable when none can start."""
        self._keepers = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        try:
            process = await self._take()
        except BaseException as exc:
            if isinstance(exc, GatewayError):
                exc.detail = self._slots[0].words  # nobody has asked for anything yet: it reaches the operator alone
            await self.__aexit__(None, None, None)
            raise
        self._mirror(process.hello)
        self._give_back(process)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop all workers; when it returns none is left."""
        keepers, self._keepers = self._keepers, []
        self._changed.set()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        processes = [slot.process for slot in self._slots if slot.process is not None]
        await asyncio.gather(*(process.stop() for process in processes))
        await asyncio.gather(*self._drains)
        self._slots, self._idle = [Slot() for _ in self._slots], []

    def _mirror(self, hello: wire.Ready) -> None:
        self.models, self.tasks, self.kinds = hello.models, hello.tasks, frozenset(hello.kinds)

    async def _keep(self, slot: Slot) -> None:
        """Fill `slot` with a process, and again whenever that dies."""
        while True:
            await asyncio.sleep(slot.retry_s)
            began = time.monotonic()
            try:
                process = await Process.start(self._start, self.services.log, self.services.dispatch)
            except GatewayError as exc:
                self._note_failed_start(slot, exc.message, exc.words if isinstance(exc, PluginRaised) else exc.detail)
                continue
            except Exception as exc:  # no memory, no descriptors, a bug of ours: it may pass, and the slot must not
                self._note_failed_start(slot, f"no process could be started: {type(exc).__name__}", str(exc))
                continue
            ready_ms = round((time.monotonic() - began) * 1000, 1)
            self.services.log.info("worker.ready", pid=process.pid, start_ms=ready_ms)
            slot.process = process
            self._give_back(process)
            await process.gone()
            self._note_death(slot, process)

    def _note_failed_start(self, slot: Slot, error: str, words: str) -> None:
        slot.failures, slot.error, slot.words = slot.failures + 1, error, words
        told = f"{error}: {words}" if words else error
        self.services.log.warning("worker.start_failed", error=told, retry_s=slot.retry_s)
        self._changed.set()

    def _note_death(self, slot: Slot, process: Process) -> None:
        slot.process, slot.restarts = None, slot.restarts + 1
        slot.failures = 0 if process.was_used else slot.failures + 1
        slot.error, slot.words = f"the worker {process.fate}", ""
        if process in self._idle:
            self._idle.remove(process)
        self.services.log.warning("worker.died", pid=process.pid, how=process.fate)
        self._changed.set()

    # ── who is idle ──────────────────────────────────────────────────────────────────────────────

    async def _take(self) -> Process:
        """An idle process, the warmest first. Raises BackendUnavailable while none can be had."""
        while True:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    return process
            if why := self._why_down():
                raise BackendUnavailable(why)
            self._changed.clear()
            await self._changed.wait()

    def _give_back(self, process: Process) -> None:
        if process.is_alive:
            self._idle.append(process)
            self._changed.set()

    def _why_down(self) -> str | None:
        name = self.services.name
        if not self._keepers:
            return f"backend `{name}` is stopped"
        if all(slot.state == "failing" for slot in self._slots):
            return f"no worker of backend `{name}` starts: {self._slots[0].error}"
        return None

    # ── work ─────────────────────────────────────────────────────────────────────────────────────

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Run `task` in an idle worker; yields its parts, or its result as the one item.

        Ends only when the worker is idle again or gone. Raises DeadlineExceeded at the task's deadline (the
        worker is killed), BackendUnavailable when the worker dies, and what the backend itself raised.
        """
        deadline = task.deadline
        process = await self._take_by(deadline)
        try:
            process.begin(task)
            while not isinstance(frame := await process.answer(deadline), wire.End):
                yield _item_of(frame)
                deadline = task.parts_deadline
                if isinstance(frame, wire.ResultFrame):
                    break
        except TimeoutError:
            if process.is_busy:
                process.kill("a task's deadline had come")
                await process.gone()
            raise DeadlineExceeded(f"`{task.name}` was not done within the time allowed and was stopped") from None
        finally:
            await self._release(process, deadline)

    async def _take_by(self, deadline: float) -> Process:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await self._take()
        except TimeoutError:
            raise DeadlineExceeded(f"no worker of backend `{self.services.name}` was free in time") from None

    async def _release(self, process: Process, deadline: float) -> None:
        if not process.is_busy:
            return self._give_back(process)
        end = min(deadline, time.monotonic() + self.drain_s())
        drain = asyncio.create_task(self._drain(process, end))
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)
        await asyncio.shield(drain)  # a second cancellation may leave, the draining goes on

    async def _drain(self, process: Process, end: float) -> None:
        await process.drain(end)
        self._give_back(process)

    # ── questions ────────────────────────────────────────────────────────────────────────────────

    def size(self, task: Task) -> float:
        """The backend's own answer, from an instance that was never opened."""
        return self._unopened.size(task)

    def estimate(self, task: Task, view: View) -> float | None:
        """The backend's own answer, from an instance that was never opened."""
        return self._unopened.estimate(task, view)

    async def health(self) -> str | None:
        """What is wrong where no worker starts; else what an idle one says of its backend. A busy pool is well."""
        idle = next((process for process in reversed(self._idle) if process.is_alive), None)
        if idle is None or type(self._unopened).health is Backend.health:
            return self._why_down()
        return await idle.health()

    @property
    def workers(self) -> list[dict[str, Any]]:
        """Each slot's process id, state and restarts, for `/status`."""
        return [
            {
                "pid": slot.process.pid if slot.process else None,
                "state": slot.state,
                "restarts": slot.restarts,
                "error": slot.error or None,
            }
            for slot in self._slots
        ]


def _item_of(frame: wire.FromWorker) -> Part | Result:
    if isinstance(frame, wire.PartFrame):
        return wire.part_of(frame)
    if isinstance(frame, wire.ResultFrame):
        return wire.result_of(frame)
    if isinstance(frame, wire.ErrorFrame):
        raise wire.error_of(frame)
    raise BackendUnavailable(f"a worker answered with an unexpected {type(frame).__name__}")


def _path_of(cls: type[Backend[Any]]) -> str:
    """`module:qualname`, as the worker imports it. Raises ValueError for a class that cannot be imported."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ValueError(f"{cls.__qualname__} runs in processes, so it must be importable: define it in a module")
    return f"{cls.__module__}:{cls.__qualname__}"


def _plain(settings: BackendSettings) -> dict[str, Any]:
    """`settings` as plain values, secrets included; the way to the worker is private."""
    plain: dict[str, Any] = msgspec.to_builtins(settings.model_dump(), str_keys=True, enc_hook=_plain_value)
    return plain


def _plain_value(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr | SecretBytes) else str(value)
