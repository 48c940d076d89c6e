"""Backends for tests of workers; worker processes import them by name."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import inspect
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    GatewayError,
    Part,
    Result,
    Task,
    TaskInvalid,
    TaskRefused,
)
from gateway.workers.codec import encode_result

LIBC = ctypes.CDLL(None)


def leave(how: str) -> None:
    """Leave a forked child: by an exit, an exception, or by returning into the caller's code."""
    match how:
        case "exit":
            sys.exit(3)
        case "exit with a text":
            sys.exit("no more")
        case "raise":
            raise LookupError("in the child")
        case "cancel":
            raise asyncio.CancelledError


class ToolSettings(BackendSettings):
    folder: Path = Path("/")
    password: SecretStr = SecretStr("")
    broken_until: Path | None = None


class Panic(BaseException):
    """A BaseException that is not an Exception, as native extensions raise."""


class Tool(Backend[ToolSettings]):
    """Runs the method with the name of the task."""

    isolation = "process"
    kinds = frozenset({"chat"})

    async def __aenter__(self) -> Self:
        self.models = {"gpt": "tiny"}
        self.tasks = tuple(sorted(name for name in vars(type(self)) if not name.startswith("_")))
        return self

    def size(self, task: Task) -> float:
        return 7.0

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        async for item in getattr(self, task.name)(task):
            yield item

    async def pid(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json=os.getpid(), confidence=0.5, headers={"x": "y"})

    async def json(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json=task.json)

    async def task(self, task: Task) -> AsyncIterator[Result]:
        yield Result(
            json={
                "fields": task.fields,
                "file": task.files["file"].data.decode(),
                "filename": task.files["file"].filename,
                "body": task.body.decode(),
                "left_s": task.deadline - time.monotonic(),
                "headers": task.headers,
                "items": task.items,
                "may_leave": task.may_leave,
            }
        )

    async def settings_seen(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json=[str(self.settings.folder), self.settings.password.get_secret_value(), self.services.name])

    async def body(self, task: Task) -> AsyncIterator[Result]:
        yield Result(body=task.body, content_type="image/png", status=201)

    async def parts(self, task: Task) -> AsyncIterator[Part]:
        for n in range(task.json["n"]):
            yield Part(n)
        yield Part(b"\x00")
        yield Part(raw=b"data: x\n\n")

    async def large_parts(self, task: Task) -> AsyncIterator[Part]:
        for _ in range(8):
            yield Part(raw=bytes(1 << 20))

    async def endless(self, task: Task) -> AsyncIterator[Part]:
        n = 0
        while True:
            yield Part(n)
            n += 1

    async def block(self, task: Task) -> AsyncIterator[Part]:
        yield Part(os.getpid())
        time.sleep(task.json["seconds"])  # noqa: ASYNC251  # a worker may block
        yield Part("done")

    async def wait(self, task: Task) -> AsyncIterator[Part]:
        yield Part(os.getpid())
        await asyncio.Event().wait()

    async def spawn(self, task: Task) -> AsyncIterator[Part]:
        child = await asyncio.create_subprocess_exec("sleep", "60")
        yield Part(child.pid)
        await child.wait()

    async def slow_to_close(self, task: Task) -> AsyncIterator[Result]:
        try:
            yield Result(json="early")
        finally:
            for _ in range(50):
                await asyncio.sleep(0)

    async def fork(self, task: Task) -> AsyncIterator[Result]:
        """Fork; the child leaves in the way that the JSON names, and the parent waits for it if `wait` is set."""
        how, wait = task.json["child"], task.json.get("wait", True)
        child = LIBC.fork() if how.startswith("native") else os.fork()
        if child == 0:
            if how.endswith("writes"):
                for fd in range(3, 50):
                    with suppress(OSError):
                        os.write(fd, bytes(64))
            leave(how.removeprefix("native "))
            yield Result(json={"nonce": "of a child"})
            return
        if how.startswith("native"):
            time.sleep(task.json.get("seconds", 20))  # noqa: ASYNC251 - until the kill
        status = os.waitpid(child, 0)[1] if wait else None  # noqa: ASYNC222 - a worker may block
        yield Result(json={"nonce": task.json["nonce"], "status": status and os.waitstatus_to_exitcode(status)})

    async def fork_stream(self, task: Task) -> AsyncIterator[Part]:
        yield Part(task.json["nonce"])
        os.fork()
        yield Part(task.json["nonce"])

    async def fork_and_await(self, task: Task) -> AsyncIterator[Result]:
        if os.fork() == 0:
            await asyncio.sleep(0.01)
        else:
            os.wait()  # noqa: ASYNC222 - a worker may block
        yield Result(json={"nonce": task.json["nonce"]})

    async def close_all(self, task: Task) -> AsyncIterator[Result]:
        os.closerange(3, 256)
        yield Result(json={"nonce": task.json["nonce"]})

    async def write_all(self, task: Task) -> AsyncIterator[Result]:
        for fd in range(3, 50):
            with suppress(OSError):
                os.write(fd, b"\xff" * 64)
        yield Result(json={"nonce": task.json["nonce"]})

    async def answer_twice(self, task: Task) -> AsyncIterator[Result]:
        worker = inspect.currentframe().f_back.f_back.f_back.f_locals["self"]  # type: ignore[union-attr]
        worker._channel.send(encode_result(Result(json={"nonce": "of another"})), worker._number + task.json["offset"])
        yield Result(json={"nonce": task.json["nonce"]})

    async def segfault(self, task: Task) -> AsyncIterator[Part]:
        yield Part("next: a null pointer")
        ctypes.string_at(0)

    async def exit_now(self, task: Task) -> AsyncIterator[Part]:
        yield Part("leaving")
        os._exit(3)

    async def sys_exit(self, task: Task) -> AsyncIterator[Part]:
        yield Part("leaving")
        sys.exit("enough")

    async def panic(self, task: Task) -> AsyncIterator[Part]:
        yield Part("next: a BaseException")
        raise Panic("enough")

    async def cancelled(self, task: Task) -> AsyncIterator[Part]:
        yield Part("next: an unrequested cancellation")
        raise asyncio.CancelledError

    async def divide(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json=1 / task.json)

    async def refuse(self, task: Task) -> AsyncIterator[Result]:
        raise TaskRefused("busy", code="rate_limited", param="n", status=429, retry_after_s=2.5)
        yield

    async def invalid(self, task: Task) -> AsyncIterator[Result]:
        raise Picky("no")
        yield

    async def not_json(self, task: Task) -> AsyncIterator[Result]:
        yield Result(json=object())

    async def huge(self, task: Task) -> AsyncIterator[Result]:
        yield Result(body=bytes(65 * 1024 * 1024))

    async def talk(self, task: Task) -> AsyncIterator[Result]:
        print("to standard output")
        print("x" * 9000, file=sys.stderr)
        self.services.log.warning("tool.talked", where=Path("/here"), count=1)
        yield Result(json="said")

    async def environment(self, task: Task) -> AsyncIterator[Result]:
        oom = int(Path("/proc/self/oom_score_adj").read_text())  # noqa: ASYNC240
        yield Result(json={"oom": oom, "fds": os.listdir("/proc/self/fd"), "aiohttp": "aiohttp" in sys.modules})


