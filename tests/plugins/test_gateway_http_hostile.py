"""Upstreams that are broken or mean: a clean error each time, little memory, no stall, usable again at once."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
import zlib
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable
from support.http_backend import chat, opened, parts, result
from support.upstream import (
    CHUNKED,
    EVENTS,
    JSON,
    Script,
    Upstream,
    answer,
    chunk,
    endless,
    gzip_bomb,
    head,
    reset,
    sends,
    sends_and_cuts,
    whole,
)

GOOD = {"choices": [{"index": 0, "message": {"content": "hi"}}]}
MAX_GROWTH_BYTES = 16 << 20
SPACES = b" " * 65536

WHOLE_ANSWERS: dict[str, Script] = {
    "garbage instead of HTTP": sends_and_cuts(b"\x16\x03\x01\x02\x00 hello\r\n\r\n"),
    "garbage JSON": answer(b'{"choices": ['),
    "NaN": answer(b'{"choices": NaN}'),
    "not UTF-8": answer(b'{"choices": "\xff"}'),
    "a depth bomb": answer(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a list": answer(b"[1]"),
    "nothing": answer(b""),
    "an error under status 200": answer(json={"error": {"message": "quota"}}),
    "another content type": answer(b'{"choices": []}', content_type="text/html"),
    "a truncated chunk": sends_and_cuts(head(200, [JSON, CHUNKED]) + b'ff\r\n{"choices":'),
    "a chunk of no size": sends_and_cuts(head(200, [JSON, CHUNKED]) + b"xyz\r\n{}\r\n0\r\n\r\n"),
    "less than it said": sends_and_cuts(whole(b'{"choices": []}', length=500)),
    "more than it said": sends_and_cuts(whole(b'{"choices": []}', length=5)),
    "a reset in the body": reset(whole(b'{"choices": []}', length=500)),
    "a length that is none": sends_and_cuts(head(200, [JSON, ("Content-Length", "-1")]) + b"{}"),
    "a length of a terabyte": sends(head(200, [JSON, ("Content-Length", str(1 << 40))])),
    "a thousand headers": sends(whole(b"{}", headers=[(f"x-{i}", "1") for i in range(1000)])),
    "a header line over 8 KiB": sends(whole(b"{}", headers=[("x-long", "x" * 8300)])),
    "an endless header": endless(b"HTTP/1.1 200 OK\r\nx-long: ", b"x" * 65536),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"x-more: y\r\n" * 5000),
    "a gzip bomb": gzip_bomb(256 << 20),
    "half a gzip": answer(gzip.compress(b'{"a": 1}')[:-9], headers=[("Content-Encoding", "gzip")]),
    "no gzip": answer(b'{"choices": []}', headers=[("Content-Encoding", "gzip")]),
    "a coding nobody asked for": answer(b'{"choices": []}', headers=[("Content-Encoding", "br")]),
    "an endless body": endless(head(200, [JSON, CHUNKED]) + chunk(b'{"a": "'), chunk(SPACES)),
    "an endless body of tiny chunks": endless(head(200, [JSON, CHUNKED]), chunk(b"1" * 32) * 1000),
    "an endless body without framing": endless(head(200, [JSON]), SPACES),
    "an endless error": endless(head(500, [JSON, CHUNKED]), chunk(SPACES)),
    "a flood of interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "a flood of early hints": endless(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 2000),
    "a redirect": answer(b"", status=307, headers=[("Location", "http://169.254.169.254/")]),
    "an upgrade": sends(head(101, [("Upgrade", "websocket"), ("Connection", "upgrade")])),
}

STREAMS: dict[str, Script] = {
    "an endless event": endless(head(200, [EVENTS, CHUNKED]) + chunk(b"data: "), chunk(b"x" * 65536)),
    "an endless comment": endless(head(200, [EVENTS, CHUNKED]), chunk(b":" + b"x" * 65535)),
    "endless data lines": endless(head(200, [EVENTS, CHUNKED]), chunk(b"data: x\n" * 8000)),
    "a stream of garbage": sends_and_cuts(head(200, [EVENTS]) + b"\xff\x00" * 4000),
    "a stream that is compressed": sends_and_cuts(
        head(200, [EVENTS, ("Content-Encoding", "gzip")]) + gzip.compress(b"data: [DONE]\n\n")
    ),
}


@pytest.mark.parametrize("name", WHOLE_ANSWERS)
async def test_a_broken_answer_is_a_clean_error_and_the_backend_usable_again(name: str) -> None:
    async with Upstream(WHOLE_ANSWERS[name]) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, chat())
        assert failed.value.code in ("upstream_bad_response", "unavailable")
        assert "Traceback" not in failed.value.message
        upstream.script = answer(json=GOOD)
        assert (await result(backend, chat())).value() == GOOD


@pytest.mark.parametrize("name", STREAMS)
async def test_a_broken_stream_is_a_clean_error_and_the_backend_usable_again(name: str) -> None:
    async with Upstream(STREAMS[name]) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await parts(backend, chat(stream=True))
        assert failed.value.code == "upstream_bad_response"
        upstream.script = answer(json=GOOD)
        assert (await result(backend, chat())).value() == GOOD


BIG = [name for name in (*WHOLE_ANSWERS, *STREAMS) if name.startswith(("an endless", "endless", "a flood", "a gzip"))]
BIG.remove("an endless body of tiny chunks")  # tracing its allocations takes seconds


@pytest.mark.parametrize("name", BIG)
async def test_whatever_an_upstream_sends_memory_is_bounded(name: str) -> None:
    async with Upstream((WHOLE_ANSWERS | STREAMS)[name]) as upstream, opened(upstream.url) as (backend, _):
        tracemalloc.start()
        try:
            with pytest.raises(BackendUnavailable):
                async for _ in backend.run(chat(deadline_s=30)):
                    pass
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MAX_GROWTH_BYTES


async def test_whole_answers_that_are_compressed_nevertheless_are_understood() -> None:
    body = b'{"choices": [], "pad": "' + b"x" * 1_000_000 + b'"}'
    raw = zlib.compressobj(wbits=-15)
    codings: list[tuple[str, bytes]] = [
        ("gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("deflate", raw.compress(body) + raw.flush()),
    ]
    for coding, sent in codings:
        script = answer(sent, headers=[("Content-Encoding", coding)])
        async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
            assert (await result(backend, chat())).body == body


async def test_a_slow_drip_ends_at_the_deadline() -> None:
    async def drip(talk: Any) -> None:
        await talk.send(head(200, [JSON, CHUNKED]))
        while True:
            await talk.send(chunk(b" "))
            await asyncio.sleep(0.01)

    async with Upstream(drip) as upstream, opened(upstream.url) as (backend, _):
        began = time.monotonic()
        with pytest.raises(Exception, match="time was up"):
            await result(backend, chat(deadline_s=0.2))
        assert time.monotonic() - began < 0.4


async def test_a_few_interim_answers_are_passed_over() -> None:
    script = sends(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3, whole(b'{"choices": []}'))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).status == 200
