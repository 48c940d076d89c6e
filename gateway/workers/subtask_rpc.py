"""RPC for the subtasks that a worker's backend dispatches: a client in the worker, a server in the gateway."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable

from gateway.plugin import BackendFailed, GatewayError, Result, Task
from gateway.workers.codec import decode_subtask_response, decode_task, encode_subtask_response, encode_task
from gateway.workers.frame_channel import FrameChannel
from gateway.workers.frames import SubtaskCancel, SubtaskRequest, SubtaskResponse, TaskFrame

MAX_SUBTASKS = 16  # at once for one worker, which bounds the memory that their results take
Dispatch = Callable[[Task], Awaitable[Result]]


class SubtaskClient:
    """The worker's end: sends subtasks to the gateway and waits for their results, at most MAX_SUBTASKS at once."""

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel
        self._slots = asyncio.Semaphore(MAX_SUBTASKS)
        self._numbers = itertools.count()
        self._pending: dict[int, asyncio.Future[SubtaskResponse]] = {}

    async def call(self, task: Task) -> Result:
        """Have the gateway dispatch `task`. Raises the error in which it ends."""
        async with self._slots:
            number = next(self._numbers)
            self._channel.send(SubtaskRequest(number, encode_task(task)))
            response = self._pending[number] = asyncio.get_running_loop().create_future()
            try:
                return decode_subtask_response(await response)
            except asyncio.CancelledError:
                self._channel.send(SubtaskCancel(number))
                raise
            finally:
                del self._pending[number]

    def on_response(self, frame: SubtaskResponse) -> None:
        response = self._pending.get(frame.number)
        if response is not None and not response.done():
            response.set_result(frame)


class SubtaskServer:
    """The gateway's end for one worker: dispatches its subtasks and sends the results.

    send: sends a frame to the worker. It raises BackendFailed if the frame is too long.
    """

    def __init__(self, dispatch: Dispatch, send: Callable[[SubtaskResponse], None]) -> None:
        self._dispatch, self._send = dispatch, send
        self._running: dict[int, asyncio.Task[None]] = {}

    def on_request(self, request: SubtaskRequest, parent: Task | None) -> None:
        """Dispatch a subtask of `parent`, the worker's current task; refuse any other."""
        if parent is None or request.task.parent_id != parent.id:
            error = BackendFailed(
                "a worker may dispatch only parts of the task it works on (task.subtask(…)), and only until it ends"
            )
            self._send(encode_subtask_response(request.number, error))
            return
        running = asyncio.create_task(self._serve(request, parent), name=f"subtask {request.task.id}")
        self._running[request.number] = running
        running.add_done_callback(lambda _: self._running.pop(request.number, None))

    async def _serve(self, request: SubtaskRequest, parent: Task) -> None:
        try:
            result = await self._dispatch(_bounded_subtask(request.task, parent))
            self._send(encode_subtask_response(request.number, result))
        except Exception as exc:
            self._send(encode_subtask_response(request.number, exc))
            if not isinstance(exc, GatewayError):
                raise  # a bug of the gateway, which the loop's exception handler logs

    def cancel(self, number: int) -> None:
        """Cancel one subtask, if it is still running."""
        if (running := self._running.get(number)) is not None:
            running.cancel()

    def cancel_all(self) -> None:
        for running in self._running.values():
            running.cancel()


def _bounded_subtask(frame: TaskFrame, parent: Task) -> Task:
    """Return the subtask under the limits of its parent: deadline, locality, depth and time accounting."""
    task = decode_task(frame)
    if task.fields is not None:  # forms travel without their body
        if (task.fields, task.files) != (parent.fields, parent.files):
            raise BackendFailed("a worker process can dispatch its task's own form only, not a changed or new form")
        task = task.replace(body=parent.body)
    return dataclasses.replace(
        task,
        deadline=min(task.deadline, parent.deadline),
        may_leave=task.may_leave and parent.may_leave,
        depth=max(task.depth, parent.depth + 1),
        terms=parent.terms,
    )
