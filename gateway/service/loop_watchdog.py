"""Detects from a separate thread that the event loop is blocked, and logs the code that blocks it.

Every PING_S the thread schedules a callback on the loop. If the callback has not run after STALL_S, the thread reads
the main thread's stack. It blames the innermost frame of plugin code, or the innermost frame if no plugin is on the
stack. Each source line is reported once, with the stack, while the loop is still blocked: if the loop never runs again,
systemd's watchdog kills the process, and the report is already in the log.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType

from gateway.telemetry import log, metrics

PING_S = 0.25
STALL_S = 0.1
MAX_REPORTED = 100  # source lines
STACK_FRAMES = 12

# Names of backends by the top-level package of their plugin's code.
Plugins = Mapping[str, str]


class LoopWatchdog:
    """Watches the loop it is started in. `plugins` is read at each stall, because a reload may change it."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._stop = threading.Event()
        self._reported: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start watching; call it in the loop's thread."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, args=(loop, ident), name="stalls", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STALL_S + PING_S)

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        while not self._stop.wait(PING_S):
            pong = threading.Event()
            pinged_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(pong.set)
            except RuntimeError:  # the loop is closed
                return
            if pong.wait(STALL_S):
                continue
            frame = sys._current_frames().get(ident)
            if frame is not None and not pong.is_set():
                self._report(frame, time.monotonic() - pinged_at)
            del frame
            while not (pong.wait(PING_S) or self._stop.is_set()):
                pass

    def _report(self, frame: FrameType, stalled_s: float) -> None:
        frames = list(_outer_frames(frame))
        culprit = next((frame for frame in frames if _package_of(frame) in self._plugins), frames[0])
        backend = self._plugins.get(_package_of(culprit))
        metrics.STALLS.inc(backend=backend or "none")
        where = _location_of(culprit)
        if where in self._reported or len(self._reported) >= MAX_REPORTED:
            return
        self._reported.add(where)
        stack = [f"{_location_of(frame)} {frame.f_code.co_name}" for frame in frames[:STACK_FRAMES]]
        log.error("loop.stalled", where=where, backend=backend, stalled_ms=round(stalled_s * 1000), stack=stack)


def _outer_frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _location_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
