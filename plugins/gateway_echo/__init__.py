"""The backend to read first: everything the gateway asks of a plugin, answered without any intelligence.

Task `echo` gives its JSON back; chat and completion give the user's text back, word by word in a stream;
embeddings give each input a vector that depends on nothing but the input.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import msgspec
from pydantic import Field

from gateway.plugin import Backend, BackendSettings, Part, Result, Services, Task, TaskInvalid


class EchoSettings(BackendSettings):
    """What an operator may set."""

    delay_s: float = Field(0.0, ge=0, description="seconds it waits before it answers")
    dimension: int = Field(8, ge=1, le=4096, description="length of an embedding")


class Echo(Backend[EchoSettings]):
    """Answers with what it was asked."""

    kinds = frozenset({"chat", "completion", "embeddings"})
    examples: ClassVar = {"echo": {"a": [1, 2]}}

    def __init__(self, settings: EchoSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.models = {"echo": "echo"} if settings.models is None else settings.models
        self.tasks = {"echo": "echo"} if settings.tasks is None else settings.tasks

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Wait the set time, then answer as the task's kind asks."""
        await asyncio.sleep(self.settings.delay_s)
        if task.kind == "task":
            yield Result(body=b'{"result":%b}' % body_of(task))
        elif task.kind == "embeddings":
            yield Result(json=[vector(text, self.settings.dimension) for text in inputs(task)])
        elif not task.stream:
            yield Result(json=asked(task))
        else:
            for word in re.findall(r"\s*\S+\s*", asked(task)):
                yield Part(word)


def body_of(task: Task) -> bytes:
    """The body, which must be JSON: looked at and not built, or a large one stops the loop. Raises TaskInvalid."""
    try:
        return bytes(msgspec.json.decode(task.body, type=msgspec.Raw))
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(task.json)  # a form has a value too; who says what is wrong with the rest


def asked(task: Task) -> str:
    """What the user said last. Raises TaskInvalid when there is nothing."""
    said = task.json if isinstance(task.json, dict) else {}
    if task.kind == "completion":
        return text_of(said.get("prompt"), "prompt")
    turns = said.get("messages")
    users = [turn for turn in turns if turn.get("role") == "user"] if isinstance(turns, list) else []
    if not users:
        raise TaskInvalid("`messages` has no message of role `user`", param="messages")
    return text_of(users[-1].get("content"), "messages")


def inputs(task: Task) -> list[Any]:
    """The inputs to embed. Raises TaskInvalid when there are none."""
    given = task.json.get("input") if isinstance(task.json, dict) else None
    if not given:
        raise TaskInvalid("`input` is missing: a text, or a list of texts", param="input")
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def text_of(content: Any, param: str) -> str:
    """A message's text, be it plain or in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
    raise TaskInvalid(f"`{param}` holds no text", param=param)


def vector(value: Any, dimension: int) -> list[float]:
    """A unit vector of `dimension` numbers, the same for the same value on every machine."""
    digest = hashlib.shake_128(repr(value).encode()).digest(dimension * 2)
    raw = [int.from_bytes(digest[i : i + 2], "big") / 32767.5 - 1 for i in range(0, len(digest), 2)]
    length = math.hypot(*raw) or 1.0
    return [number / length for number in raw]
