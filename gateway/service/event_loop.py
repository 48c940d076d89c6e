"""Keeps the event loop running when plugin code raises SystemExit or stops it.

asyncio passes SystemExit and KeyboardInterrupt from a callback or a task through `run_forever`, and a plugin can call
`loop.stop()`. The loop is intact after that and can run again: only the task or callback that raised is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.telemetry import log_bug

CANCEL_TIMEOUT_S = 1.0  # for the tasks that remain at the end

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
            await asyncio.wait(rest, timeout=CANCEL_TIMEOUT_S)
