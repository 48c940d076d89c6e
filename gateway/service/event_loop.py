"""Keeps the event loop running when plugin code raises SystemExit or stops it; ends the process.

asyncio passes SystemExit and KeyboardInterrupt from a callback or a task through `run_forever`, and a plugin can call
`loop.stop()`. The loop is intact after that and can run again: only the task or callback that raised is lost.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import thread as executors
from types import FrameType
from typing import Any, NoReturn, TypeVar

from gateway.telemetry import flush, log_bug

EXIT_TIMEOUT_S = 1.0  # for the tasks that remain, then for each of the log and the standard streams to be written

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end, then cancel all other tasks; threads are not waited for. Raises what `main` raises."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(_then_cancel_rest(main))
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as exc:
            log_bug("something beside requests would have ended the gateway", exc)
        else:
            if not task.done():
                log_bug("something would have stopped the event loop", None)
    return task.result()


async def _then_cancel_rest(main: Coroutine[Any, Any, T]) -> T:
    try:
        return await main
    finally:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=EXIT_TIMEOUT_S)


def blocking_threads() -> list[str]:
    """List threads that would keep the process from ending, each with its name and source line."""
    return sorted(_blocking_threads())


def _blocking_threads() -> Iterator[str]:
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if thread.daemon or thread is threading.main_thread() or frame is None:
            continue
        if not _is_idle_executor_thread(frame):
            yield f"{thread.name} at {frame.f_code.co_filename}:{frame.f_lineno}"


def _is_idle_executor_thread(frame: FrameType) -> bool:
    """Whether the thread is an executor's and waits for work: such a thread ends at interpreter exit."""
    return frame.f_code.co_filename == executors.__file__ and frame.f_code.co_name == "_worker"


def exit_process(status: int) -> NoReturn:
    """End the process without waiting for threads or running exit handlers, which may wait for them too."""
    flush(EXIT_TIMEOUT_S)
    printer = threading.Thread(target=_flush_standard_streams, daemon=True)  # blocks if the pipe is full and not read
    printer.start()
    printer.join(EXIT_TIMEOUT_S)
    os._exit(status)


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a plugin may have replaced or closed the stream
            continue
