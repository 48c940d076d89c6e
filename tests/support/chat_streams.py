"""Streamed chats over raw sockets: chunks, requests and parsed events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.testing import RunningGateway
from support.raw import connected, post
from support.upstream import CHUNKED, EVENTS, Script, by_path, chunk, head

CHAT = "/v1/chat/completions"
OPENING = head(200, [EVENTS, CHUNKED])


def said(text: str | None = None, **choice: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]}  # fmt: skip


ROLE: dict[str, Any] = said(delta={"role": "assistant", "content": ""})
FINISH = said(finish_reason="stop")


def event(data: Any) -> bytes:
    return chunk(b"data: %s\n\n" % json.dumps(data).encode())


def chatting(script: Script) -> Script:
    """A healthy upstream that answers chat requests by `script`."""
    return by_path({CHAT: script})


def asked(model: str = "gpt", **more: Any) -> bytes:
    said = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True, **more}
    return json.dumps(said).encode()


@asynccontextmanager
async def streaming(
    gateway: RunningGateway, path: str = CHAT, body: bytes | None = None, *lines: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a streaming request; yields the connection."""
    async with connected(gateway.url) as (reader, writer):
        writer.write(post(path, asked() if body is None else body, *lines))
        yield reader, writer


async def next_event(reader: asyncio.StreamReader) -> str:
    """Return the next event or comment of a chunked stream with one chunk each."""
    size = int(await reader.readline(), 16)
    return (await reader.readexactly(size + 2)).decode().strip()


async def all_events(reader: asyncio.StreamReader) -> tuple[list[str], bool]:
    """Return all events up to the end, and whether the body ended correctly."""
    events = []
    try:
        while size := int(await reader.readline() or b"-1", 16):
            if size < 0:
                return events, False
            events += (await reader.readexactly(size + 2)).decode().strip().split("\n\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return events, False
    return events, True


def contents(events: list[str]) -> str:
    """Return the text a client would read."""
    chunks = [json.loads(each[6:]) for each in events if each.startswith("data: {")]
    return "".join(
        choice["delta"].get("content") or ""
        for each in chunks
        for choice in each.get("choices", ())
        if "delta" in choice
    )
