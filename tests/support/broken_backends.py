"""Backends that each break one rule of the conformance kit, and one that conforms."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from gateway.plugin import Backend, BackendSettings, NotServed, Part, Result, Task

PUBLIC = ("203.0.113.7", 80)  # RFC 5737 documentation address: never assigned to a host


class Conforming(Backend[BackendSettings]):
    """Passes every check."""

    tasks: Any = ("say",)
    examples: ClassVar[Any] = {"say": {"text": "hello"}}
    kept: ClassVar[list[Any]] = []  # resources a broken backend leaks, so that the test can release them

    async def run(self, task: Task) -> Any:
        await asyncio.sleep(0)
        return Result(json={"result": task.argument("text", str).upper()})


class LeaksTask(Conforming):
    async def __aenter__(self) -> Self:
        self.kept.append(asyncio.create_task(self._tick()))
        return self

    async def _tick(self) -> None:
        await asyncio.Event().wait()


class LeaksFile(Conforming):
    async def run(self, task: Task) -> Any:
        self.kept.append(Path(os.devnull).open())  # noqa: ASYNC230, SIM115
        return await super().run(task)

    async def __aexit__(self, *exc: object) -> None:
        for file in self.kept:
            file.close()
        self.kept.clear()


class LeaksThread(Conforming):
    async def __aenter__(self) -> Self:
        over = threading.Event()
        threading.Thread(target=over.wait, name="poller").start()
        self.kept.append(over)
        return self


class LeaksProcess(Conforming):
    async def __aexit__(self, *exc: object) -> None:
        self.kept.append(subprocess.Popen(["sleep", "60"]))  # noqa: ASYNC220


class Blocks(Conforming):
    async def run(self, task: Task) -> Any:
        time.sleep(0.06)  # noqa: ASYNC251
        return await super().run(task)


class SwallowsCancel(Conforming):
    async def run(self, task: Task) -> Any:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
        return Result(json={"result": task.argument("text", str)})


class OutlivesCancel(Conforming):
    async def run(self, task: Task) -> Any:
        task.argument("text", str)
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(1.1)
            raise
        return Result(json=1)


class ConnectsOffSite(Conforming):
    async def run(self, task: Task) -> Any:
        task.argument("text", str)
        with socket.socket() as sock, suppress(OSError):
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, PUBLIC)
        return Result(json=1)


class HalfStarted(Conforming):
    async def __aenter__(self) -> Self:
        self.sock = socket.socket()
        self.kept.append(self.sock)
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.sock.close()


class WrongType(Conforming):
    async def run(self, task: Task) -> Any:
        return {"result": task.argument("text", str)}


class NotAsync(Conforming):
    def run(self, task: Task) -> Any:
        return Result(json=1)


class NotJson(Conforming):
    async def run(self, task: Task) -> Any:
        return Result(json={"result": {task.argument("text", str)}.__iter__()})


class Untranslated(Conforming):
    async def run(self, task: Task) -> Any:
        return Result(json={"result": task.json["text"].upper()})


class Raises(Conforming):
    async def run(self, task: Task) -> Any:
        if task.body != b'{"text":"hello"}':
            raise RuntimeError("no text")
        return Result(json={"result": "HELLO"})


class SharesState(Conforming):
    slots = 4
    tasks: Any = ("say", "shout")
    examples: ClassVar[Any] = {"say": {"text": "hello"}, "shout": {"text": "ahoy"}}
    text = ""

    async def run(self, task: Task) -> Any:
        self.text = task.argument("text", str)
        await asyncio.sleep(0)
        return Result(json={"result": self.text})


class NanSize(Conforming):
    def size(self, task: Task) -> float:
        return float("nan")


class RaisingSize(Conforming):
    def size(self, task: Task) -> float:
        return float(len(task.json["text"]))


class TasksIsString(Conforming):
    tasks: Any = "say"


class NoExamples(Conforming):
    examples: ClassVar[Any] = {}


class NoTasks(Conforming):
    tasks: Any = ()


class ServesNothing(Conforming):
    async def run(self, task: Task) -> Any:
        raise NotServed(f"unknown task {task.name}", code="not_found")


class ServesSome(Conforming):
    tasks: Any = ("say", "sing")
    examples: ClassVar[Any] = {"say": {"text": "hello"}, "sing": {"text": "hello"}}

    async def run(self, task: Task) -> Any:
        if task.name == "sing":
            raise NotServed("unknown task sing", code="not_found")
        return await super().run(task)


class EntersAsNone(Conforming):
    async def __aenter__(self) -> Any:
        return None


class HangsInExit(Conforming):
    async def __aexit__(self, *exc: object) -> None:
        await asyncio.Event().wait()


class MixesPartsAndResult(Conforming):
    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        yield Part(task.argument("text", str))
        yield Result(json=1)


class IgnoresGeneratorExit(Conforming):
    async def run(self, task: Task) -> AsyncIterator[Part]:
        task.argument("text", str)
        for n in range(3):
            with suppress(GeneratorExit):
                yield Part(n)


class UpstreamCallerSettings(BackendSettings):
    url: str = ""


class UpstreamCaller(Backend[UpstreamCallerSettings]):
    """Calls a service without translating its errors."""

    tasks = ("ask",)
    examples: ClassVar[Any] = {"ask": {}}

    async def run(self, task: Task) -> Result:
        host, port = self.settings.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"GET /ask HTTP/1.1\r\nConnection: close\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            return Result(json=head.decode())
        finally:
            writer.close()


def caller_network() -> Any:
    from gateway.testing import FakeNetwork  # imported here because workers do not need it

    network = FakeNetwork()
    network.answer("/ask", json={"text": "hi"})
    return network
