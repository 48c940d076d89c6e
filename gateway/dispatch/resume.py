"""Streams that break after their first content: another backend goes on where that is possible unnoticed.

In this order, each backend at most once each way:

    prefill    one that declares it is given the text so far as the assistant's turn, and says the rest
    restart    another is asked from the beginning, and the client gets what follows the text it has;
               one that says something else is no use

Where nobody can, the failure stands: the client gets an error event and an aborted connection. What an answer
says, and how a task is made to go on, is the door's knowledge: it comes as a `Continuation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from gateway.dispatch.continuation import Continuation, How
from gateway.dispatch.race import IDLE, Answer
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, Part, Result, Task

WAYS: tuple[How, ...] = ("prefill", "restart")
Ask = Callable[[Task, How, GatewayError], Awaitable[Answer]]


class FailoverStream:
    """The parts of `answer`, and of whoever goes on after it; `answer` becomes theirs.

    `ask(task, how, failure)` has the task served by somebody who was not asked that way yet, and raises where
    there is nobody. While that takes longer than `quiet_s`, QUIET is among the parts.
    """

    def __init__(self, task: Task, answer: Answer, said: Continuation, ask: Ask, quiet_s: float | None) -> None:
        assert answer.parts is not None
        self._task, self._answer, self._said, self._ask, self._quiet_s = task, answer, said, ask, quiet_s
        self._first = answer.parts

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Every part up to the answer's end. Raises what the first backend failed with."""
        try:
            async for part in self._first:
                yield part
                if part is not IDLE:
                    self._said.heard(part)  # when it is on its way already
        except (BackendUnavailable, DeadlineExceeded) as exc:
            failure: GatewayError = exc
            latest = failure
        else:
            return
        for how in WAYS:
            while not self._said.is_complete and (task := self._said.resumed(self._task, how)) is not None:
                try:
                    async with aclosing(self._from_another(task, how, latest)) as parts:
                        async for part in parts:
                            yield part
                except _Nobody:
                    break
                except GatewayError as exc:
                    latest = exc
                else:
                    return
        if not self._said.is_complete:
            raise failure

    async def _from_another(self, task: Task, how: How, failure: GatewayError) -> AsyncGenerator[Part, None]:
        self._answer.close()
        fresh: Answer | None = None
        async with aclosing(self._asked(task, how, failure)) as asked:
            async for fresh in asked:
                if fresh is None:
                    yield IDLE
        assert fresh is not None
        self._answer.become(fresh)
        async with aclosing(fresh.parts or self._whole(fresh.result or Result())) as parts:
            async for part in parts:
                for missing in (IDLE,) if part is IDLE else self._said.joined(part):
                    yield missing
        for missing in self._said.ended():
            yield missing

    async def _whole(self, result: Result) -> AsyncGenerator[Part, None]:
        for part in self._said.parts_of(result):
            yield part

    async def _asked(self, task: Task, how: How, failure: GatewayError) -> AsyncGenerator[Answer | None, None]:
        """None for every time of quiet, then the answer. Raises _Nobody."""
        asking = asyncio.ensure_future(self._ask(task, how, failure))
        try:
            while not (await asyncio.wait({asking}, timeout=self._quiet_s))[0]:
                yield None
        except BaseException:
            cancel_and_close(asking)
            raise
        try:
            yield asking.result()
        except GatewayError as exc:
            raise _Nobody from exc


class _Nobody(Exception):
    """Nobody is left to ask that way."""


def cancel_and_close(asking: asyncio.Future[Answer]) -> None:
    """Nobody waits for this answer any more, whether it is there already or not."""
    if not asking.cancel() and not asking.cancelled() and asking.exception() is None:
        asking.result().close()
