"""Requests for tests of a backend: make them, repeat them, run one."""

from __future__ import annotations

import dataclasses
import io
import math
import time
import wave
from array import array
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast

import msgspec

from gateway.plugin import Backend, Kind, Part, Result, Task, Upload, new_id
from gateway.plugin.checks import parse_names
from gateway.testing.fake_services import Dispatch, FakeServices, echo_subtask

PATHS: Mapping[Kind, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "transcription": "/v1/audio/transcriptions",
}
TYPICAL_BODIES: Mapping[Kind, Mapping[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hello there"}]},
    "completion": {"prompt": "hello there"},
    "embeddings": {"input": ["hello", "there"]},
}
MALFORMED_BODIES: tuple[bytes, ...] = (
    b"{}", b"[]", b"null", b'"text"', b"5", b"", b'{"', b'{"messages": [{}], "input": 0}',
)  # fmt: skip


class ServedNames(Protocol):
    """The names that a backend, or its `WorkerBackend`, serves."""

    kinds: frozenset[Kind]
    models: Any
    tasks: Any


# ── made ─────────────────────────────────────────────────────────────────────────────────────────


def example_tasks(
    backend: ServedNames, cls: type[Backend[Any]], examples: Mapping[str, Any] | Sequence[Task] | None
) -> tuple[list[Task], list[str]]:
    """Return requests that the backend should answer, and the names it serves for which no request is known.

    examples: requests, which are returned as they are, or JSON bodies by name, which precede the `examples` of the
    class. For the first model there is a typical request of each kind.
    """
    if examples is not None and not isinstance(examples, Mapping):
        return list(examples), []
    bodies = {**cls.examples, **(examples or {})}
    found, unknown = [], []
    for name, own in parse_names(backend.tasks or ()).items():
        if name in bodies or own in bodies:
            found.append(a_task(own, bodies.get(name, bodies.get(own))))
        else:
            unknown.append(name)
    for name, own in list(parse_names(backend.models or ()).items())[:1]:
        found += [model_task(kind, own, bodies.get(name)) for kind in PATHS if kind in backend.kinds]
    return found, unknown


def a_task(name: str, json: Any = None, *, kind: Kind = "task", within_s: float = 30.0, **more: Any) -> Task:
    """Return a request for the task `name`, or for the model `name` if `kind` is not `task`.

    json: the JSON value of its body. within_s: seconds until its deadline. more: other fields of `Task`.
    """
    path = PATHS.get(kind, f"/v1/tasks/{name}")
    body = msgspec.json.encode(json)
    return Task(kind=kind, name=name, path=path, body=body, deadline=time.monotonic() + within_s, **more)


def model_task(kind: Kind, model: str, json: Any = None) -> Task:
    """Return a typical request of this kind; the members of `json` replace those of the typical body."""
    if kind == "transcription":
        fields = {"model": model, **(json or {})}
        files = {"file": Upload(sample_wav(), "sound.wav", "audio/wav")}
        return dataclasses.replace(a_task(model, kind=kind), body=b"", fields=fields, files=files)
    return a_task(model, {"model": model, **TYPICAL_BODIES[kind], **(json or {})}, kind=kind)


def sample_wav(seconds: float = 0.5) -> bytes:
    """Return a tone as a WAV file: 16 kHz, mono, 16 bit."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(array("h", (int(9000 * math.sin(n * 0.17)) for n in range(int(16_000 * seconds)))).tobytes())
    return out.getvalue()


def repeat(task: Task, *, within_s: float = 30.0, stream: bool = False) -> Task:
    """Return the same request with a new id and deadline, and a decoded body of its own."""
    copy = dataclasses.replace(task, id=new_id(), deadline=time.monotonic() + within_s, stream=stream)
    return copy.replace(body=task.body)


def malformed(task: Task) -> Iterator[Task]:
    """Yield the request with each body that clients send by mistake."""
    if task.fields is not None:
        for files in ({}, {"file": Upload(b"")}, {"file": Upload(b"\x00\xffnothing of the kind" * 50)}):
            yield dataclasses.replace(repeat(task), fields={}, files=files)
        return
    for body in MALFORMED_BODIES:
        yield repeat(task).replace(body=body)


def describe(task: Task) -> str:
    """Return a request as it appears in messages: `shout` with the body '{"text": "hello"}'."""
    body = "a multipart body" if task.fields is not None else f"the body {task.body[:60].decode(errors='replace')!r}"
    return f"{'`' + task.name + '`' if task.kind == 'task' else task.kind} with {body}"


# ── run ──────────────────────────────────────────────────────────────────────────────────────────


async def answer_of(
    cls: type[Backend[Any]], task: Task, *, dispatch: Dispatch = echo_subtask, **settings: Any
) -> Result:
    """Start a backend with these settings, run `task`, stop it, and return the Result.

    dispatch: serves the subtasks. Raises AssertionError if the backend yields Parts, and any error that it raises.
    """
    items = await _run(cls, task, dispatch, settings)
    if len(items) != 1 or not isinstance(items[0], Result):
        raise AssertionError(f"expected one Result, got {items!r}; use parts_of for streams")
    return items[0]


async def parts_of(
    cls: type[Backend[Any]], task: Task, *, dispatch: Dispatch = echo_subtask, **settings: Any
) -> list[Any]:
    """Start a backend with these settings, run `task`, stop it, and return the data of each Part.

    dispatch: serves the subtasks. Raises AssertionError if the backend returns a Result, and any error that it raises.
    """
    items = await _run(cls, task, dispatch, settings)
    if not all(isinstance(item, Part) for item in items):
        raise AssertionError(f"expected Parts, got {items!r}; use answer_of for whole answers")
    return [item.raw if item.data is None else item.data for item in items if isinstance(item, Part)]


async def _run(
    cls: type[Backend[Any]], task: Task, dispatch: Dispatch, settings: dict[str, Any]
) -> list[Part | Result]:
    services = FakeServices(cls.__name__.lower(), dispatch)
    async with cls(cls.Settings.model_validate(settings), services) as backend:
        produced = backend.run(task)
        if not isinstance(produced, AsyncIterator):
            return [await produced]
        async with aclosing(cast(Any, produced)) as items:
            return [item async for item in items]
