"""The worker program: `python -P -m gateway.workers.main FD` opens one backend and runs one task at a time.

It ends when the socket FD closes, and when its parent dies (the kernel sees to that even while it computes).
It imports little, so that a worker is back within a fraction of a second: no HTTP, no settings, no telemetry.
A backend here may block: nothing else happens in this process. A cancelled task ends at its next part or await.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import io
import itertools
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

import msgspec

from gateway import exception_hooks
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
from gateway.plugin.checks import names_of
from gateway.plugin.errors import PluginRaised, frames_of, is_told_to_stop, words_of
from gateway.workers import wire

MAX_SUBTASKS = 16
TRACEBACK_CHARS = 8000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE_STEP = 500  # of 1000: when memory runs out, a worker goes before the gateway


class Program:
    """A backend, and the one task it works on."""

    def __init__(self) -> None:
        self._channel = wire.Channel(wire.ToWorker, self._received, self._hung_up)
        self._errands = SubtaskClient(self._channel)
        self._stopping = asyncio.Event()
        self._backend: Backend[Any] | None = None
        self._is_open = False
        self._job: asyncio.Task[None] | None = None
        self._is_job_stopped = False
        self._asked: asyncio.Task[None] | None = None  # how the backend is

    async def serve(self, sock: socket.socket) -> None:
        """Work until the socket closes."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(exception_hooks.loop_handler(say))
        await loop.create_unix_connection(lambda: self._channel, sock=sock)
        await self._stopping.wait()
        self._stop_job()
        if self._asked is not None:
            self._asked.cancel()
        if running := [task for task in (self._job, self._asked) if task is not None]:
            await asyncio.wait(running)
        if self._backend is not None and self._is_open:
            await self._backend.__aexit__(None, None, None)

    def _hung_up(self) -> None:
        self._stopping.set()

    def _received(self, frame: wire.ToWorker) -> None:
        if isinstance(frame, wire.Cancel):
            self._stop_job()
        elif isinstance(frame, wire.Start):
            self._job = asyncio.create_task(self._open(frame))
        elif isinstance(frame, wire.SubtaskResponse):
            self._errands.told(frame)
        elif isinstance(frame, wire.AskHealth):
            if self._asked is None or self._asked.done():
                self._asked = asyncio.create_task(self._tell_health())
        else:
            self._is_job_stopped = False
            self._job = asyncio.create_task(self._work(wire.task_of(frame)))
            self._job.add_done_callback(self._ended)

    def _stop_job(self) -> None:
        """A cancellation that does not come from here is the plugin's own, and a fault."""
        if self._job is not None:
            self._is_job_stopped = True
            self._job.cancel()

    def _ended(self, job: asyncio.Task[None]) -> None:
        if job.cancelled():  # before its first step, or it would have said so itself
            self._channel.send(wire.End())

    async def _open(self, start: wire.Start) -> None:
        try:
            cls = load_class(start.path)
            settings = cls.Settings.model_validate(start.settings)
            self._backend = cls(settings, WorkerServices(start.backend, self._channel, self._errands))
            await self._backend.__aenter__()
            self._is_open = True
            self._channel.send(hello_of(self._backend))
        except BaseException as exc:
            self._channel.send(self._failure(exc, f"`{start.path}`", None))
            self._stopping.set()
            if is_told_to_stop(exc):
                raise

    async def _tell_health(self) -> None:
        try:
            said = await cast(Backend[Any], self._backend).health()
        except BaseException as exc:
            if is_told_to_stop(exc):
                raise
            what = exc.message if isinstance(exc, GatewayError) else type(exc).__name__
            said = f"its health check raised {what}"
        self._channel.send(wire.Health(None if said is None else str(said)))

    async def _work(self, task: Task) -> None:
        last = await self._last_frame(task)
        try:
            self._channel.send(last)
        except BackendFailed as exc:
            self._channel.send(wire.frame_error(exc, f"`{task.name}`"))

    async def _last_frame(self, task: Task) -> wire.ResultFrame | wire.End | wire.ErrorFrame:
        try:
            return await self._run(task)
        except BaseException as exc:
            is_ours = self._is_job_stopped and is_told_to_stop(exc)
            return wire.End() if is_ours else self._failure(exc, f"`{task.name}`", task)

    async def _run(self, task: Task) -> wire.ResultFrame | wire.End:
        """Send the parts, return what comes last: the next task is sent as soon as that is read."""
        outcome = cast(Backend[Any], self._backend).run(task)
        if not isinstance(outcome, AsyncIterator):
            return wire.frame_result(await outcome)
        async with aclosing(cast(AsyncGenerator[Part | Result], outcome)) as stream:
            async for item in stream:
                if isinstance(item, Result):
                    return wire.frame_result(item)
                self._channel.send(wire.frame_part(item))
                await self._channel.drained()
                await asyncio.sleep(0)  # a generator that only computes still has to hear a cancel
        return wire.End()

    def _failure(self, exc: BaseException, who: str, task: Task | None) -> wire.ErrorFrame:
        if isinstance(exc, PluginRaised) or not isinstance(exc, GatewayError):
            what = exc.raised if isinstance(exc, PluginRaised) else type(exc).__name__
            keys = {
                "request_id": task.id if task else None,
                "error": what if task else f"{what}: {words_of(exc)}",
                "traceback": "\n".join(frames_of(exc))[-TRACEBACK_CHARS:],
            }
            self._channel.send(wire.LogLine("error", "worker.raised", keys))
        return wire.frame_error(exc, who)


