"""What can be divided, and how the parts are put together again: list tasks and embedding inputs.

A work knows how many items it has, makes the subtask for some of them, checks what came back for these, and joins
all answers in the order of the items they are for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from gateway.plugin import BackendFailed, Result, Task, TaskInvalid
from gateway_hybrid.audio import AudioWork


class Work(Protocol):
    """One divisible task. Before `prepare`, `count` may be a guess."""

    count: int

    async def prepare(self) -> None:
        """Cut it up."""
        ...

    def part(self, start: int, stop: int) -> Task:
        """The subtask for these items, not yet meant for anybody."""
        ...

    def check(self, answer: Result, items: int) -> Any:
        """What `join` needs of a good answer for so many items. Raises BackendFailed where it is none."""
        ...

    def join(self, answers: Sequence[Any]) -> Result:
        """The answer to all of it, from what `check` gave for each part, in order."""
        ...


def work_of(task: Task, argument: str, piece_s: float) -> Work | None:
    """The task as divisible work; None where there is nothing to divide. Raises TaskInvalid for a task without list."""
    if task.kind == "task":
        return ListWork(task, argument)
    if task.kind == "embeddings":
        return InputsWork(task) if task.items > 1 else None
    if task.kind == "transcription" and (upload := task.files.get("file")):
        with contextlib.suppress(ValueError):
            return AudioWork(task, upload, piece_s)
    return None


class ListWork:
    """A task that takes a list and answers `{"result": [...]}` with one value for each item."""

    def __init__(self, task: Task, argument: str) -> None:
        self._task, self._argument = task, argument
        arguments = task.json
        items = arguments.get(argument) if isinstance(arguments, dict) else None
        if not isinstance(items, list):
            message = f'{task.name} takes an object with a list {argument!r}: {{"{argument}": [...]}}'
            raise TaskInvalid(message, param=argument)
        self._items = items
        self.count = len(items)

    async def prepare(self) -> None:
        """It is in items already."""

    def part(self, start: int, stop: int) -> Task:
        """The same call with a shorter list."""
        return self._task.subtask(
            json={**self._task.json, self._argument: self._items[start:stop]}, items=max(stop - start, 1)
        )

    def check(self, answer: Result, items: int) -> list[Any]:
        """The values. Raises BackendFailed."""
        value = answer.value()
        values = value.get("result") if isinstance(value, dict) else None
        if not isinstance(values, list) or len(values) != items:
            raise _wrong(answer, f'{{"result": [...]}} with {items} values for its group')
        return values

    def join(self, answers: Sequence[list[Any]]) -> Result:
        """One list of all values."""
        return Result(json={"result": [value for values in answers for value in values]})


class _Vectors(msgspec.Struct):
    """An embeddings answer, its vectors unread: they go out as they came in."""

    data: list[dict[str, msgspec.Raw]]
    usage: dict[str, int] | None = None


_VECTORS = msgspec.json.Decoder(_Vectors)


class InputsWork:
    """The inputs of an embeddings request."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._inputs: list[Any] = task.json["input"]
        self.count = len(self._inputs)

    async def prepare(self) -> None:
        """It is in items already."""

    def part(self, start: int, stop: int) -> Task:
        """The same request for fewer inputs."""
        return self._task.subtask(json={**self._task.json, "input": self._inputs[start:stop]}, items=stop - start)

    def check(self, answer: Result, items: int) -> _Vectors:
        """The vectors in the order of their inputs. Raises BackendFailed."""
        try:
            found = _read_vectors(answer)
            found.data.sort(key=lambda one: int(bytes(one.get("index", b"0"))))
        except (msgspec.DecodeError, ValueError, TypeError) as exc:
            raise _wrong(answer, f"embeddings that can be read ({exc})") from exc
        if len(found.data) != items or not all("embedding" in one for one in found.data):
            raise _wrong(answer, f"{items} vectors for its group")
        return found

    def join(self, answers: Sequence[_Vectors]) -> Result:
        """All vectors, numbered through; what they cost is added up."""
        data = [one for answer in answers for one in answer.data]
        for index, one in enumerate(data):
            one["index"] = msgspec.Raw(b"%d" % index)
        usage: dict[str, int] = {}
        for answer in answers:
            for name, amount in (answer.usage or {}).items():
                usage[name] = usage.get(name, 0) + amount
        whole = {
            "object": "list",
            "data": data,
            "model": self._task.json.get("model", self._task.name),
            "usage": usage or {"prompt_tokens": 0, "total_tokens": 0},
        }
        return Result(body=msgspec.json.encode(whole))


def _read_vectors(answer: Result) -> _Vectors:
    """From an upstream's body, from the same as JSON, or from bare vectors, as a plugin may give them."""
    if answer.body is not None:
        return _VECTORS.decode(answer.body)
    value = answer.json
    if isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
        value = [value]
    if isinstance(value, list | tuple):
        value = {"data": [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(value)]}
    return _VECTORS.decode(msgspec.json.encode(value))


def _wrong(answer: Result, wanted: str) -> BackendFailed:
    who = answer.backend or "a backend"
    return BackendFailed(f"{who} was to answer {wanted}, and did not", code="upstream_bad_response")
