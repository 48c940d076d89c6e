"""What a worker's backend asks of the others: subtasks of its task, served by the gateway, answered over the wire."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from gateway.plugin import BackendFailed, GatewayError, Result, Task
from gateway.workers import wire

Dispatch = Callable[[Task], Awaitable[Result]]


class SubtaskServer:
    """Those of one worker. `tell` sends a frame to it, and raises BackendFailed for one that is too long."""

    def __init__(self, dispatch: Dispatch, tell: Callable[[wire.SubtaskResponse], None]) -> None:
        self._dispatch, self._tell = dispatch, tell
        self._running: dict[int, asyncio.Task[None]] = {}

    def run(self, ask: wire.SubtaskRequest, parent: Task | None) -> None:
        """Have it served as a part of `parent`, the task the worker is at, and tell the worker how that ended."""
        if parent is None or ask.task.parent_id != parent.id:
            what = "a worker dispatches parts of the task it works on, task.subtask(…), while somebody waits for it"
            self._tell(told(ask.number, BackendFailed(what)))
            return
        task = asyncio.create_task(self._serve(ask, parent), name=f"subtask {ask.task.id}")
        self._running[ask.number] = task
        task.add_done_callback(lambda _: self._running.pop(ask.number, None))

    async def _serve(self, ask: wire.SubtaskRequest, parent: Task) -> None:
        try:
            self._tell(told(ask.number, await self._dispatch(subtask_of(ask.task, parent))))
        except Exception as exc:
            self._tell(told(ask.number, exc))
            if not isinstance(exc, GatewayError):
                raise  # a bug of ours, which the loop tells of

    def forget(self, number: int) -> None:
        """Nobody waits for that one any more."""
        if (running := self._running.get(number)) is not None:
            running.cancel()

    def end(self) -> None:
        """Nobody waits for any: their parent has ended."""
        for running in self._running.values():
            running.cancel()


def subtask_of(frame: wire.TaskFrame, parent: Task) -> Task:
    """The subtask, with no more time than its parent has, leaving the site no sooner, and on its parent's account."""
    task = wire.task_of(frame)
    if task.fields is not None:  # forms travel without their body
        if (task.fields, task.files) != (parent.fields, parent.files):
            raise BackendFailed("a form other than its task's own cannot be dispatched out of a worker process")
        task = task.replace(body=parent.body)
    return dataclasses.replace(
        task,
        deadline=min(task.deadline, parent.deadline),
        may_leave=task.may_leave and parent.may_leave,
        depth=max(task.depth, parent.depth + 1),
        terms=parent.terms,
    )


def told(number: int, came: Result | Exception) -> wire.SubtaskResponse:
    """The frame for how it ended. A bug that somebody else's plugin met is none of who asked."""
    if isinstance(came, Result):
        return wire.SubtaskResponse(number, answer=wire.frame_result(came), backend=came.backend, site=came.site)
    return wire.SubtaskResponse(number, failure=wire.frame_error(came, "the gateway", is_own=False))
