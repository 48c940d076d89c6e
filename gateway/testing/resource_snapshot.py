"""The resources of this process that a backend could leak: asyncio tasks, open files, threads, child processes.

A snapshot from before is compared with one from after. The threads of the event loop's own pool are not counted,
because the backend cannot stop them. After `adopt_orphans`, processes left by an ended parent are counted too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOOP_THREAD_PREFIX = "asyncio_"  # of the threads of asyncio.to_thread
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class ResourceSnapshot:
    """The resources at one instant: for each kind, a map from an identity to a description."""

    tasks: Mapping[asyncio.Task[Any], str]
    files: Mapping[tuple[str, str], str]
    threads: Mapping[threading.Thread, str]
    processes: Mapping[int, str]

    def new_since(self, before: ResourceSnapshot) -> dict[str, list[str]]:
        """Return descriptions of the resources that `before` lacks, by kind; empty kinds are left out."""
        return {
            kind: new
            for kind in ("tasks", "files", "threads", "processes")
            if (new := [name for key, name in getattr(self, kind).items() if key not in getattr(before, kind)])
        }


def take_snapshot() -> ResourceSnapshot:
    """Record the resources now. Call it in the event loop's thread."""
    current = asyncio.current_task()
    return ResourceSnapshot(
        tasks={task: _task_name(task) for task in asyncio.all_tasks() if task is not current},
        files={(fd, target): target for fd, target in _open_files(os.getpid())},
        threads={t: t.name for t in threading.enumerate() if not t.name.startswith(_LOOP_THREAD_PREFIX)},
        processes={pid: f"{_command(pid)} (pid {pid})" for pid in _children()},
    )


async def wait_for_release(before: ResourceSnapshot, within_s: float) -> dict[str, list[str]]:
    """Wait until no resource is new since `before`, at most `within_s` seconds; return those that still are."""
    until = time.monotonic() + within_s
    while (left := take_snapshot().new_since(before)) and time.monotonic() < until:  # noqa: ASYNC110 - closed files send no event
        await asyncio.sleep(_POLL_S)
    return left


async def clean_up(before: ResourceSnapshot) -> None:
    """Cancel the tasks and kill the processes that are new since `before`, so that later checks do not see them."""
    now = take_snapshot()
    tasks = [task for task in now.tasks if task not in before.tasks]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1)
    for pid in now.processes.keys() - before.processes.keys():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it was just killed


def resource_counts(pids: list[int]) -> dict[str, int]:
    """Return the number of files and threads of these processes, and of this process's asyncio tasks and children."""
    files = sum(len(list(_open_files(pid))) for pid in pids)
    threads = sum(_threads(pid) for pid in pids if pid != os.getpid())
    ours = sum(not t.name.startswith(_LOOP_THREAD_PREFIX) for t in threading.enumerate())
    return {"files": files, "threads": threads + ours, "tasks": len(asyncio.all_tasks()), "processes": len(_children())}


def adopt_orphans() -> None:
    """Become the parent of processes that our children leave running."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _task_name(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    return getattr(coroutine, "__qualname__", repr(coroutine))


def _open_files(pid: int) -> Iterator[tuple[str, str]]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for fd in os.listdir(folder):
            with contextlib.suppress(OSError):  # the descriptor of this very listing is closed by now
                yield fd, os.readlink(f"{folder}/{fd}")


def _threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def _children() -> list[int]:
    own = os.getpid()
    return [int(e) for e in os.listdir("/proc") if e.isdigit() and _parent(int(e)) == own]


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()[:80] or "a zombie process"
    return "a process"
