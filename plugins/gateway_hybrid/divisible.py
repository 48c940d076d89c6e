"""Divisible tasks: list tasks, embedding inputs, recordings. Each makes subtasks, checks their answers and joins them.

A divisible task knows its number of items, makes the subtask for a range of items, checks the answer to it, and joins
all answers in the order of the items.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from gateway.plugin import BackendFailed, Result, Task, TaskInvalid
from gateway_hybrid.audio import AudioWork


class DivisibleWork(Protocol):
    """One divisible task. Before `prepare`, `count` may be an estimate."""

    count: int

    async def prepare(self) -> None:
        """Find the items; may take long."""
        ...

    def part(self, start: int, stop: int) -> Task:
        """Return the subtask for these items, without a backend."""
        ...

    def check(self, answer: Result, items: int) -> Any:
        """Return the value that `join` needs. Raises BackendFailed if the answer does not fit `items`."""
        ...

    def join(self, answers: Sequence[Any]) -> Result:
        """Return the whole answer from the values of `check`, in the order of the items."""
        ...


def divide_task(task: Task, argument: str, piece_s: float) -> DivisibleWork | None:
    """Return the task as divisible work; None if it cannot be divided.

    Raises TaskInvalid for a list task without list.
    """
    if task.kind == "task":
        return ListItemsWork(task, argument)
    if task.kind == "embeddings":
        return EmbeddingInputsWork(task) if task.items > 1 else None
    if task.kind == "transcription" and (upload := task.files.get("file")):
        with contextlib.suppress(ValueError):
            return AudioWork(task, upload, piece_s)
    return None


class ListItemsWork:
    """A task that takes a list and returns `{"result": [...]}` with one value for each item."""

    def __init__(self, task: Task, argument: str) -> None:
        self._task, self._argument = task, argument
        arguments = task.json
        items = arguments.get(argument) if isinstance(arguments, dict) else None
        if not isinstance(items, list):
            message = f'{task.name} needs a JSON object with the list {argument!r}: {{"{argument}": [...]}}'
            raise TaskInvalid(message, param=argument)
        self._items = items
        self.count = len(items)

    async def prepare(self) -> None:
        """Do nothing: the items are known."""

    def part(self, start: int, stop: int) -> Task:
        return self._task.subtask(
            json={**self._task.json, self._argument: self._items[start:stop]}, items=max(stop - start, 1)
        )

    def check(self, answer: Result, items: int) -> list[Any]:
        value = answer.value()
        values = value.get("result") if isinstance(value, dict) else None
        if not isinstance(values, list) or len(values) != items:
            raise _unexpected(answer, f'{{"result": [...]}} with {items} values for its group')
        return values

    def join(self, answers: Sequence[list[Any]]) -> Result:
        return Result(json={"result": [value for values in answers for value in values]})


class _Vectors(msgspec.Struct):
    """An embeddings answer. Its vectors stay encoded and are passed on unchanged."""

    data: list[dict[str, msgspec.Raw]]
    usage: dict[str, int] | None = None


_VECTORS = msgspec.json.Decoder(_Vectors)


class EmbeddingInputsWork:
    """The inputs of an embeddings request."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._inputs: list[Any] = task.json["input"]
        self.count = len(self._inputs)

    async def prepare(self) -> None:
        """Do nothing: the items are known."""

    def part(self, start: int, stop: int) -> Task:
        return self._task.subtask(json={**self._task.json, "input": self._inputs[start:stop]}, items=stop - start)

    def check(self, answer: Result, items: int) -> _Vectors:
        """Return the vectors in the order of their inputs. Raises BackendFailed."""
        try:
            found = _read_vectors(answer)
            found.data.sort(key=lambda one: int(bytes(one.get("index", b"0"))))
        except (msgspec.DecodeError, ValueError, TypeError) as exc:
            raise _unexpected(answer, f"readable embeddings ({exc})") from exc
        if len(found.data) != items or not all("embedding" in one for one in found.data):
            raise _unexpected(answer, f"{items} vectors for its group")
        return found

    def join(self, answers: Sequence[_Vectors]) -> Result:
        """Return all vectors with consecutive indices and the sum of the usage."""
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
    """Read an upstream's body, the same as JSON, or bare vectors from a plugin."""
    if answer.body is not None:
        return _VECTORS.decode(answer.body)
    value = answer.json
    if isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
        value = [value]
    if isinstance(value, list | tuple):
        value = {"data": [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(value)]}
    return _VECTORS.decode(msgspec.json.encode(value))


def _unexpected(answer: Result, wanted: str) -> BackendFailed:
    backend = answer.backend or "a backend"
    return BackendFailed(f"{backend} did not return {wanted}", code="upstream_bad_response")
