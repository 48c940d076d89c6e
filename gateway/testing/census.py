"""What this process holds that a backend could leave behind: asyncio tasks, open files, threads, processes.

Two counts are compared, one from before and one from after. Threads of the loop's own pool are not counted: they are
nobody's to stop. Processes whose parent has ended are counted too, once `adopt_orphans` was called.
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
_LOOPS_OWN_THREADS = "asyncio_"  # the prefix of asyncio.to_thread's workers
_LOOK_AGAIN_S = 0.01


@dataclass(frozen=True, slots=True)
class Census:
    """One count: each thing by what identifies it, with what to call it."""

    tasks: Mapping[asyncio.Task[Any], str]
    files: Mapping[tuple[str, str], str]
    threads: Mapping[threading.Thread, str]
    processes: Mapping[int, str]

    def beyond(self, before: Census) -> dict[str, list[str]]:
        """By kind, what is here and was not before; kinds with nothing are left out."""
        return {
            kind: new
            for kind in ("tasks", "files", "threads", "processes")
            if (new := [name for key, name in getattr(self, kind).items() if key not in getattr(before, kind)])
        }


def take() -> Census:
    """Count, now; inside the loop's thread."""
    me = asyncio.current_task()
    return Census(
        tasks={task: _task_name(task) for task in asyncio.all_tasks() if task is not me},
        files={(fd, target): target for fd, target in _open_files(os.getpid())},
        threads={t: t.name for t in threading.enumerate() if not t.name.startswith(_LOOPS_OWN_THREADS)},
        processes={pid: f"{_command(pid)} (pid {pid})" for pid in _children()},
    )


async def left_behind(before: Census, within_s: float) -> dict[str, list[str]]:
    """What is still there beyond `before`, once all is gone or `within_s` seconds have passed."""
    until = time.monotonic() + within_s
    while (left := take().beyond(before)) and time.monotonic() < until:  # noqa: ASYNC110 - nobody tells when a file closes
        await asyncio.sleep(_LOOK_AGAIN_S)
    return left


async def clear_away(before: Census) -> None:
    """Cancel the tasks and kill the processes beyond `before`, so that they disturb nobody after us."""
    now = take()
    tasks = [task for task in now.tasks if task not in before.tasks]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1)
    for pid in now.processes.keys() - before.processes.keys():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it was killed a line ago


def held(pids: list[int]) -> dict[str, int]:
    """How many files and threads these processes have, and how many tasks our loop has."""
    files = sum(len(list(_open_files(pid))) for pid in pids)
    threads = sum(_threads(pid) for pid in pids if pid != os.getpid())
    ours = sum(not t.name.startswith(_LOOPS_OWN_THREADS) for t in threading.enumerate())
    return {"files": files, "threads": threads + ours, "tasks": len(asyncio.all_tasks()), "processes": len(_children())}


def adopt_orphans() -> None:
    """Become the parent of whatever our children leave running."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _task_name(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    return getattr(coroutine, "__qualname__", repr(coroutine))


def _open_files(pid: int) -> Iterator[tuple[str, str]]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for fd in os.listdir(folder):
            with contextlib.suppress(OSError):  # the descriptor of this very listing is gone by now
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
        return b" ".join(words).decode(errors="replace").strip()[:80] or "an ended process nobody waited for"
    return "a process"