class Picky(TaskInvalid):
    """An error class defined by the plugin."""


class Quick(Backend[BackendSettings]):
    """A minimal backend with a coroutine."""

    tasks = ("echo",)
    isolation = "process"

    async def run(self, task: Task) -> Result:
        return Result(json={"result": task.json})


class StreamsPastDeadline(Quick):
    """Streams a further part after the deadline."""

    async def run(self, task: Task) -> AsyncIterator[Part]:  # type: ignore[override]
        yield Part("in time")
        await asyncio.sleep(max(task.deadline - time.monotonic(), 0) + 0.01)
        yield Part("after that")


class InvalidResults(Quick):
    """Returns invalid results built from the JSON of the task."""

    async def run(self, task: Task) -> Result:
        given = {name: bytearray(b"x") if value == "bytearray" else value for name, value in task.json.items()}
        if "own" in given:
            me = asyncio.current_task()
            assert me is not None
            me.cancel()
            await asyncio.sleep(0)
        return Result(**({"json": 1} | given))


class DelaysCancel(Quick):
    """Ignores cancellation for `seconds`. begun: a file that it creates when it begins."""

    async def run(self, task: Task) -> Result:
        if "begun" in task.json:
            Path(task.json["begun"]).touch()  # noqa: ASYNC240 - of its own worker process
        end = asyncio.get_running_loop().time() + task.json["seconds"]
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
        return Result(json=os.getpid())


