"""A backend that injects faults into the gateway process.

It exits, raises stray exceptions, leaves threads running and warns.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from gateway.plugin import Backend, BackendSettings, Result, Task

SECRET = "read nowhere"


class RaisesWhenCollected:
    """Raises when it is garbage-collected."""

    def __del__(self) -> None:
        raise LookupError(SECRET)


def fail(*_: str) -> None:
    raise LookupError(SECRET)


def leave() -> None:
    sys.exit(9)


class FaultInjector(Backend[BackendSettings]):
    tasks = (
        *("exit_0", "exit_78", "exit_in_a_callback", "interrupt", "stop_the_loop"),
        *("thread", "executor", "default_executor", "idle_executor"),
        *("raise_in_a_thread", "raise_when_collected", "raise_in_a_callback", "warn"),
    )

    async def run(self, task: Task) -> Result:
        getattr(self, f"_{task.name}")()
        return Result(json={"result": "done"})

    def _exit_0(self) -> None:
        self._later = asyncio.create_task(_exit(0))

    def _exit_78(self) -> None:
        self._later = asyncio.create_task(_exit(78))

    def _exit_in_a_callback(self) -> None:
        asyncio.get_running_loop().call_soon(leave)

    def _interrupt(self) -> None:
        self._later = asyncio.create_task(_interrupt())

    def _stop_the_loop(self) -> None:
        asyncio.get_running_loop().stop()

    def _thread(self) -> None:
        threading.Thread(target=time.sleep, args=(1000,), name="sleeper").start()

    def _executor(self) -> None:
        self._pool = ThreadPoolExecutor(1, "sleepers")
        self._pool.submit(time.sleep, 1000)

    def _default_executor(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 1000)

    def _idle_executor(self) -> None:
        self._pool = ThreadPoolExecutor(1, "idlers")
        self._pool.submit(str).result()

    def _raise_in_a_thread(self) -> None:
        thread = threading.Thread(target=fail, name="failing")
        thread.start()
        thread.join()

    def _raise_when_collected(self) -> None:
        RaisesWhenCollected()

    def _raise_in_a_callback(self) -> None:
        asyncio.get_running_loop().call_soon(fail, SECRET)

    def _warn(self) -> None:
        warnings.warn(SECRET, stacklevel=1)


async def _exit(status: int) -> None:
    sys.exit(status)


async def _interrupt() -> None:
    raise KeyboardInterrupt