class SubtaskClient:
    """Subtasks that the gateway serves meanwhile: MAX_SUBTASKS at once, so that their answers' bytes are bounded."""

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel
        self._room = asyncio.Semaphore(MAX_SUBTASKS)
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[wire.SubtaskResponse]] = {}

    async def run(self, task: Task) -> Result:
        """Ask for it and wait. Raises what it ended in."""
        async with self._room:
            number = next(self._numbers)
            self._channel.send(wire.SubtaskRequest(number, wire.frame_task(task)))
            answer = self._waiting[number] = asyncio.get_running_loop().create_future()
            try:
                return wire.outcome_of(await answer)
            except asyncio.CancelledError:
                self._channel.send(wire.SubtaskCancel(number))
                raise
            finally:
                del self._waiting[number]

    def told(self, frame: wire.SubtaskResponse) -> None:
        """One has ended."""
        answer = self._waiting.get(frame.number)
        if answer is not None and not answer.done():
            answer.set_result(frame)


class WorkerServices:
    """`gateway.plugin.Services` in a worker: the name, the log, subtasks; no network to tell of."""

    def __init__(self, name: str, channel: wire.Channel, errands: SubtaskClient) -> None:
        self.name = name
        self.log = WorkerLog(channel)
        self._errands = errands

    async def dispatch(self, task: Task) -> Result:
        """As in the gateway; what it answers comes over the wire."""
        return await self._errands.run(task)

    def observe(self, sample: LinkSample) -> None:
        """Nothing: a worker's network is not measured."""

    @property
    def view(self) -> View:
        """Not from here."""
        raise BackendFailed("a backend in a worker process does not see the others; give it isolation = 'loop'")


class WorkerLog:
    """Sends events to the gateway's log."""

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel

    def _send(self, level: wire.LogLevel, event: str, keys: dict[str, Any]) -> None:
        plain = msgspec.to_builtins(keys, str_keys=True, enc_hook=repr)
        self._channel.send(wire.LogLine(level, event, plain))

    def debug(self, event: str, **keys: Any) -> None:
        """Log at level debug."""
        self._send("debug", event, keys)

    def info(self, event: str, **keys: Any) -> None:
        """Log at level info."""
        self._send("info", event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        """Log at level warning."""
        self._send("warning", event, keys)

    def error(self, event: str, **keys: Any) -> None:
        """Log at level error."""
        self._send("error", event, keys)


def load_class(path: str) -> type[Backend[Any]]:
    """The class at `module:qualname`."""
    module, _, qualname = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return cast("type[Backend[Any]]", found)


def hello_of(backend: Backend[Any]) -> wire.Ready:
    """What an open backend says of itself."""
    return wire.Ready(names_of(backend.models), names_of(backend.tasks), list(backend.kinds))


def say(what: str, exc: BaseException | None) -> None:
    """Print it: a `worker.output` of the gateway's log."""
    where = f" at {frames_of(exc)[-1].rpartition(' ')[0]}" if exc is not None and exc.__traceback__ else ""
    print(f"{what}: {type(exc).__name__}{where}", file=sys.stderr)


def harden() -> None:
    """Die with the parent, before the parent, and not of Ctrl-C; say where it crashed; print by the line."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()
    exception_hooks.install(say, lambda place, category: print(f"{place}: {category}", file=sys.stderr))
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    with suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(int(score.read_text()) + _OOM_SCORE_STEP, 1000)))


def main() -> None:
    """Serve on the socket whose descriptor is the first argument."""
    harden()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    sock.setblocking(False)
    asyncio.run(Program().serve(sock))


if __name__ == "__main__":
    main()
