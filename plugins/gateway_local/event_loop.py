"""Run plain functions and module bodies outside the worker's event loop, so that they may call `asyncio.run`.

They run in the main thread, as in a program of their own: signals, thread-bound libraries and forks work as usual.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def outside_loop() -> Iterator[None]:
    """Suspend the running loop and its current task for the block, which must not await.

    `asyncio._set_running_loop`, `_leave_task` and `_enter_task` are documented for implementers of event loops
    (docs.python.org/3/library/asyncio-extending.html).
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
        if task is not None:
            asyncio.tasks._enter_task(loop, task)
