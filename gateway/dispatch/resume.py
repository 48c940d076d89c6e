"""Stream failover: another backend continues a stream that broke after its first content, if the client cannot notice.

Each backend is tried at most once per mode, in this order:

    prefill    a backend that declares it gets the text so far as the assistant's turn, and generates the rest
    restart    a backend gets the original task, and the client gets the part of its output that follows the text so
               far; a backend with a different output cannot be used

If no backend can continue, the failure stands: the client gets an error event and an aborted connection. How to read a
response, and how to make a task that continues it, depends on the format: it is passed in as a `Continuation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from gateway.dispatch.attempt_group import IDLE, Answer
from gateway.dispatch.response_spec import Continuation, ResumeMode
from gateway.dispatch.retry import DispatchState
from gateway.dispatch.timeouts import first_byte_deadline
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, Part, Result, Task
from gateway.registry import Registry

MODES: tuple[ResumeMode, ...] = ("prefill", "restart")


class FailoverBackends:
    """The backends that may continue a stream: each at most once per mode, but not those that failed at it.

    serve: dispatches a task in its state.
    """

    def __init__(
        self,
        serve: Callable[[DispatchState], Awaitable[Answer]],
        registry: Registry,
        state: DispatchState,
        answer: Answer,
    ) -> None:
        self._serve, self._registry, self._state, self._answer = serve, registry, state, answer
        self._failed = dict(state.tried)

    async def resume(self, task: Task, how: ResumeMode, failure: GatewayError) -> Answer:
        """Return the response of the next backend that continues. Raises GatewayError if none is left."""
        self._failed[self._answer.backend] = failure.message
        state = replace(
            self._state,
            task=task,
            until=first_byte_deadline(task, self._state.expected),
            tried=self._failed | (self._without_prefill() if how == "prefill" else {}),
            failure=failure,
            failed_backend=self._answer.backend,
            how=how,
        )
        while True:
            answer = await self._serve(state)
            if answer.result is None or answer.result.status < 400:
                state.watch.enter("edge" if answer.site == "edge" else "cloud")
                return answer
            answer.close()  # a refusal concerns this mode only; the backend may still succeed in the other
            state.tried[answer.backend] = f"it refused to continue (status {answer.result.status})"

    def _without_prefill(self) -> dict[str, str]:
        members = self._registry.members.items()
        return {name: "it cannot continue an assistant's turn" for name, member in members if not member.resumes}


class FailoverStream:
    """The parts of `answer`, and of the backends that continue after it; `answer` is updated to the current one.

    While the next backend takes longer than `heartbeat_s`, IDLE is among the parts.
    """

    def __init__(
        self,
        task: Task,
        answer: Answer,
        continuation: Continuation,
        backends: FailoverBackends,
        heartbeat_s: float | None,
    ) -> None:
        assert answer.parts is not None
        self._task, self._answer, self._continuation = task, answer, continuation
        self._backends, self._heartbeat_s = backends, heartbeat_s
        self._first = answer.parts

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Yield all parts up to the end. Raises the first backend's error if no backend can continue."""
        continuation = self._continuation
        try:
            async for part in self._first:
                yield part
                if part is not IDLE:
                    continuation.record(part)  # after the part is on its way
        except (BackendUnavailable, DeadlineExceeded) as exc:
            failure: GatewayError = exc
            latest = failure
        else:
            return
        for how in MODES:
            while not continuation.is_complete and (task := continuation.resumed(self._task, how)) is not None:
                try:
                    async with aclosing(self._from_next_backend(task, how, latest)) as parts:
                        async for part in parts:
                            yield part
                except _NoBackendLeft:
                    break
                except GatewayError as exc:
                    latest = exc
                else:
                    return
        if not continuation.is_complete:
            raise failure

    async def _from_next_backend(
        self, task: Task, how: ResumeMode, failure: GatewayError
    ) -> AsyncGenerator[Part, None]:
        self._answer.close()
        answer: Answer | None = None
        async with aclosing(self._resumed(task, how, failure)) as answers:
            async for answer in answers:
                if answer is None:
                    yield IDLE
        assert answer is not None
        self._answer.replace_with(answer)
        async with aclosing(answer.parts or self._whole(answer.result or Result())) as parts:
            async for part in parts:
                for missing in (IDLE,) if part is IDLE else self._continuation.joined(part):
                    yield missing
        for missing in self._continuation.ended():
            yield missing

    async def _whole(self, result: Result) -> AsyncGenerator[Part, None]:
        for part in self._continuation.parts_of(result):
            yield part

    async def _resumed(self, task: Task, how: ResumeMode, failure: GatewayError) -> AsyncGenerator[Answer | None, None]:
        """Yield None for every heartbeat of silence, then the next backend's answer. Raises _NoBackendLeft."""
        resuming = asyncio.ensure_future(self._backends.resume(task, how, failure))
        try:
            while not (await asyncio.wait({resuming}, timeout=self._heartbeat_s))[0]:
                yield None
        except BaseException:
            cancel_and_close(resuming)
            raise
        try:
            yield resuming.result()
        except GatewayError as exc:
            raise _NoBackendLeft from exc


class _NoBackendLeft(Exception):
    """All backends have been tried in this mode."""


def cancel_and_close(pending: asyncio.Future[Answer]) -> None:
    """Discard an answer, whether it has arrived already or not."""
    if not pending.cancel() and not pending.cancelled() and pending.exception() is None:
        pending.result().close()
