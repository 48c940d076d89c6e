"""The worker program: `python -P -m gateway.workers.main FD` opens one backend and runs one task at a time.

It ends when the socket FD closes. When the parent dies, the kernel kills it, even during a computation.
It imports neither HTTP nor settings nor telemetry, so that a replacement starts within a fraction of a second.
A backend may block here, because the process does no other work. A cancelled task ends at its next part or await.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import io
import selectors
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from gateway import exception_hooks, memory_privacy
from gateway.plugin import (
    Backend,
    BackendFailed,
    GatewayError,
    LinkSample,
    Part,
    Result,
    Task,
    View,
)
from gateway.plugin.checks import parse_names
from gateway.plugin.errors import PluginRaised, frames_of, is_own_cancellation, message_of
from gateway.workers import forks
from gateway.workers.codec import decode_task, encode_error, encode_part, encode_result
from gateway.workers.frame_channel import FrameChannel
from gateway.workers.frames import (
    Cancel,
    EndFrame,
    ErrorFrame,
    HealthRequest,
    HealthResponse,
    LogLevel,
    LogLine,
    Ready,
    ResultFrame,
    Start,
    SubtaskResponse,
    ToWorker,
)
from gateway.workers.subtask_rpc import SubtaskClient

MAX_TRACEBACK_CHARS = 8000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE_STEP = 500  # of 1000: when memory runs out, the kernel kills a worker before the gateway


class Worker:
    """Runs one backend, and one task of it at a time."""

    def __init__(self) -> None:
        self._channel = FrameChannel(ToWorker, self._on_frame, self._on_lost)
        self._subtasks = SubtaskClient(self._channel)
        self._stopping = asyncio.Event()
        self._backend: Backend[Any] | None = None
        self._is_open = False
        self._job: asyncio.Task[None] | None = None
        self._is_job_cancelled = False
        self._number = 0  # of the current task, or of the last one
        self._health_check: asyncio.Task[None] | None = None

    async def serve(self, sock: socket.socket) -> None:
        """Run tasks until the socket closes."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(exception_hooks.loop_handler(print_exception))
        await loop.create_unix_connection(lambda: self._channel, sock=sock)
        await self._stopping.wait()
        self._cancel_job()
        if self._health_check is not None:
            self._health_check.cancel()
        if running := [task for task in (self._job, self._health_check) if task is not None]:
            await asyncio.wait(running)
        if self._backend is not None and self._is_open:
            await self._backend.__aexit__(None, None, None)

    def _on_lost(self) -> None:
        self._stopping.set()

    def _on_frame(self, frame: ToWorker, _pid: int, number: int) -> None:
        match frame:
            case Cancel():
                if number == self._number:
                    self._cancel_job()
            case Start():
                self._job = asyncio.create_task(self._open(frame))
            case SubtaskResponse():
                self._subtasks.on_response(frame)
            case HealthRequest():
                if self._health_check is None or self._health_check.done():
                    self._health_check = asyncio.create_task(self._check_health())
            case _:
                self._is_job_cancelled, self._number = False, number
                self._job = asyncio.create_task(self._run_task(decode_task(frame), number))
                self._job.add_done_callback(partial(self._on_job_done, number))

    def _cancel_job(self) -> None:
        if self._job is not None:
            self._is_job_cancelled = True
            self._job.cancel()

    def _on_job_done(self, number: int, job: asyncio.Task[None]) -> None:
        if job.cancelled():  # before its first step; after it, `_run_task` has sent the final frame
            self._channel.send(EndFrame(), number)

    async def _open(self, start: Start) -> None:
        try:
            cls = load_class(start.path)
            settings = cls.Settings.model_validate(start.settings)
            self._backend = cls(settings, WorkerServices(start.backend, self._channel, self._subtasks))
            await self._backend.__aenter__()
            self._is_open = True
            forks.exit_if_child()
            self._channel.send(ready_frame(self._backend))
        except BaseException as exc:
            forks.exit_if_child(exc)
            self._channel.send(self._report_error(exc, f"`{start.path}`", None))
            self._stopping.set()
            if is_own_cancellation(exc):
                raise

    async def _check_health(self) -> None:
        try:
            error = await cast(Backend[Any], self._backend).health()
        except BaseException as exc:
            if is_own_cancellation(exc):
                raise
            raised = exc.message if isinstance(exc, GatewayError) else type(exc).__name__
            error = f"its health check raised {raised}"
        self._channel.send(HealthResponse(None if error is None else str(error)))

    async def _run_task(self, task: Task, number: int) -> None:
        final = await self._final_frame(task, number)
        forks.exit_if_child()
        try:
            self._channel.send(final, number)
        except BackendFailed as exc:
            self._channel.send(encode_error(exc, f"`{task.name}`"), number)

    async def _final_frame(self, task: Task, number: int) -> ResultFrame | EndFrame | ErrorFrame:
        try:
            return await self._send_parts(task, number)
        except BaseException as exc:
            forks.exit_if_child(exc)
            # A CancelledError that we did not cause was raised by the plugin, and is a bug of it.
            is_ours = self._is_job_cancelled and is_own_cancellation(exc)
            return EndFrame() if is_ours else self._report_error(exc, f"`{task.name}`", task)

    async def _send_parts(self, task: Task, number: int) -> ResultFrame | EndFrame:
        """Run the backend and send the parts. Returns the final frame.

        The final frame is sent after all clean-up, because the gateway sends the next task once it has read it.
        """
        outcome = cast(Backend[Any], self._backend).run(task)
        if not isinstance(outcome, AsyncIterator):
            return encode_result(await outcome)
        async with aclosing(cast(AsyncGenerator[Part | Result], outcome)) as stream:
            async for item in stream:
                if isinstance(item, Result):
                    return encode_result(item)
                forks.exit_if_child()
                self._channel.send(encode_part(item), number)
                await self._channel.drain()
                await asyncio.sleep(0)  # lets a generator that only computes receive a cancellation
        return EndFrame()

    def _report_error(self, exc: BaseException, source: str, task: Task | None) -> ErrorFrame:
        """Log the traceback if `exc` is a bug of the plugin. Returns the frame for the gateway."""
        if isinstance(exc, PluginRaised) or not isinstance(exc, GatewayError):
            raised = exc.raised if isinstance(exc, PluginRaised) else type(exc).__name__
            keys = {
                "request_id": task.id if task else None,
                "error": raised if task else f"{raised}: {message_of(exc)}",  # a task's exception may quote its request
                "traceback": "\n".join(frames_of(exc))[-MAX_TRACEBACK_CHARS:],
            }
            self._channel.send(LogLine("error", "worker.raised", keys))
        return encode_error(exc, source)


