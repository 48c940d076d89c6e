"""Drive a serial device: the task `weigh`, with a scale that answers `W` with a line such as `1.250 kg`."""

from __future__ import annotations

import asyncio
import os
import termios
import time
import tty
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, BackendUnavailable, DeadlineExceeded, Result, Task


class Settings(BackendSettings):
    """The device file of the serial line."""

    device: Path = Field(description="the line, such as /dev/ttyUSB0")


class Scale(Backend[Settings]):
    """The weight on the scale, in kilograms."""

    slots = 1  # one serial line serves one request at a time; the others wait in the gateway
    tasks = ("weigh",)
    repeatable = True  # weighing twice is harmless, so another scale may be tried
    examples: ClassVar = {"weigh": {}}

    async def __aenter__(self) -> Self:
        try:
            self._line = os.open(self.settings.device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as exc:
            raise BackendUnavailable(f"DEVICE {self.settings.device}: {exc.strerror}; is it plugged in?") from exc
        tty.setraw(self._line)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.close(self._line)

    async def run(self, task: Task) -> Result:
        try:
            async with asyncio.timeout(task.deadline - time.monotonic()):
                termios.tcflush(self._line, termios.TCIFLUSH)  # discard a late answer to an earlier request
                os.write(self._line, b"W\r")
                weight, unit = (await self._read_line()).split()
        except TimeoutError as exc:
            raise DeadlineExceeded("the scale did not answer in time") from exc
        except (OSError, ValueError) as exc:
            raise BackendUnavailable(f"the scale did not answer as agreed: {exc}") from exc
        return Result(json={"result": float(weight), "unit": unit})

    async def _read_line(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            await self._readable()
            text += os.read(self._line, 256)
        return text.decode("ascii")

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._line, ready.set_result, None)
        try:
            await ready
        finally:
            loop.remove_reader(self._line)
