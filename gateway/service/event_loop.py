"""The event loop of a process that plugins live in: what they raise to end it, ends it not.

asyncio lets SystemExit and KeyboardInterrupt out of a callback, or a task, through `run_forever`, and a plugin may stop
the loop. It is then as it was, and can be run on: whoever raised has lost their task or callback, and nothing else.
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

EXIT_TIMEOUT_S = 1.0  # for tasks nobody has ended, then for what is still to be written

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end, then cancel what else runs; threads are waited for by nobody. Raises what `main` does."""
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
    """Threads that would keep the process from ending, each with its place."""
    return sorted(_blocking_threads())


def _blocking_threads() -> Iterator[str]:
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if (
            not thread.daemon
            and thread is not threading.main_thread()
            and frame
            and not _is_idle_executor_thread(frame)
        ):
            yield f"{thread.name} at {frame.f_code.co_filename}:{frame.f_lineno}"


def _is_idle_executor_thread(frame: FrameType) -> bool:
    """Whether it is an executor's thread that has nothing to do: it would end if it was told to."""
    return frame.f_code.co_filename == executors.__file__ and frame.f_code.co_name == "_worker"


def exit_process(status: int) -> NoReturn:
    """End the process now. Python would wait for every thread, and run exit handlers, which may do the same."""
    flush(EXIT_TIMEOUT_S)
    printer = threading.Thread(target=_flush_standard_streams, daemon=True)  # nobody may read it
    printer.start()
    printer.join(EXIT_TIMEOUT_S)
    os._exit(status)


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a plugin may have put anything there, or closed it
            continue
