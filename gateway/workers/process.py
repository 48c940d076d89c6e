"""One worker process, as the gateway sees it: started by exec, addressed by frames, reaped in every case.

Theory of operation. The states are those of TRANSITIONS; an event that the table does not hold raises:

    starting   the program runs, its backend is not open yet
    idle       accepts a task
    busy       runs a task
    draining   its task was cancelled: frames are discarded until the final one
    stopping   the gateway closed the socket; the worker has STOP_S to exit
    lost       the worker closed the socket, or crashed
    killed     SIGKILL was sent
    gone       the process is reaped, its socket and its output are read to the end and closed

Tasks are numbered. A worker that sends a frame from another process (a child that a plugin forked), or for another task
than its current one, is killed, and its current task fails: no answer reaches another request.

Output is logged line by line; lines beyond the rate limit are counted instead.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import IO, Literal

from gateway.plugin import BackendUnavailable, Log, Task
from gateway.workers.codec import content_bytes, decode_error, encode_task
from gateway.workers.environment import worker_environment
from gateway.workers.frame_channel import FrameChannel
from gateway.workers.frames import (
    ANSWER_FRAMES,
    FINAL_FRAMES,
    Cancel,
    ErrorFrame,
    FromWorker,
    HealthRequest,
    HealthResponse,
    LogLine,
    PartFrame,
    Ready,
    Start,
    SubtaskCancel,
    SubtaskRequest,
)
from gateway.workers.output import LineReader, TokenBucket
from gateway.workers.secret_mask import NO_SECRETS, SecretMask
from gateway.workers.subtask_rpc import Dispatch, SubtaskServer

State = Literal["starting", "idle", "busy", "draining", "stopping", "lost", "killed", "gone"]
Event = Literal[
    "ready",  # the backend is open
    "task_sent",
    "task_cancelled",
    "task_ended",  # the final frame arrived
    "stop_requested",
    "socket_closed",
    "kill_sent",
    "exited",  # the process is reaped
]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "starting": {
        "ready": "idle",
        "task_ended": "starting",  # an ErrorFrame: the backend did not open; a kill follows
        "stop_requested": "stopping",
        "socket_closed": "lost",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "idle": {
        "task_sent": "busy",
        "task_cancelled": "idle",  # the task ended before the cancellation
        "stop_requested": "stopping",
        "socket_closed": "lost",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "busy": {
        "task_cancelled": "draining",
        "task_ended": "idle",
        "stop_requested": "stopping",
        "socket_closed": "lost",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "draining": {
        "task_ended": "idle",
        "stop_requested": "stopping",
        "socket_closed": "lost",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "stopping": {
        "task_cancelled": "stopping",
        "task_ended": "stopping",
        "socket_closed": "stopping",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "lost": {
        "task_cancelled": "lost",
        "stop_requested": "stopping",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "killed": {
        "task_cancelled": "killed",  # frames that were on their way are dropped
        "stop_requested": "killed",
        "socket_closed": "killed",
        "kill_sent": "killed",
        "exited": "gone",
    },
    "gone": {
        "task_cancelled": "gone",
        "stop_requested": "gone",
        "socket_closed": "gone",
    },
}
_ALIVE = frozenset[State]({"starting", "idle", "busy", "draining"})

STOP_S = 2.0  # how long a worker may take to exit after its socket is closed
MAX_INBOX_FRAMES, MAX_INBOX_BYTES = 64, 1 << 18  # buffered for a slow reader before the worker has to wait
OUTPUT_LINES, OUTPUT_LINES_PER_S = 200, 10.0  # at once, enough for the traceback of a crash; and on average
_LAST_OUTPUT_S = 0.2  # a grandchild may hold the pipe open; by then it holds the worker's own last lines


class Process:
    """A live worker process, started by `await Process.start(…)`.

    Once `await gone()` returns, the process and its descriptors are released.
    """

    def __init__(
        self, log: Log, backend: str, dispatch: Dispatch, environment: Mapping[str, str], mask: SecretMask
    ) -> None:
        self._log, self._environment, self._mask = log, environment, mask
        self._backend = backend
        self._state: State = "starting"
        self._channel = FrameChannel(FromWorker, self._on_frame, self._on_lost)
        self._output = LineReader(self._on_output)
        self._inbox: asyncio.Queue[FromWorker | None] = asyncio.Queue()  # None: the socket is closed
        self._inbox_bytes = 0
        self._kill_reason: str | None = None
        self._last_line = ""
        self._bucket, self._suppressed = TokenBucket(OUTPUT_LINES, OUTPUT_LINES_PER_S), 0
        self._proc: asyncio.subprocess.Process
        self._reaper: asyncio.Task[None]
        self.ready: Ready
        self._health: asyncio.Future[str | None] | None = None
        self._subtasks = SubtaskServer(dispatch, self._channel.send)
        self._task: Task | None = None  # the parent that its subtasks must have
        self._number = 0  # of the current task, or of the last one
        self._is_expecting = True  # an answer to the current task, or to the start
        self.was_used = False

    # ── start ────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def start(
        cls, start: Start, log: Log, dispatch: Dispatch, environment: Iterable[str] = (), mask: SecretMask = NO_SECRETS
    ) -> Process:
        """Run the worker program and wait until its backend is open.

        dispatch: serves the subtasks of the backend. environment: names of variables that the worker inherits.
        mask: conceals secrets in what the worker prints and logs. Raises BackendUnavailable, or the error that the
        backend raised.
        """
        process = cls(log, start.backend, dispatch, worker_environment(environment), mask)
        await process._spawn()
        try:
            process._channel.send(start)
            await process._wait_ready()
        except BaseException:
            process.kill("it did not start")
            await process.gone()
            raise
        return process

    async def _spawn(self) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        read_fd, write_fd = os.pipe()
        with far, os.fdopen(write_fd, "wb", 0) as output:
            near.setblocking(False)
            try:
                await loop.create_unix_connection(lambda: self._channel, sock=near)
                await loop.connect_read_pipe(lambda: self._output, os.fdopen(read_fd, "rb", 0))
                self._proc = await _run_program(far, output, self._environment)
            except BaseException:
                self._channel.close()
                self._output.close()
                raise
        self._reaper = loop.create_task(self._reap())

    async def _wait_ready(self) -> None:
        frame = await self._inbox.get()
        if isinstance(frame, ErrorFrame):
            raise decode_error(frame)
        if not isinstance(frame, Ready):
            await self._end_of_lost()
            last = f"its last line of output: {self._mask.conceal(self._last_line)}" if self._last_line else ""
            raise BackendUnavailable(f"the worker {self.exit_reason} before it was ready", detail=last)
        self.ready = frame

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> State:
        return self._state

    @property
    def pid(self) -> int:
        return self._proc.pid

    @property
    def is_alive(self) -> bool:
        """True unless the process has ended, or its end has begun."""
        return self._state in _ALIVE and self._proc.returncode is None

    @property
    def exit_reason(self) -> str:
        """How the process ended, as the end of a sentence: `was killed by signal 9 (SIGKILL)`."""
        code = self._proc.returncode
        if self._kill_reason is not None:
            return f"was killed because {self._kill_reason}"
        if code is None:
            return "closed its socket"
        return f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"exited with status {code}"

    def _transition(self, event: Event) -> None:
        self._state = TRANSITIONS[self._state][event]

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────

    def begin(self, task: Task) -> None:
        """Send `task` to an idle worker. Raises BackendFailed if the task is too long for a frame."""
        self._channel.send(encode_task(task), self._number + 1)
        self._transition("task_sent")
        self._number, self._is_expecting = self._number + 1, True
        self._inbox, self._inbox_bytes = asyncio.Queue(), 0
        self._task, self.was_used = task, True
        self._resolve_health(None)  # the worker may be too busy to answer the health check

    async def next_frame(self, deadline: float) -> FromWorker:
        """Return the next frame about the task.

        Raises TimeoutError at `deadline`, on the monotonic clock, and BackendUnavailable if the worker ends.
        """
        frame = await self._receive(deadline)
        if self._inbox.empty():
            self._inbox_bytes = 0
            self._channel.resume_reading()
        if isinstance(frame, PartFrame) and time.monotonic() >= deadline:
            raise TimeoutError
        if frame is None:
            await self._end_of_lost()
            reason = f"worker {self.pid} of backend `{self._backend}` {self.exit_reason} while it worked"
            raise BackendUnavailable(reason)
        return frame

    async def _receive(self, deadline: float) -> FromWorker | None:
        if self._channel.is_lost and self._inbox.empty():
            return None
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            return await self._inbox.get()

    async def drain(self, until: float) -> None:
        """Cancel the task; return when the worker is idle again, or gone.

        A task that has not ended at `until`, on the monotonic clock, is ended by a kill.
        """
        self._transition("task_cancelled")
        self._inbox, self._inbox_bytes = asyncio.Queue(), 0
        self._cancel_subtasks()
        self._channel.resume_reading()
        try:
            self._channel.send(Cancel(), self._number)
            while self._state not in ("idle", "gone"):
                await self.next_frame(until)
        except TimeoutError:
            self.kill("a cancelled task did not end in time")
            await self.gone()
        except BackendUnavailable:
            await self.gone()

    async def health(self) -> str | None:
        """Return the backend's health error; None if it is healthy, gets a task first, or the worker ends."""
        if self._health is None or self._health.done():
            self._health = asyncio.get_running_loop().create_future()
            self._channel.send(HealthRequest())
        return await asyncio.shield(self._health)  # a caller's timeout must not cancel the answer for the next caller

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _on_frame(self, frame: FromWorker, pid: int, number: int) -> None:
        if self._state == "killed":
            return
        if fault := self._fault_of(frame, pid, number):
            return self.kill(fault)
        if isinstance(frame, PartFrame):
            if self._state == "draining":
                return
        elif isinstance(frame, FINAL_FRAMES):
            self._is_expecting = False
            self._transition("task_ended")
            self._cancel_subtasks()
        elif isinstance(frame, Ready):
            self._is_expecting = False
            self._transition("ready")
        else:
            return self._on_side_frame(frame)
        self._inbox.put_nowait(frame)
        self._inbox_bytes += content_bytes(frame)
        if self._inbox.qsize() >= MAX_INBOX_FRAMES or self._inbox_bytes >= MAX_INBOX_BYTES:
            self._channel.pause_reading()

    def _fault_of(self, frame: FromWorker, pid: int, number: int) -> str | None:
        """Why a frame must not be accepted; None if it is from the worker itself, and about its current task."""
        if pid != self.pid:
            return f"a process that it forked ({pid}) sent a {type(frame).__name__}"
        is_answer = isinstance(frame, (Ready, *ANSWER_FRAMES))
        if is_answer and (number != self._number or not self._is_expecting):
            return f"it sent a {type(frame).__name__} for another task (number {number})"
        return None

    def _on_side_frame(self, frame: FromWorker) -> None:
        """Handle a frame that is not part of the task's answer."""
        match frame:
            case HealthResponse():
                self._resolve_health(frame.error)
            case SubtaskRequest():
                self._subtasks.on_request(frame, self._task)
            case SubtaskCancel():
                self._subtasks.cancel(frame.number)
            case LogLine():
                getattr(self._log, frame.level)(frame.event, **self._mask.conceal_all(frame.keys))

    def _on_lost(self) -> None:
        self._transition("socket_closed")
        self._resolve_health(None)
        self._cancel_subtasks()
        self._inbox.put_nowait(None)

    def _on_output(self, line: str) -> None:
        self._last_line = line
        if not self._bucket.try_take():
            self._suppressed += 1
            return
        self._log.info("worker.output", pid=self.pid, line=self._mask.conceal(line), suppressed=self._suppressed)
        self._suppressed = 0

    def _cancel_subtasks(self) -> None:
        self._task = None
        self._subtasks.cancel_all()

    def _resolve_health(self, error: str | None) -> None:
        if self._health is not None and not self._health.done():
            self._health.set_result(error)

    # ── end ──────────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Close the socket, kill the worker if it has not exited after `STOP_S`, and return when it is gone."""
        self._transition("stop_requested")
        self._channel.close()
        await asyncio.wait([self._reaper], timeout=STOP_S)
        self.kill(f"it did not exit within {STOP_S:g} s of the stop request")
        await self.gone()

    def kill(self, reason: str) -> None:
        """Send SIGKILL to the worker and its child processes; do nothing if it has ended."""
        if self._proc.returncode is None:
            self._transition("kill_sent")
            self._kill_reason = self._kill_reason or reason
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until the process is reaped and its socket and pipe are closed."""
        await asyncio.shield(self._reaper)

    async def _end_of_lost(self) -> None:
        """Wait for the end of a worker that closed its socket; kill it if it does not exit by itself."""
        if self._state != "stopping":
            await asyncio.wait([self._reaper], timeout=_LAST_OUTPUT_S * 2)
            self.kill("it closed its socket")
        await self.gone()

    async def _reap(self) -> None:
        await self._proc.wait()
        await self._output.finish(_LAST_OUTPUT_S)
        self._channel.close()
        self._transition("exited")


async def _run_program(
    sock: socket.socket, output: IO[bytes], environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gateway.workers.main", str(sock.fileno())),
        pass_fds=[sock.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        process_group=0,  # Ctrl-C reaches the gateway only; a kill of the group includes the worker's children
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
