"""Stream tokens: the model `parrot`, which repeats the last user message word by word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, Part, Task, TaskInvalid


class Settings(BackendSettings):
    """The speed of the stream."""

    pause_s: float = Field(0.0, ge=0, description="seconds between two words")


class Parrot(Backend[Settings]):
    """A chat model for any OpenAI client."""

    kinds = frozenset({"chat"})
    models = ("parrot",)
    slots = 4

    async def run(self, task: Task) -> AsyncIterator[Part]:
        words = _asked(task.argument("messages", list)).split()
        for number, word in enumerate(words):
            await asyncio.sleep(self.settings.pause_s)  # a cancelled stream ends here
            yield Part(word if number == 0 else f" {word}")
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
        yield Part({"usage": usage})  # for clients that request usage


def _asked(messages: list[Any]) -> str:
    said = [turn.get("content") for turn in messages if isinstance(turn, dict) and turn.get("role") == "user"]
    if not said or not isinstance(said[-1], str) or not said[-1].strip():
        raise TaskInvalid("`messages` holds no text of role `user`", param="messages")
    return said[-1]
