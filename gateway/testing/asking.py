"""What the kit asks a backend: requests that it should answer, and bodies that clients send by mistake."""

from __future__ import annotations

import dataclasses
import io
import math
import time
import wave
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from gateway.plugin import Backend, Kind, Task, Upload
from gateway.plugin import new_id as fresh_id
from gateway.plugin.checks import parse_names

PATHS: Mapping[Kind, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "transcription": "/v1/audio/transcriptions",
}
USUAL: Mapping[Kind, Mapping[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hello there"}]},
    "completion": {"prompt": "hello there"},
    "embeddings": {"input": ["hello", "there"]},
}
MISTAKES: tuple[bytes, ...] = (b"{}", b"[]", b"null", b'"text"', b"5", b"", b'{"', b'{"messages": [{}], "input": 0}')


class Serves(Protocol):
    """What a backend in either isolation says of what it serves."""

    kinds: frozenset[Kind]
    models: Any
    tasks: Any


def tasks_of(
    backend: Serves, cls: type[Backend[Any]], given: Mapping[str, Any] | Sequence[Task] | None
) -> tuple[list[Task], list[str]]:
    """Requests it should answer, and the names it serves for which none is known.

    given: requests, or bodies by name; then the class's own examples; models have a usual one for each kind.
    """
    if given is not None and not isinstance(given, Mapping):
        return list(given), []
    bodies = {**cls.examples, **(given or {})}
    found, unknown = [], []
    for name, own in parse_names(backend.tasks or ()).items():
        if name in bodies or own in bodies:
            found.append(a_task(own, bodies.get(name, bodies.get(own))))
        else:
            unknown.append(name)
    for name, own in list(parse_names(backend.models or ()).items())[:1]:
        found += [a_model_task(kind, own, bodies.get(name)) for kind in PATHS if kind in backend.kinds]
    return found, unknown


def a_task(name: str, json: Any = None, *, kind: Kind = "task", within_s: float = 30.0, **more: Any) -> Task:
    """A request for a task, or for a model of another kind, with this JSON as its body."""
    path = PATHS.get(kind, f"/v1/tasks/{name}")
    body = msgspec.json.encode(json)
    return Task(kind=kind, name=name, path=path, body=body, deadline=time.monotonic() + within_s, **more)


def a_model_task(kind: Kind, model: str, json: Any = None) -> Task:
    """A usual request of its kind."""
    if kind == "transcription":
        fields = {"model": model, **(json or {})}
        files = {"file": Upload(a_sound(), "sound.wav", "audio/wav")}
        return dataclasses.replace(a_task(model, kind=kind), body=b"", fields=fields, files=files)
    return a_task(model, {"model": model, **USUAL[kind], **(json or {})}, kind=kind)


def a_sound(seconds: float = 0.5) -> bytes:
    """A tone as WAV, 16 kHz, mono, 16 bit."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(array("h", (int(9000 * math.sin(n * 0.17)) for n in range(int(16_000 * seconds)))).tobytes())
    return out.getvalue()


def again(task: Task, *, within_s: float = 30.0, stream: bool = False) -> Task:
    """The same request once more: an id, a deadline and a decoded body of its own."""
    asked = dataclasses.replace(task, id=fresh_id(), deadline=time.monotonic() + within_s, stream=stream)
    return asked.replace(body=task.body)


def mistaken(task: Task) -> Iterator[Task]:
    """The same request with each of the bodies that clients send by mistake."""
    if task.fields is not None:
        for files in ({}, {"file": Upload(b"")}, {"file": Upload(b"\x00\xffnothing of the kind" * 50)}):
            yield dataclasses.replace(again(task), fields={}, files=files)
        return
    for body in MISTAKES:
        yield again(task).replace(body=body)


def shown(task: Task) -> str:
    """A request in a message: `shout` with the body {"text": "hello"}."""
    body = "a multipart body" if task.fields is not None else f"the body {task.body[:60].decode(errors='replace')!r}"
    return f"{'`' + task.name + '`' if task.kind == 'task' else task.kind} with {body}"
