"""Healthy and failing chat upstreams, and a gateway in front of two of them.

`ChatUpstream` is healthy: it returns TEXT word by word, streamed or whole, with usage. If the request ends with an
assistant message that holds the beginning of TEXT, it returns the rest. `breaks` makes scripts that begin in the same
way and then fail.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from gateway.testing import RunningGateway, running_gateway
from support.upstream import CHUNKED, EVENTS, JSON, LAST_CHUNK, Script, Talk, Upstream, by_path, chunk, head, whole
from support.wiring import cloud

CHAT = "/v1/chat/completions"
TEXT = "A stream is sent once, to its end, by one backend."
WORDS = [f"{word} " for word in TEXT.split(" ")[:-1]] + [TEXT.split(" ")[-1]]
USAGE = {"prompt_tokens": 5, "completion_tokens": len(WORDS), "total_tokens": 5 + len(WORDS)}
QUESTION = {"role": "user", "content": "What is a stream?"}
OPENING = head(200, [EVENTS, CHUNKED])


def event(data: Any) -> bytes:
    """Return one event as one HTTP chunk."""
    text = data if isinstance(data, str) else json.dumps(data)
    return chunk(f"data: {text}\n\n".encode())


DONE = event("[DONE]")


@dataclass(kw_only=True)
class ChatUpstream:
    """A healthy upstream.

    `name` identifies its chunks; `words` are the pieces of the text.
    """

    name: str = "a"
    words: Sequence[str] = field(default_factory=lambda: WORDS)
    continues: bool = True  # continues a partial assistant message; otherwise refuses the request
    repeats: bool = False  # repeats the text from its start instead of continuing

    def said(self, **choice: Any) -> dict[str, Any]:
        choices = [{"index": 0, "delta": {}, "finish_reason": None, **choice}]
        return {"id": f"id-{self.name}", "object": "chat.completion.chunk", "created": 1, "model": f"model-{self.name}",
                "choices": choices}  # fmt: skip

    def opening(self) -> bytes:
        return OPENING + event(self.said(delta={"role": "assistant", "content": ""}))

    def events(self, words: Sequence[str]) -> bytes:
        return b"".join(event(self.said(delta={"content": word})) for word in words)

    def ending(self, request: Any = None) -> bytes:
        wants_usage = ((request or {}).get("stream_options") or {}).get("include_usage")
        usage = event({**self.said(), "choices": [], "usage": USAGE}) if wants_usage else b""
        return event(self.said(finish_reason="stop")) + usage + DONE + LAST_CHUNK

    def rest_of(self, request: Any) -> Sequence[str] | None:
        """Return the words still to be sent, or None if the request is refused."""
        last = request["messages"][-1]
        if last["role"] != "assistant":
            return self.words
        if not self.continues:
            return None
        rest = "".join(self.words).removeprefix(last["content"])
        return self.words if self.repeats else [rest[at : at + 7] for at in range(0, len(rest), 7)]

    async def __call__(self, talk: Talk) -> None:
        request = talk.request.json
        words = self.rest_of(request)
        if words is None:
            error = {"message": "the last message must be the user's", "type": "invalid_request_error", "code": None}
            await talk.send(whole(json.dumps({"error": error}).encode(), status=400))
        elif request.get("stream"):
            await talk.send(self.opening() + self.events(words) + self.ending(request))
        else:
            message = {"role": "assistant", "content": "".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {**self.said(), "object": "chat.completion", "choices": [choice], "usage": USAGE}
            await talk.send(whole(json.dumps(answer).encode()))


def refuses(status: int, code: str | None = None, *headers: tuple[str, str]) -> Script:
    """Return an error in OpenAI's format."""
    error = {"error": {"message": f"status {status}", "type": "error", "code": code, "param": None}}

    async def script(talk: Talk) -> None:
        body = json.dumps(error).encode()
        await talk.send(head(status, [JSON, ("Content-Length", str(len(body))), *headers]) + body)

    return script


def breaks(then: Script, *, after: int = 4, speaker: ChatUpstream | None = None) -> Script:
    """Send `after` words like a healthy upstream, then run `then`."""
    speaker = speaker or ChatUpstream()

    async def script(talk: Talk) -> None:
        await talk.send(speaker.opening() + speaker.events(speaker.words[:after]))
        await then(talk)

    return script


def talking(script: Script) -> Script:
    """A healthy upstream that answers chat requests by `script`."""
    return by_path({CHAT: script})


def asked(upstream: Upstream) -> list[Any]:
    """Return the bodies of the chat requests the upstream received."""
    return [request.json for request in upstream.requests if request.path == CHAT]


@asynccontextmanager
async def between(
    first: Script, second: Script, *, environ: dict[str, str] | None = None, **settings_of_second: str
) -> AsyncIterator[tuple[RunningGateway, Upstream, Upstream]]:
    """A gateway in front of two upstreams of one model.

    The first costs less, so it is tried first.
    """
    costs = {"USD_PER_REQUEST": "9", **settings_of_second}
    async with Upstream(talking(first)) as one, Upstream(talking(second)) as two:
        both = cloud(one.url, "one", MODELS="gpt") | cloud(two.url, "two", MODELS="gpt", **costs)
        async with running_gateway(**both, GATEWAY_POLICY__USD="1", **(environ or {})) as gateway:
            yield gateway, one, two


async def ask(gateway: RunningGateway, *, stream: bool = True, **more: Any) -> str:
    """Return the text of the answer.

    Raises the errors of openai-python, which does not retry here.
    """
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:
        said = await ai.chat.completions.create(model="gpt", messages=[QUESTION], stream=stream, **more)
        if not stream:
            return said.choices[0].message.content or ""
        return "".join([c.delta.content or "" async for chunk in said for c in chunk.choices])
