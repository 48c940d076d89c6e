"""The simplest backend: it implements the whole plugin interface and computes nothing.

Task `echo` returns its JSON. Chat and completion return the user's text, word by word in a stream. Embeddings return a
vector that depends only on the input.
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
    """Settings of the `echo` plugin."""

    delay_s: float = Field(0.0, ge=0, description="seconds to wait before the answer")
    dimension: int = Field(8, ge=1, le=4096, description="length of an embedding")


class Echo(Backend[EchoSettings]):
    """Returns its input."""

    kinds = frozenset({"chat", "completion", "embeddings"})
    examples: ClassVar = {"echo": {"a": [1, 2]}}

    def __init__(self, settings: EchoSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.models = {"echo": "echo"} if settings.models is None else settings.models
        self.tasks = {"echo": "echo"} if settings.tasks is None else settings.tasks

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Wait for `delay_s`, then return the answer for the kind of the task."""
        await asyncio.sleep(self.settings.delay_s)
        if task.kind == "task":
            yield Result(body=b'{"result":%b}' % body_as_json(task))
        elif task.kind == "embeddings":
            yield Result(json=[vector(text, self.settings.dimension) for text in embedding_inputs(task)])
        elif not task.stream:
            yield Result(json=user_text(task))
        else:
            for word in re.findall(r"\s*\S+\s*", user_text(task)):
                yield Part(word)


def body_as_json(task: Task) -> bytes:
    """Return the JSON body undecoded: decoding a large one would block the event loop. Raises TaskInvalid."""
    try:
        return bytes(msgspec.json.decode(task.body, type=msgspec.Raw))
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(task.json)  # a form has a JSON value; anything else raises TaskInvalid


def user_text(task: Task) -> str:
    """Return the text of the last user message. Raises TaskInvalid without one."""
    body = task.json if isinstance(task.json, dict) else {}
    if task.kind == "completion":
        return text_of(body.get("prompt"), "prompt")
    messages = body.get("messages")
    users = [message for message in messages if message.get("role") == "user"] if isinstance(messages, list) else []
    if not users:
        raise TaskInvalid("`messages` has no message of role `user`", param="messages")
    return text_of(users[-1].get("content"), "messages")


def embedding_inputs(task: Task) -> list[Any]:
    """Return the inputs to embed. Raises TaskInvalid without any."""
    value = task.json.get("input") if isinstance(task.json, dict) else None
    if not value:
        raise TaskInvalid("`input` is missing: a text, or a list of texts", param="input")
    return value if isinstance(value, list) and not isinstance(value[0], int) else [value]


def text_of(content: Any, param: str) -> str:
    """Return the text of a message, given as a string or in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
    raise TaskInvalid(f"`{param}` holds no text", param=param)


def vector(value: Any, dimension: int) -> list[float]:
    """Return a unit vector of `dimension` numbers, the same for the same value on every machine."""
    digest = hashlib.shake_128(repr(value).encode()).digest(dimension * 2)
    raw = [int.from_bytes(digest[i : i + 2], "big") / 32767.5 - 1 for i in range(0, len(digest), 2)]
    length = math.hypot(*raw) or 1.0
    return [number / length for number in raw]
