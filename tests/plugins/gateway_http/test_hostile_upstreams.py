"""Broken and malicious upstreams.

Each raises an error within bounded memory, and the backend stays usable.
"""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
import zlib
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable, DeadlineExceeded, Task
from gateway_http.transport.exceptions import TIMER_SLACK_S
from support.hostile_upstreams import STREAMS, WHOLE_ANSWERS
from support.http_backend import chat, opened, parts, result
from support.upstream import (
    CHUNKED,
    JSON,
    LAST_CHUNK,
    Upstream,
    answer,
    chunk,
    endless,
    head,
    sends,
    whole,
)

GOOD = {"choices": [{"index": 0, "message": {"content": "hi"}}]}
MAX_GROWTH_BYTES = 16 << 20


@pytest.mark.parametrize("name", WHOLE_ANSWERS)
async def test_broken_answer_raises_an_error_and_the_backend_stays_usable(name: str) -> None:
    async with Upstream(WHOLE_ANSWERS[name]) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, chat())
        assert failed.value.code in ("upstream_bad_response", "unavailable")
        assert "Traceback" not in failed.value.message
        upstream.script = answer(json=GOOD)
        assert (await result(backend, chat())).value() == GOOD


@pytest.mark.parametrize("name", STREAMS)
async def test_broken_stream_raises_an_error_and_the_backend_stays_usable(name: str) -> None:
    async with Upstream(STREAMS[name]) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await parts(backend, chat(stream=True))
        assert failed.value.code == "upstream_bad_response"
        upstream.script = answer(json=GOOD)
        assert (await result(backend, chat())).value() == GOOD


BIG = [name for name in (*WHOLE_ANSWERS, *STREAMS) if name.startswith(("an endless", "endless", "a flood", "a gzip"))]
BIG.remove("an endless body of tiny chunks")  # tracemalloc needs seconds for this one


@pytest.mark.parametrize("name", BIG)
async def test_memory_is_bounded_for_endless_and_oversized_answers(name: str) -> None:
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


SOUND = ("Content-Type", "audio/mpeg")


def spoken() -> Task:
    return chat(path="/v1/audio/speech", deadline_s=30).replace(kind="other")


async def test_audio_without_content_length_has_the_same_limit() -> None:
    piece = b"\xff" * (1 << 20)
    script = sends(head(200, [SOUND, CHUNKED]), *[chunk(piece)] * 20, LAST_CHUNK)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, spoken())
        assert got.body == piece * 20
        assert got.content_type == "audio/mpeg"


async def test_endless_audio_is_cut_at_64_mib() -> None:
    script = endless(head(200, [SOUND, CHUNKED]), chunk(b"\xff" * (1 << 20)))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match=f"more than {64 << 20} bytes"):
            await result(backend, spoken())


async def test_audio_content_type_is_rejected_where_json_is_expected() -> None:
    script = endless(head(200, [SOUND, CHUNKED]), chunk(b"\xff" * (1 << 20)))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        for task in (chat(), chat(path="/v1/responses").replace(kind="other")):
            with pytest.raises(BackendUnavailable, match="audio/mpeg instead of JSON"):
                await result(backend, task)


async def test_unrequested_gzip_and_deflate_are_decoded() -> None:
    body = b'{"choices": [{"message": {}}], "pad": "' + b"x" * 1_000_000 + b'"}'
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


async def test_slow_drip_of_bytes_ends_at_the_deadline() -> None:
    drops = 0

    async def drip(talk: Any) -> None:
        nonlocal drops
        await talk.send(head(200, [JSON, CHUNKED]))
        while True:  # at this rate the size limit is reached after minutes
            await talk.send(chunk(b" "))
            drops += 1
            await asyncio.sleep(0)

    async with Upstream(drip) as upstream, opened(upstream.url) as (backend, _):
        task = chat(deadline_s=0.2)
        with pytest.raises(DeadlineExceeded, match="time was up"):
            await result(backend, task)
        assert time.monotonic() >= task.deadline - TIMER_SLACK_S
        assert drops > 1


async def test_interim_1xx_answers_are_skipped() -> None:
    script = sends(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3, whole(b'{"choices": [{"message": {}}]}'))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).status == 200