class WorkerServices:
    """`gateway.plugin.Services` in a worker: `name`, `log` and `dispatch`."""

    def __init__(self, name: str, channel: FrameChannel, subtasks: SubtaskClient) -> None:
        self.name = name
        self.log = WorkerLog(channel)
        self._subtasks = subtasks

    async def dispatch(self, task: Task) -> Result:
        return await self._subtasks.call(task)

    def observe(self, sample: LinkSample) -> None:
        """Drop the sample: the network of a worker is not measured."""

    @property
    def view(self) -> View:
        raise BackendFailed(
            "`services.view` is not available in a worker process; declare isolation = 'loop' to use it"
        )


class WorkerLog:
    """Sends events to the gateway's log."""

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel

    def _send(self, level: LogLevel, event: str, keys: dict[str, Any]) -> None:
        plain = msgspec.to_builtins(keys, str_keys=True, enc_hook=repr)
        self._channel.send(LogLine(level, event, plain))

    def debug(self, event: str, **keys: Any) -> None:
        self._send("debug", event, keys)

    def info(self, event: str, **keys: Any) -> None:
        self._send("info", event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        self._send("warning", event, keys)

    def error(self, event: str, **keys: Any) -> None:
        self._send("error", event, keys)


def load_class(path: str) -> type[Backend[Any]]:
    """Import the class at `module:qualname`."""
    module, _, qualname = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return cast("type[Backend[Any]]", found)


def ready_frame(backend: Backend[Any]) -> Ready:
    problems = [str(problem) for problem in backend.problems]
    return Ready(parse_names(backend.models), parse_names(backend.tasks), list(backend.kinds), problems)


def print_exception(source: str, exc: BaseException | None) -> None:
    """Print the type and place of an exception, which becomes a `worker.output` in the gateway's log."""
    where = f" at {frames_of(exc)[-1].rpartition(' ')[0]}" if exc is not None and exc.__traceback__ else ""
    print(f"{source}: {type(exc).__name__}{where}", file=sys.stderr)


def configure_process() -> None:
    """Set signals, out-of-memory score and output of this process.

    It dies with its parent, ignores Ctrl-C, prints a traceback when it crashes, and flushes its output at each line.
    Other processes cannot read its memory.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()
    exception_hooks.install(print_exception, lambda place, category: print(f"{place}: {category}", file=sys.stderr))
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    with suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(int(score.read_text()) + _OOM_SCORE_STEP, 1000)))
    memory_privacy.forbid_dumps()  # after the score, which only root could write from then on


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    configure_process()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    sock.setblocking(False)
    selector = selectors.DefaultSelector()
    forks.cut_off_children([sock.fileno(), selector.fileno()])
    with asyncio.Runner(loop_factory=partial(asyncio.SelectorEventLoop, selector)) as runner:
        try:
            runner.run(Worker().serve(sock))
        except BaseException as exc:  # a child's event loop ends with an OSError at its first wait
            forks.exit_if_child(exc)
            raise


if __name__ == "__main__":
    main()
