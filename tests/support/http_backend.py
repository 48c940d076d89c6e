"""An `http` backend outside a gateway, with its link samples and time terms."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog

from gateway.plugin import LinkSample, Part, Result, Task
from gateway.timing import Account, Watch
from gateway_http import Http


class SampleRecorder:
    """Services that record link samples."""

    name = "up"
    log = structlog.get_logger()

    def __init__(self) -> None:
        self.samples: list[LinkSample] = []

    async def dispatch(self, task: Task) -> Result:
        raise AssertionError("this backend does not dispatch")

    def observe(self, sample: LinkSample) -> None:
        self.samples.append(sample)

    @property
    def failures(self) -> list[str]:
        return [sample.failed for sample in self.samples if sample.failed]


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[tuple[Http, SampleRecorder]]:
    services = SampleRecorder()
    backend = Http(Http.Settings.model_validate({"url": url, **settings}), services)
    async with backend:
        yield backend, services


def chat(name: str = "m", *, deadline_s: float = 5.0, **changes: Any) -> Task:
    body = changes.pop("body", msgspec.json.encode({"model": name, "messages": []}))
    path = changes.pop("path", "/v1/chat/completions")
    return Task(kind="chat", name=name, path=path, body=body, deadline=time.monotonic() + deadline_s, **changes)


def job(name: str = "/add", *, deadline_s: float = 5.0, json: Any = None, **changes: Any) -> Task:
    body = msgspec.json.encode(json if json is not None else {"a": 10, "b": 20})
    return Task(
        kind="task", name=name, path="/v1/tasks/add", body=body, deadline=time.monotonic() + deadline_s, **changes
    )


async def result(backend: Http, task: Task) -> Result:
    """Return the Result of a task, joined if its body arrives in pieces.

    Fails on a stream of events.
    """
    items = [item async for item in backend.run(task)]
    if isinstance(items[0], Part) and (content_type := items[0].content_type):
        return Result(body=b"".join(item.data for item in items if isinstance(item, Part)), content_type=content_type)
    assert len(items) == 1
    assert isinstance(items[0], Result)
    return items[0]


async def parts(backend: Http, task: Task) -> list[bytes]:
    """Return the framed events of a stream."""
    events = []
    async for item in backend.run(task):
        assert isinstance(item, Part)
        assert item.raw is not None
        events.append(item.raw)
    return events


async def accounted(backend: Http, task: Task) -> tuple[Result, Account]:
    """Return the result and its time terms."""
    watch = Watch()
    answer = await result(backend, task.replace(terms=watch))
    return answer, watch.close()
