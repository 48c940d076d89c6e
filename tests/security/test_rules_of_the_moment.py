"""A rule that comes while a request is under way holds from the next byte on: retries, queued work, resumed streams.

The first backend holds each request until the rules have changed; the recording cloud must then see none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.settings import load
from gateway.testing import RunningGateway, running_gateway
from support.polling import wait_until
from support.raw import answered, post
from support.upstream import EVENTS, Talk, Upstream, answer, head
from support.wiring import backend, cloud

SECRET = "a" * SECRET_CHARS
BODY = b'{"model":"m","messages":[{"role":"user","content":"marked"}]}'
STREAM = BODY.replace(b'"m"', b'"m","stream":true')
CHUNK = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"to "}}]}\n\n'
DONE = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
ANSWER = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "to be"}}]}
LOOPBACK = {"GATEWAY_LISTEN": "127.0.0.1:0", "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0"}

Change = Callable[[dict[str, str], Path], dict[str, str]]


def write(path: Path, key: Key | None) -> None:
    write_keys(path, {"other": Key(sha256=hash_of("b" * SECRET_CHARS))} | ({"some": key} if key else {}))


def with_rule(rule: str) -> Change:
    return lambda environ, keys: environ | {"GATEWAY_POLICY__EDGE_ONLY": rule}


def with_key(key: Key | None) -> Change:
    def change(environ: dict[str, str], keys: Path) -> dict[str, str]:
        write(keys, key)
        return environ

    return change


def unchanged(environ: dict[str, str], keys: Path) -> dict[str, str]:
    return environ


CHANGES: dict[str, Change] = {
    "name": with_rule("m"), "name, almost": with_rule("M:latest"), "path": with_rule("/v1/chat/completions"),
    "path, almost": with_rule("/chat/"), "everything": with_rule("*"), "pinned": with_rule("far/m,near/m,m"),
    "key without cloud": with_key(Key(sha256=hash_of(SECRET), allow_cloud=False)),
    "key without the model": with_key(Key(sha256=hash_of(SECRET), models=("n",))),
    "key revoked": with_key(None), "key with another secret": with_key(Key(sha256=hash_of("c" * SECRET_CHARS))),
}  # fmt: skip


class Held:
    """A script that lets each request wait until `release`, then lets `then` answer it."""

    def __init__(self, then: Callable[[Talk], Awaitable[None]], begin: Callable[[Talk], Awaitable[None]]) -> None:
        self._then, self._begin = then, begin
        self.arrived, self.released = asyncio.Event(), asyncio.Event()

    async def __call__(self, talk: Talk) -> None:
        if talk.request.method != "POST":
            await answer(json={})(talk)
            return
        await self._begin(talk)
        self.arrived.set()
        await self.released.wait()
        await self._then(talk)


async def nothing(talk: Talk) -> None: ...


async def first_chunk(talk: Talk) -> None:
    await talk.send(head(200, [EVENTS, ("Connection", "close")]) + CHUNK)


async def cut(talk: Talk) -> None:
    talk.cut()


async def reload(gateway: RunningGateway, environ: dict[str, str]) -> None:
    state = {"GATEWAY_STATE_DIR": str(gateway.service.settings.state_dir)}
    await gateway.service.reload(load(LOOPBACK | state | environ))
    await gateway.service.registry.wait_reloaded()


async def leaves_after(change: Change, keys: Path, held: Held, body: bytes) -> bool:
    """Whether the second cloud sees the request, if the rules change while the first one holds it."""
    write(keys, Key(sha256=hash_of(SECRET)))
    respond = answer(CHUNK + DONE, content_type="text/event-stream") if b"stream" in body else answer(json=ANSWER)
    async with Upstream(held) as near, Upstream(respond) as far:
        environ = (
            cloud(near.url, "near", MODELS="m", USD_PER_REQUEST="0")
            | cloud(far.url, "far", MODELS="m", USD_PER_REQUEST="9")
            | {"GATEWAY_POLICY__USD": "1", "GATEWAY_POLICY__RESCUE": "false", "GATEWAY_KEYS_FILE": str(keys)}
        )  # fmt: skip
        async with running_gateway(**environ) as gateway:
            sent = post("/v1/chat/completions", body, f"x-api-key: egw_some_{SECRET}", "Connection: close")
            asked = asyncio.ensure_future(answered(gateway.url, sent))
            await held.arrived.wait()
            await reload(gateway, change(environ, keys))
            held.released.set()
            await asked
            assert gateway.lines.of("egress.refused") == []
            assert len(near.posted) == 1 or change is unchanged
        return bool(far.posted)


@pytest.mark.parametrize("name", [*CHANGES, "nothing"])
async def test_retry_does_not_leave_after_a_rule_has_come(name: str, tmp_path: Path) -> None:
    held = Held(answer(json={"error": {"message": "x"}}, status=503), nothing)
    assert await leaves_after(CHANGES.get(name, unchanged), tmp_path / "keys.json", held, BODY) == (name == "nothing")


@pytest.mark.parametrize("name", [*CHANGES, "nothing"])
async def test_broken_stream_is_not_resumed_off_site_after_a_rule_has_come(name: str, tmp_path: Path) -> None:
    held = Held(cut, first_chunk)
    assert await leaves_after(CHANGES.get(name, unchanged), tmp_path / "keys.json", held, STREAM) == (name == "nothing")


@pytest.mark.parametrize("name", [*CHANGES, "nothing"])
async def test_queued_request_does_not_leave_after_a_rule_has_come(name: str, tmp_path: Path) -> None:
    keys, held = tmp_path / "keys.json", Held(answer(json=ANSWER), nothing)
    write(keys, Key(sha256=hash_of(SECRET)))
    async with Upstream(held) as far:
        environ = cloud(far.url, "far", MODELS="m,n", SLOTS="1") | {"GATEWAY_KEYS_FILE": str(keys)}
        async with running_gateway(**environ, **backend("e", "echo", MODELS="q")) as gateway:
            lines = ["Connection: close"]
            other = f"x-api-key: egw_other_{'b' * SECRET_CHARS}"
            first = post("/v1/chat/completions", BODY.replace(b'"m"', b'"n"'), other, *lines)
            running = asyncio.ensure_future(answered(gateway.url, first))
            await held.arrived.wait()
            second = post("/v1/chat/completions", BODY, f"x-api-key: egw_some_{SECRET}", *lines)
            queued = asyncio.ensure_future(answered(gateway.url, second))
            await wait_until(lambda: gateway.service.dispatcher.scheduler.waiting().get("far", 0) > 0)
            change = CHANGES.get(name, unchanged)
            await reload(gateway, change(environ, keys) | backend("e", "echo", MODELS="q"))
            held.released.set()
            await asyncio.gather(running, queued)
        sent = [request.body for request in far.posted]
    assert (BODY in sent) == (name == "nothing")
