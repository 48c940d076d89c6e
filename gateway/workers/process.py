"""One worker process as the gateway sees it: started by exec, spoken to by frames, reaped in every case.

    starting ─ hello ─▶ idle ─ begin ─▶ busy ─ last frame ─▶ idle …; from each of them ─▶ gone

`gone` is reached when the process has been waited for, its socket and its output are closed and read to the
end. What it prints goes to the log line by line, and what it prints without end is counted.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, cast

from gateway.plugin import BackendUnavailable, Log, Task
from gateway.workers import wire
from gateway.workers.subtasks import Dispatch, SubtaskServer

STOP_S = 2.0  # how long a worker may take to stop when asked
ANSWERS_AHEAD, BYTES_AHEAD = 64, 1 << 18  # kept for a slow reader before the worker has to wait
OUTPUT_LINE_CHARS = 500
OUTPUT_LINES, OUTPUT_LINES_PER_S = 200, 10.0  # at once, as a crash says all it has to say, and on average
_LINE_END = re.compile(rb"[\r\n]")  # a progress bar knows no other end than \r
_LAST_OUTPUT_S = 0.2  # a grandchild may hold the pipe open; the worker's own words are in it by then


class Process:
    """A live worker process. Start one with `await Process.start(…)`; after `await gone()` nothing of it is left."""

    def __init__(self, log: Log, backend: str, dispatch: Dispatch) -> None:
        self._log = log
        self._backend = backend
        self._channel = wire.Channel(wire.FromWorker, self._received, self._lost)
        self._output = _Lines(self._printed)
        self._inbox: asyncio.Queue[wire.FromWorker | None] = asyncio.Queue()
        self._bytes_ahead = 0
        self._has_hung_up = self._is_stopping = self._is_draining = False
        self._killed_because: str | None = None
        self._last_line = ""
        self._bucket, self._suppressed = _Bucket(OUTPUT_LINES, OUTPUT_LINES_PER_S), 0
        self._proc: asyncio.subprocess.Process
        self._gone: asyncio.Task[None]
        self.hello: wire.Ready
        self._health: asyncio.Future[str | None] | None = None
        self._errands = SubtaskServer(dispatch, lambda frame: self._channel.send(frame))
        self._task: Task | None = None
        self.task_id: str | None = None
        self.was_used = False

    @classmethod
    async def start(cls, start: wire.Start, log: Log, dispatch: Dispatch) -> Process:
        """Run the worker program and wait until its backend is open. Raises BackendUnavailable with its reason.

        dispatch: serves the subtasks its backend asks for.
        """
        process = cls(log, start.backend, dispatch)
        await process._spawn()
        try:
            process._channel.send(start)
            await process._greeting()
        except BaseException:
            process.kill("it did not start")
            await process.gone()
            raise
        return process

    async def _spawn(self) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        read_fd, write_fd = os.pipe()
        with far, os.fdopen(write_fd, "wb", 0) as printer:
            near.setblocking(False)
            try:
                await loop.create_unix_connection(lambda: self._channel, sock=near)
                await loop.connect_read_pipe(lambda: self._output, os.fdopen(read_fd, "rb", 0))
                self._proc = await _run_program(far, printer)
            except BaseException:
                self._channel.close()
                self._output.close()
                raise
        self._gone = loop.create_task(self._until_gone())

    async def _greeting(self) -> None:
        frame = await self._inbox.get()
        if isinstance(frame, wire.ErrorFrame):
            raise wire.error_of(frame)
        if not isinstance(frame, wire.Ready):
            await self._hung_up()
            said = f"its last words: {self._last_line}" if self._last_line else ""
            raise BackendUnavailable(f"the worker {self.fate} before it was ready", detail=said)
        self.hello = frame

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._proc.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be given work."""
        return not self._has_hung_up and self._proc.returncode is None and self._killed_because is None

    @property
    def is_busy(self) -> bool:
        """Whether it works on a task."""
        return self.task_id is not None

    @property
    def fate(self) -> str:
        """How it ended, for messages: `was killed by signal 9 (SIGKILL)`."""
        code = self._proc.returncode
        if self._killed_because is not None:
            return f"was killed because {self._killed_because}"
        if code is None:
            return "hung up"
        return f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"exited with status {code}"

    # ── work ─────────────────────────────────────────────────────────────────────────────────────

    def begin(self, task: Task) -> None:
        """Give it `task`. Raises BackendFailed where the task is too long to travel."""
        self._channel.send(wire.frame_task(task))
        self._inbox, self._bytes_ahead, self._is_draining = asyncio.Queue(), 0, False
        self._task, self.task_id, self.was_used = task, task.id, True
        self._told_health(None)  # it may have no time to say so now

    async def answer(self, deadline: float) -> wire.FromWorker:
        """Its next frame about the task. Raises TimeoutError at `deadline`, BackendUnavailable when it is gone."""
        frame = await self._next(deadline)
        if self._inbox.empty():
            self._bytes_ahead = 0
            self._channel.read_on(True)
        if isinstance(frame, wire.PartFrame) and time.monotonic() >= deadline:
            raise TimeoutError
        if frame is None:
            await self._hung_up()
            raise BackendUnavailable(f"worker {self.pid} of backend `{self._backend}` {self.fate} while it worked")
        return frame

    async def _next(self, deadline: float) -> wire.FromWorker | None:
        if self._has_hung_up and self._inbox.empty():
            return None
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            return await self._inbox.get()

    async def drain(self, end: float) -> None:
        """Tell it that nobody waits any more; return when it is idle again, or was killed at `end`."""
        self._inbox, self._bytes_ahead, self._is_draining = asyncio.Queue(), 0, True
        self._end_errands()
        self._channel.read_on(True)
        try:
            self._channel.send(wire.Cancel())
            while self.is_busy:
                await self.answer(end)
        except TimeoutError:
            self.kill("a cancelled task did not end in time")
            await self.gone()
        except BackendUnavailable:
            await self.gone()

    async def health(self) -> str | None:
        """What its backend says of itself; None, too, once it is given work, or is gone."""
        if self._health is None or self._health.done():
            self._health = asyncio.get_running_loop().create_future()
            self._channel.send(wire.AskHealth())
        return await asyncio.shield(self._health)  # who asks may lose patience: the answer is still to come

    def _end_errands(self) -> None:
        self._task = None
        self._errands.end()

    def _told_health(self, said: str | None) -> None:
        if self._health is not None and not self._health.done():
            self._health.set_result(said)

    def _received(self, frame: wire.FromWorker) -> None:
        if isinstance(frame, wire.Health):
            self._told_health(frame.said)
            return
        if isinstance(frame, wire.SubtaskRequest):
            self._errands.run(frame, self._task)
            return
        if isinstance(frame, wire.SubtaskCancel):
            self._errands.forget(frame.number)
            return
        if isinstance(frame, wire.LogLine):
            getattr(self._log, frame.level)(frame.event, **frame.keys)
            return
        if isinstance(frame, wire.LAST_FRAMES):
            self.task_id = None
            self._end_errands()
        elif self._is_draining:
            return
        self._inbox.put_nowait(frame)
        self._bytes_ahead += wire.size_of(frame)
        if self._inbox.qsize() >= ANSWERS_AHEAD or self._bytes_ahead >= BYTES_AHEAD:
            self._channel.read_on(False)

    def _lost(self) -> None:
        self._has_hung_up = True
        self._told_health(None)
        self._end_errands()
        self._inbox.put_nowait(None)

    def _printed(self, line: str) -> None:
        self._last_line = line
        if not self._bucket.take():
            self._suppressed += 1
            return
        self._log.info("worker.output", pid=self.pid, line=line, suppressed=self._suppressed)
        self._suppressed = 0

    # ── its end ──────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Ask it to stop, kill it when it takes longer than `STOP_S`, and return when it is gone."""
        self._is_stopping = True
        self._channel.close()
        await asyncio.wait([self._gone], timeout=STOP_S)
        self.kill("it did not stop when asked")
        await self.gone()

    def kill(self, because: str) -> None:
        """SIGKILL to it and the processes it started; nothing where it has ended."""
        if self._proc.returncode is None:
            self._killed_because = self._killed_because or because
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until it has ended and everything it held is released."""
        await asyncio.shield(self._gone)

    async def _hung_up(self) -> None:
        """Wait for the end of a worker whose socket is closed; one that closed it itself has no business to live on."""
        if not self._is_stopping:
            await asyncio.wait([self._gone], timeout=_LAST_OUTPUT_S * 2)
            self.kill("it closed its socket")
        await self.gone()

    async def _until_gone(self) -> None:
        await self._proc.wait()
        await self._output.closed_within(_LAST_OUTPUT_S)
        self._channel.close()
        self.task_id = None


class _Bucket:
    """`most` at once, `per_s` on average. (`telemetry.Limited` would bring all of telemetry into the worker.)"""

    def __init__(self, most: int, per_s: float) -> None:
        self._most, self._per_s = most, per_s
        self._left, self._at = float(most), time.monotonic()

    def take(self) -> bool:
        """Whether there is one."""
        now = time.monotonic()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._per_s), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Lines(asyncio.Protocol):
    """Reads a pipe and calls `printed` for each line, cut to a bearable length."""

    def __init__(self, printed: Callable[[str], None]) -> None:
        self._printed = printed
        self._line = bytearray()
        self._closed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        first, *more = _LINE_END.split(data)
        self._add(first)
        for piece in more:
            self._flush()
            self._add(piece)

    def _add(self, piece: bytes) -> None:
        self._line += piece[: OUTPUT_LINE_CHARS * 4 - len(self._line)]

    def _flush(self) -> None:
        line = self._line.decode(errors="replace").rstrip()
        self._line.clear()
        if line:
            self._printed(line[:OUTPUT_LINE_CHARS])

    def connection_lost(self, exc: Exception | None) -> None:
        self._flush()
        self._closed.set()

    async def closed_within(self, seconds: float) -> None:
        """Read what is left, for at most `seconds`, and close."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        self.close()
        await self._closed.wait()

    def close(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.close()


async def _run_program(sock: socket.socket, printer: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gateway.workers.main", str(sock.fileno())),
        pass_fds=[sock.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=printer,
        stderr=printer,
        env=_environment(),
        process_group=0,  # Ctrl-C is the gateway's business; and a kill takes its children along
    )


def _environment() -> dict[str, str]:
    """Ours, with our import path: a worker finds the plugins and the operator's modules where we do."""
    paths = [os.path.abspath(entry) for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