class Broken(Quick):
    """Raises BackendUnavailable on start."""

    async def __aenter__(self) -> Self:
        raise BackendUnavailable("the model file is missing; set MODEL")


class RaisesOnStart(Quick):
    """Raises an unexpected KeyError on start."""

    async def __aenter__(self) -> Self:
        raise KeyError("weights")


class CrashesLoading(Quick):
    """Aborts the process on start, as a crashing native library does."""

    async def __aenter__(self) -> Self:
        print("loading libbad", flush=True)
        os.abort()


class StartsWhenFileExists(Backend[ToolSettings]):
    """Starts only while the file `broken_until` exists."""

    tasks = ("echo", "die")
    isolation = "process"

    async def __aenter__(self) -> Self:
        assert self.settings.broken_until is not None
        if not self.settings.broken_until.exists():
            raise BackendUnavailable("not yet")
        return self

    async def run(self, task: Task) -> Any:
        if task.name == "die":
            os._exit(1)
        return Result(json=os.getpid())


class HealthFromFile(Backend[ToolSettings]):
    """Takes its health from the file `broken_until`.

    The file is empty, or holds an error text, `raise` or `wait`.
    """

    tasks = ("echo", "block")

    async def health(self) -> str | None:
        text = self.settings.broken_until.read_text() if self.settings.broken_until else ""
        if text == "raise":
            raise KeyError("pulse")
        if text == "wait":
            await asyncio.Event().wait()
        return text or None

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        if task.name == "block":
            yield Part("blocked")
            time.sleep(60)  # noqa: ASYNC251
        yield Result(json=os.getpid())


class Dispatches(Backend[BackendSettings]):
    """Dispatches subtasks to other backends."""

    tasks = ("one", "many", "again", "later", "gives_up", "leaves", "strays", "whole")
    kinds = frozenset({"chat"})
    models = ("m",)

    async def run(self, task: Task) -> Any:
        name = task.name if task.kind == "task" else "whole"
        return await getattr(self, name)(task)

    async def one(self, task: Task) -> Result:
        part = task.subtask(json={"a": 1}, name="add", backend="there").replace(headers={"x": "y"})
        got = await self.services.dispatch(part)
        return Result(json=[got.value(), got.status, got.backend, got.site, got.confidence])

    async def many(self, task: Task) -> Result:
        parts = (task.subtask(json=n) for n in range(task.json))
        return Result(json=[got.value() for got in await asyncio.gather(*map(self.services.dispatch, parts))])

    async def again(self, task: Task) -> Result:
        try:
            await self.services.dispatch(task.subtask())
        except GatewayError as exc:
            return Result(json=[type(exc).__name__, exc.message, exc.code, exc.retry_after_s, exc.began])
        raise AssertionError("the subtask did not fail")

    async def gives_up(self, task: Task) -> Result:
        try:
            async with asyncio.timeout(0.05):
                await self.services.dispatch(task.subtask())
        except TimeoutError:
            return Result(json="gave up")
        raise AssertionError("the subtask did not time out")

    async def leaves(self, task: Task) -> Result:
        self._left = asyncio.create_task(self.services.dispatch(task.subtask()))
        await asyncio.sleep(0)
        return Result(json="left")

    async def strays(self, task: Task) -> Result:
        stray = dataclasses.replace(task.subtask(), parent_id="another")
        return Result(json=(await self.services.dispatch(stray)).value())

    async def whole(self, task: Task) -> Result:
        return Result(json=(await self.services.dispatch(task.subtask())).value())


class RaisesInRun(Quick):
    """Starts, and raises in every task."""

    async def run(self, task: Task) -> Result:
        raise LookupError("a bug")
