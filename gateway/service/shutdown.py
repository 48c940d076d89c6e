"""The end of the process: reports threads that would keep it alive, writes what is buffered, and exits."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import thread as executors
from types import FrameType
from typing import NoReturn

from gateway.telemetry import flush

EXIT_TIMEOUT_S = 1.0  # for each of the log and the standard streams to be written


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
