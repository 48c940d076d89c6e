"""`WorkerBackend`: a backend that runs in worker processes, one per slot.

A process that dies is replaced at once. If it dies before its first task, its start counts as failed: the next start
waits 0.1 s, and twice as long after each further failure, up to 10 s. While all slots are failing, tasks end with
BackendUnavailable at once instead of at their deadlines.

`run` ends only when its process is idle again or gone. The worker of a task that is cancelled or past its deadline is
drained, because a new worker would have to load its model again, and a client's short deadline must not cost that. It
is killed when the task has run for `drain_s`, in a stream since its cancellation, but at the earliest SOFT_S after the
cancellation; or at once by `end_cancelled`, if its slot is needed.
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
from gateway.workers.codec import decode_error, decode_part, decode_result
from gateway.workers.frames import EndFrame, ErrorFrame, FromWorker, PartFrame, Ready, ResultFrame, Start
from gateway.workers.process import Process
from gateway.workers.secret_mask import SecretMask, secrets_in

FIRST_RETRY_S = 0.1
MAX_RETRY_S = 10.0
SOFT_S = 1.0  # a computation that ends soon after the deadline keeps its worker
DRAIN_S = 300.0  # the default of a whole request's deadline

State = Literal["starting", "failing", "idle", "busy"]


@dataclass(slots=True)
class Slot:
    """One slot and its process.

    failures: consecutive failed starts. error: the reason of the last failed start or death. detail: the text of the
    exception at the last failed start, which operators may see and clients may not.
    """

    process: Process | None = None
    restarts: int = 0
    failures: int = 0
    error: str = ""
    detail: str = ""

    @property
    def state(self) -> State:
        if self.process is None:
            return "failing" if self.failures else "starting"
        return "idle" if self.process.state == "idle" else "busy"

    @property
    def retry_s(self) -> float:
        """Seconds to wait before the next start."""
        return min(FIRST_RETRY_S * 2 ** (self.failures - 1), MAX_RETRY_S) if self.failures else 0.0


class WorkerBackend(Backend[BackendSettings]):
    """Runs `cls` in `slots` worker processes, with the same interface.

    `site`, `repeatable`, `kinds`, `models` and `tasks` are those of the backend; models and tasks are None until the
    first worker is ready. drain_s: seconds that a cancelled task may take to end. mask: conceals secrets in what the
    workers print and log; those of `settings` are added to it.
    """

    def __init__(
        self,
        cls: type[Backend[Any]],
        settings: BackendSettings,
        services: Services,
        *,
        slots: int,
        drain_s: Callable[[], float] = lambda: DRAIN_S,
        mask: SecretMask | None = None,
    ) -> None:
        super().__init__(settings, services)
        self._start = Start(_import_path(cls), _to_builtins(settings), services.name)
        self._mask = mask or SecretMask()
        self._mask.add(secrets_in(settings))
        self._unopened = cls(settings, services)
        self.site, self.repeatable = self._unopened.site, self._unopened.repeatable
        self.kinds, self.models, self.tasks = self._unopened.kinds, None, None
        self.isolation = "process"
        self.slots, self.drain_s = slots, drain_s
        self._slots = [Slot() for _ in range(slots)]
        self._supervisors: list[asyncio.Task[None]] = []
        self._idle: list[Process] = []
        self._state_changed = asyncio.Event()
        self._drains: dict[asyncio.Task[None], tuple[str, Process]] = {}  # with the id of the cancelled task

    # ── start and stop ───────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        """Start all workers and return when the first is ready. Raises BackendUnavailable if no worker starts."""
        self._supervisors = [asyncio.create_task(self._supervise(slot)) for slot in self._slots]
        try:
            process = await self._take_idle()
        except BaseException as exc:
            if isinstance(exc, GatewayError):
                exc.detail = self._slots[0].detail  # no request is involved yet, so it reaches the operator only
            await self.__aexit__(None, None, None)
            raise
        self._adopt(process.ready)
        self._make_available(process)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop all workers; when it returns, all processes are gone."""
        supervisors, self._supervisors = self._supervisors, []
        self._state_changed.set()
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)
        processes = [slot.process for slot in self._slots if slot.process is not None]
        await asyncio.gather(*(process.stop() for process in processes))
        await asyncio.gather(*self._drains)
        self._slots, self._idle = [Slot() for _ in self._slots], []

    def _adopt(self, ready: Ready) -> None:
        self.models, self.tasks, self.kinds = ready.models, ready.tasks, frozenset(ready.kinds)
        self.problems = tuple(ready.problems)

    async def _supervise(self, slot: Slot) -> None:
        """Keep a process in `slot`: start one, and another when it dies."""
        while True:
            await asyncio.sleep(slot.retry_s)
            began = time.monotonic()
            try:
                process = await Process.start(
                    self._start, self.services.log, self.services.dispatch, self.settings.environment, self._mask
                )
            except GatewayError as exc:
                self._on_start_failed(slot, exc.message, exc.text if isinstance(exc, PluginRaised) else exc.detail)
                continue
            except Exception as exc:  # no memory or descriptors, or a bug: a later start may succeed
                self._on_start_failed(slot, f"no process could be started: {type(exc).__name__}", str(exc))
                continue
            ready_ms = round((time.monotonic() - began) * 1000, 1)
            self.services.log.info("worker.ready", pid=process.pid, start_ms=ready_ms)
            slot.process = process
            self._make_available(process)
            await process.gone()
            self._on_death(slot, process)

    def _on_start_failed(self, slot: Slot, error: str, detail: str) -> None:
        slot.failures, slot.error, slot.detail = slot.failures + 1, error, detail
        message = self._mask.conceal(f"{error}: {detail}" if detail else error)
        self.services.log.warning("worker.start_failed", error=message, retry_s=slot.retry_s)
        self._state_changed.set()

    def _on_death(self, slot: Slot, process: Process) -> None:
        slot.process, slot.restarts = None, slot.restarts + 1
        slot.failures = 0 if process.was_used else slot.failures + 1
        slot.error, slot.detail = f"the worker {process.exit_reason}", ""
        if process in self._idle:
            self._idle.remove(process)
        self.services.log.warning("worker.died", pid=process.pid, how=process.exit_reason)
        self._state_changed.set()

    # ── idle workers ─────────────────────────────────────────────────────────────────────────────

    async def _take_idle(self) -> Process:
        """Return the most recently used idle process, waiting for one. Raises BackendUnavailable if no slot starts."""
        while True:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    return process
            if reason := self._unavailable_reason():
                raise BackendUnavailable(reason)
            self._state_changed.clear()
            await self._state_changed.wait()

    def _make_available(self, process: Process) -> None:
        if process.is_alive:
            self._idle.append(process)
            self._state_changed.set()

    def _unavailable_reason(self) -> str | None:
        name = self.services.name
        if not self._supervisors:
            return f"backend `{name}` is stopped"
        if all(slot.state == "failing" for slot in self._slots):
            return f"no worker of backend `{name}` starts: {self._slots[0].error}"
        return None

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Run `task` in an idle worker; yields its parts, or its result as the only item.

        Ends only when the worker is idle again or gone. At the task's deadline it cancels the task, and raises
        DeadlineExceeded once the worker has ended it, or is killed. Raises BackendUnavailable if the worker dies, and
        the errors that the backend raises.
        """
        deadline = task.deadline
        process = await self._take_before(deadline)
        began, is_late = time.monotonic(), False
        try:
            process.begin(task)
            while not isinstance(frame := await process.next_frame(deadline), EndFrame):
                yield _decode_item(frame)
                deadline = task.parts_deadline
                if isinstance(frame, ResultFrame):
                    break
        except TimeoutError:
            is_late = True
            raise DeadlineExceeded(f"`{task.name}` was not done within the time allowed and was stopped") from None
        finally:
            is_stream = deadline != task.deadline
            await self._release(process, task.id, None if is_stream else began, is_late=is_late)

    async def _take_before(self, deadline: float) -> Process:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await self._take_idle()
        except TimeoutError:
            raise DeadlineExceeded(f"no worker of backend `{self.services.name}` was free in time") from None

    async def _release(self, process: Process, task_id: str, began: float | None, *, is_late: bool) -> None:
        """Make the process available, once it has ended the task. began: when the task began; None for a stream."""
        if process.state in ("idle", "gone"):
            return self._make_available(process)
        now = time.monotonic()
        until = max(now + SOFT_S, (now if began is None else began) + self.drain_s())
        drain = asyncio.create_task(self._drain(process, until))
        self._drains[drain] = task_id, process
        drain.add_done_callback(self._drains.pop)
        try:
            await asyncio.shield(drain)
        except asyncio.CancelledError:
            if is_late:  # the caller's own timeout, at the same deadline: the first cancellation
                await asyncio.shield(drain)
            raise  # a second cancellation ends this wait, not the drain

    async def _drain(self, process: Process, until: float) -> None:
        await process.drain(until)
        self._make_available(process)

    def end_cancelled(self, task_id: str) -> None:
        """Kill the worker that still computes this cancelled task, because its slot is needed; it is replaced."""
        for drained_id, process in self._drains.values():
            if drained_id == task_id:
                process.kill("a cancelled task did not end while other requests waited")

    # ── properties of the backend ────────────────────────────────────────────────────────────────

    @property
    def unopened(self) -> Backend[Any]:
        """An instance of the backend that is never entered."""
        return self._unopened

    def size(self, task: Task) -> float:
        return self._unopened.size(task)

    def estimate(self, task: Task, view: View) -> float | None:
        return self._unopened.estimate(task, view)

    async def health(self) -> str | None:
        """Return an error if no worker starts, else the health error of an idle worker; a busy pool is healthy."""
        idle = next((process for process in reversed(self._idle) if process.is_alive), None)
        if idle is None or type(self._unopened).health is Backend.health:
            return self._unavailable_reason()
        return await idle.health()

    @property
    def workers(self) -> list[dict[str, Any]]:
        """Each slot's process id, state, restarts and last error, for `/status`."""
        return [
            {
                "pid": slot.process.pid if slot.process else None,
                "state": slot.state,
                "restarts": slot.restarts,
                "error": slot.error or None,
            }
            for slot in self._slots
        ]


def _decode_item(frame: FromWorker) -> Part | Result:
    """Return the part or the result in `frame`. Raises the error in it."""
    if isinstance(frame, PartFrame):
        return decode_part(frame)
    if isinstance(frame, ResultFrame):
        return decode_result(frame)
    if isinstance(frame, ErrorFrame):
        raise decode_error(frame)
    raise BackendUnavailable(f"a worker answered with an unexpected {type(frame).__name__}")


def _import_path(cls: type[Backend[Any]]) -> str:
    """Return `module:qualname`, as the worker imports it. Raises ValueError for a class that cannot be imported."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ValueError(f"{cls.__qualname__} runs in processes, so it must be importable: define it in a module")
    return f"{cls.__module__}:{cls.__qualname__}"


def _to_builtins(settings: BackendSettings) -> dict[str, Any]:
    """Return `settings` as plain values, secrets included: no other process can read the socket to the worker."""
    plain: dict[str, Any] = msgspec.to_builtins(settings.model_dump(), str_keys=True, enc_hook=_plain_value)
    return plain


def _plain_value(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr | SecretBytes) else str(value)
