"""Failures of one request, which upstreams report as 500: the client's error, and not the backend's."""

from __future__ import annotations

import json

import pytest

from support.chat_upstreams import TEXT, ChatUpstream, ask, talking
from support.raw import answered, post
from support.upstream import Talk, answer
from support.wiring import relaying

TEXTS = [
    "input (992 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
    "input is too large to process. increase the physical batch size",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "Value is not callable: null at row 49, column 20",
    "Unsupported value: 'reasoning_effort' does not support 'xhigh' with this model.",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("status", [500, 503])
async def test_failure_of_one_request_is_its_400_and_leaves_the_breaker_closed(text: str, status: int) -> None:
    error = {"code": status, "message": text, "type": "server_error"}

    async def marked(talk: Talk) -> None:
        if "marked" in talk.request.json["messages"][-1]["content"]:
            await answer(json={"error": error}, status=status)(talk)
        else:
            await ChatUpstream()(talk)

    asked = json.dumps({"model": "gpt", "messages": [{"role": "user", "content": "marked"}]}).encode()
    async with relaying(talking(marked), MODELS="gpt") as (gateway, _):
        for _ in range(7):
            found = await answered(gateway.url, post("/v1/chat/completions", asked))
            assert (found.status, found.json["error"]) == (400, error)
        assert await ask(gateway) == TEXT
        assert not gateway.lines.of("breaker.opened")
