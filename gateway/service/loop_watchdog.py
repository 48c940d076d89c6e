"""Sees from a thread of its own that the event loop stands still, and names who holds it.

Every PING_S the thread asks the loop to answer. Where it has not after STALL_S, the main thread's stack is read: the
innermost frame of a plugin's code is the culprit, else the innermost of all. Each place is told once, with its
stack, while it still stands: a loop that never moves again is killed by systemd's watchdog, and then the line is there.
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
MAX_REPORTED = 100
STACK_FRAMES = 12

# Backends by the top-level package their plugin's code is in.
Plugins = Mapping[str, str]


class LoopWatchdog:
    """Watches the loop it is started in. `plugins` is asked for at each stall: backends may come and go."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._stop = threading.Event()
        self._reported: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Call it in the loop's thread."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, args=(loop, ident), name="stalls", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STALL_S + PING_S)

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        while not self._stop.wait(PING_S):
            answered = threading.Event()
            asked_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed
                return
            if answered.wait(STALL_S):
                continue
            frame = sys._current_frames().get(ident)
            if frame is not None and not answered.is_set():
                self._report(frame, time.monotonic() - asked_at)
            del frame
            while not (answered.wait(PING_S) or self._stop.is_set()):
                pass

    def _report(self, frame: FrameType, seconds: float) -> None:
        frames = list(_outer_frames(frame))
        culprit = next((each for each in frames if _package_of(each) in self._plugins), frames[0])
        backend = self._plugins.get(_package_of(culprit))
        metrics.STALLS.inc(backend=backend or "none")
        where = _location_of(culprit)
        if where in self._reported or len(self._reported) >= MAX_REPORTED:
            return
        self._reported.add(where)
        stack = [f"{_location_of(each)} {each.f_code.co_name}" for each in frames[:STACK_FRAMES]]
        log.error("loop.stalled", where=where, backend=backend, stalled_ms=round(seconds * 1000), stack=stack)


def _outer_frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _location_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
